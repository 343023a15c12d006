package gossip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
	"unicode/utf8"
)

// Role is what a machine is in the mesh.
type Role string

// The roles.
const (
	Agent     Role = "agent"     // gossip only
	Candidate Role = "candidate" // may become a voter, is in no cluster yet
	Nonvoter  Role = "nonvoter"  // replicates the log, does not vote
	Voter     Role = "voter"
	Leader    Role = "leader"
)

// roles in wire order; only ever append.
var roles = [...]Role{Agent, Candidate, Nonvoter, Voter, Leader}

// Hears says whether reports are sent to machines of this role.
func (r Role) Hears() bool { return r == Nonvoter || r == Voter || r == Leader }

// Meta is the identity that every member tells every other. It changes
// rarely: each change is passed on by the whole mesh.
type Meta struct {
	Machine  string    // Fly machine ID, also the member's name
	Boot     string    // boot ID of the agent, 32 hex digits
	BootAt   time.Time // start of the agent, by its own clock
	Epoch    uint64    // highest mesh epoch the agent knows
	Cluster  string    // cluster ID that it is in; empty: none
	App      string
	Service  string
	Group    string
	Region   string
	Role     Role
	MeshAddr string // host:port of raft and API
	Version  string // of the agent
	Config   string // first 8 hex digits of the hash of mesh.toml
	Eligible bool   // may vote: holds the tokens, service has vote = true
	Burst    bool   // was added by a scale-up
	Leaving  bool   // is about to end in good order
}

// MaxMeta is the largest encoded Meta in bytes; memberlist panics above it.
const MaxMeta = 512

// metaVersion is the first byte of an encoded Meta.
const metaVersion = 1

const (
	flagEligible = 1 << iota
	flagBurst
	flagLeaving
	flagsEnd
)

// errMeta is the cause of every refused encoding.
var errMeta = errors.New("malformed")

// Encode returns the wire form, at most MaxMeta bytes. It fails when a text is
// too long or not UTF-8, the machine or boot is missing, or the role unknown.
func (m Meta) Encode() ([]byte, error) {
	role := slices.Index(roles[:], m.Role)
	switch {
	case role < 0:
		return nil, fmt.Errorf("encode meta: role %q is unknown", m.Role)
	case m.Machine == "" || m.Boot == "":
		return nil, errors.New("encode meta: machine or boot is empty")
	}
	var at int64
	if !m.BootAt.IsZero() {
		if y := m.BootAt.Year(); y < 1971 || y > 2261 {
			return nil, fmt.Errorf("encode meta: boot time %s is out of range", m.BootAt)
		}
		at = m.BootAt.UnixNano()
	}
	var flags byte
	for i, on := range [...]bool{m.Eligible, m.Burst, m.Leaving} {
		if on {
			flags |= 1 << i
		}
	}
	b := []byte{metaVersion, byte(role), flags}
	b = binary.AppendUvarint(b, uint64(at))
	b = binary.AppendUvarint(b, m.Epoch)
	for _, s := range m.texts() {
		if len(*s) > math.MaxUint8 || !utf8.ValidString(*s) {
			return nil, fmt.Errorf("encode meta: text %.40q is longer than 255 bytes or not UTF-8", *s)
		}
		b = append(b, byte(len(*s)))
		b = append(b, *s...)
	}
	if len(b) > MaxMeta {
		return nil, fmt.Errorf("encode meta: %d bytes, at most %d fit", len(b), MaxMeta)
	}
	return b, nil
}

// DecodeMeta reads what Encode wrote and refuses everything else: each value
// has exactly one encoding.
func DecodeMeta(b []byte) (Meta, error) {
	m, err := decodeMeta(b)
	if err != nil {
		return Meta{}, fmt.Errorf("decode meta: %w", err)
	}
	return m, nil
}

func decodeMeta(b []byte) (Meta, error) {
	if len(b) > MaxMeta || len(b) < 3 {
		return Meta{}, fmt.Errorf("%w: %d bytes", errMeta, len(b))
	}
	if b[0] != metaVersion {
		return Meta{}, fmt.Errorf("version %d, want %d", b[0], metaVersion)
	}
	if int(b[1]) >= len(roles) || b[2] >= flagsEnd {
		return Meta{}, fmt.Errorf("%w: role or flags", errMeta)
	}
	m := Meta{
		Role:     roles[b[1]],
		Eligible: b[2]&flagEligible != 0, Burst: b[2]&flagBurst != 0,
		Leaving: b[2]&flagLeaving != 0,
	}
	b = b[3:]
	var at uint64
	for _, x := range []*uint64{&at, &m.Epoch} {
		v, n := binary.Uvarint(b)
		if n <= 0 || n != len(binary.AppendUvarint(nil, v)) {
			return Meta{}, fmt.Errorf("%w: number", errMeta)
		}
		*x, b = v, b[n:]
	}
	if at != 0 {
		m.BootAt = time.Unix(0, int64(at)).UTC()
		if y := m.BootAt.Year(); at > math.MaxInt64 || y < 1971 || y > 2261 {
			return Meta{}, fmt.Errorf("%w: boot time", errMeta)
		}
	}
	for _, s := range m.texts() {
		if len(b) < 1 || len(b) < 1+int(b[0]) {
			return Meta{}, fmt.Errorf("%w: text ends too early", errMeta)
		}
		n := 1 + int(b[0])
		if !utf8.Valid(b[1:n]) {
			return Meta{}, fmt.Errorf("%w: text is not UTF-8", errMeta)
		}
		*s, b = string(b[1:n]), b[n:]
	}
	if len(b) > 0 {
		return Meta{}, fmt.Errorf("%w: %d bytes after the end", errMeta, len(b))
	}
	if m.Machine == "" || m.Boot == "" {
		return Meta{}, fmt.Errorf("%w: machine or boot is empty", errMeta)
	}
	return m, nil
}

// texts lists the text fields in wire order.
func (m *Meta) texts() [10]*string {
	return [10]*string{&m.Machine, &m.Boot, &m.Cluster, &m.App, &m.Service,
		&m.Group, &m.Region, &m.MeshAddr, &m.Version, &m.Config}
}
