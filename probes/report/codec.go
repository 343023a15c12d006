package report

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
)

// wireVersion is the first byte of every encoded report.
const wireVersion = 1

// Bounds of the texts on the wire, in bytes. Together with the numbers they
// leave at least 500 of MaxSize for the sketch.
const (
	maxID     = 64  // Machine, Boot, Service, Version
	maxShort  = 32  // Region, Config
	maxReason = 160 // longer reasons are cut

	maxCried = 1 << 33 // seconds; the year 2242
)

// hasLatency is the presence bit of the sketch; those of values come before it,
// in wire order.
const hasLatency = 1 << 7

const (
	flagBusy = 1 << iota
	flagLeaving
	flagQueueService
	flagReplication
	flagReplica
	flagLinked
	flagTells // Evicting or Cried
	flagEnd   // above all that are known
)

// Encode returns the report in at most MaxSize bytes: a too large latency
// sketch is halved in resolution until it fits, a long Reason is cut. A value
// that is not finite is sent as absent. It fails when another text is longer
// than its bound or a field is out of range.
func (r Report) Encode() ([]byte, error) {
	for _, t := range r.texts() {
		if len(*t.text) > t.max && t.name != "reason" {
			return nil, fmt.Errorf("encode report: %s is longer than %d bytes", t.name, t.max)
		}
	}
	if r.Uptime < 0 || r.Readiness > Draining || r.AppRole > Switching || r.QueueScope > QueueService {
		return nil, errors.New("encode report: uptime, readiness or queue scope out of range")
	}
	r.Reason = cut(r.Reason, maxReason)

	var present, flags byte
	for i, v := range r.values() {
		if v.OK && !math.IsNaN(v.X) && !math.IsInf(v.X, 0) {
			present |= 1 << i
		}
	}
	if r.Latency != nil {
		present |= hasLatency
	}
	if r.Busy {
		flags |= flagBusy
	}
	if r.Leaving {
		flags |= flagLeaving
	}
	if r.QueueScope == QueueService {
		flags |= flagQueueService
	}
	if c := r.Replication; c != nil {
		flags |= flagReplication
		if c.Replica {
			flags |= flagReplica
		}
		if c.Linked {
			flags |= flagLinked
		}
	}
	tells := r.tells()
	if tells > 0 {
		flags |= flagTells
	}

	b := make([]byte, 0, MaxSize)
	b = append(b, wireVersion, present, flags, byte(r.Readiness)|byte(r.AppRole)<<4)
	b = binary.AppendUvarint(b, r.Seq)
	b = binary.AppendUvarint(b, r.Epoch)
	b = binary.AppendUvarint(b, uint64(r.Uptime))
	if tells > 0 {
		b = binary.AppendUvarint(b, tells)
	}
	for _, t := range r.texts() {
		b = append(b, byte(len(*t.text)))
		b = append(b, *t.text...)
	}
	for i, v := range r.values() {
		if present&(1<<i) != 0 {
			b = binary.LittleEndian.AppendUint64(b, math.Float64bits(v.X))
		}
	}
	if c := r.Replication; c != nil {
		b = c.append(b)
	}
	if r.Latency == nil {
		return b, nil
	}
	for level := 0; level <= maxLevel; level++ {
		if sketch := r.Latency.encode(level); len(b)+1+len(sketch) <= MaxSize {
			return append(append(b, byte(level)), sketch...), nil
		}
	}
	return nil, fmt.Errorf("encode report: does not fit %d bytes", MaxSize)
}

// Decode reads what Encode wrote. It refuses other versions, packets over
// MaxSize, values out of range and trailing bytes.
func Decode(b []byte) (Report, error) {
	r, err := decode(b)
	if err != nil {
		return Report{}, fmt.Errorf("decode report: %w", err)
	}
	return r, nil
}

var (
	errShort = errors.New("packet ends too early")
	errRange = errors.New("field out of range")
)

func decode(b []byte) (Report, error) {
	if len(b) > MaxSize {
		return Report{}, fmt.Errorf("packet of %d bytes is over %d", len(b), MaxSize)
	}
	if len(b) < 4 {
		return Report{}, errShort
	}
	if b[0] != wireVersion {
		return Report{}, fmt.Errorf("version %d, want %d", b[0], wireVersion)
	}
	present, flags, ready, role := b[1], b[2], Readiness(b[3]&0xF), AppRole(b[3]>>4)
	b = b[4:]
	if flags >= flagEnd || flags&flagReplication == 0 && flags&(flagReplica|flagLinked) != 0 || ready > Draining || role > Switching {
		return Report{}, errRange
	}
	r := Report{Readiness: ready, AppRole: role, Busy: flags&flagBusy != 0, Leaving: flags&flagLeaving != 0}
	if flags&flagQueueService != 0 {
		r.QueueScope = QueueService
	}

	var uptime, tells uint64
	numbers := []*uint64{&r.Seq, &r.Epoch, &uptime}
	if flags&flagTells != 0 {
		numbers = append(numbers, &tells)
	}
	for _, n := range numbers {
		x, size := binary.Uvarint(b)
		if size <= 0 {
			return Report{}, errShort
		}
		*n, b = x, b[size:]
	}
	if uptime > math.MaxInt64 || tells>>1 > maxCried || flags&flagTells != 0 && tells == 0 {
		return Report{}, errRange
	}
	r.Uptime, r.Evicting = time.Duration(uptime), tells&1 == 1
	if tells > 1 {
		r.Cried = time.Unix(int64(tells>>1), 0).UTC()
	}

	for _, t := range r.texts() {
		if len(b) < 1 || len(b) < 1+int(b[0]) {
			return Report{}, errShort
		}
		n := int(b[0])
		if n > t.max {
			return Report{}, fmt.Errorf("%s is longer than %d bytes", t.name, t.max)
		}
		*t.text, b = string(b[1:1+n]), b[1+n:]
	}
	for i, v := range r.values() {
		if present&(1<<i) == 0 {
			continue
		}
		if len(b) < 8 {
			return Report{}, errShort
		}
		x := math.Float64frombits(binary.LittleEndian.Uint64(b))
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return Report{}, errRange
		}
		*v, b = Of(x), b[8:]
	}
	if flags&flagReplication != 0 {
		c := &Replication{Replica: flags&flagReplica != 0, Linked: flags&flagLinked != 0}
		var err error
		if b, err = c.read(b); err != nil {
			return Report{}, err
		}
		r.Replication = c
	}
	if present&hasLatency == 0 {
		if len(b) > 0 {
			return Report{}, fmt.Errorf("%d bytes after the end", len(b))
		}
		return r, nil
	}
	if len(b) < 1 {
		return Report{}, errShort
	}
	if b[0] > maxLevel {
		return Report{}, errRange
	}
	s, err := decodeSketch(b[1:], int(b[0]))
	if err != nil {
		return Report{}, err
	}
	r.Latency = s
	return r, nil
}

// unknownLag stands for a lag that is absent.
const unknownLag = math.MaxUint64

// append writes what the flags do not hold.
func (c *Replication) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, c.History)
	b = binary.AppendUvarint(b, c.Offset)
	for _, v := range []Value{c.LagBytes, c.LagSeconds} {
		x := uint64(unknownLag)
		if v.OK && v.X >= 0 && v.X < math.MaxInt64 {
			x = uint64(v.X)
		}
		b = binary.AppendUvarint(b, x)
	}
	return b
}

// read is the reverse of append; it returns what follows.
func (c *Replication) read(b []byte) ([]byte, error) {
	if len(b) < 4 {
		return nil, errShort
	}
	c.History, b = binary.LittleEndian.Uint32(b), b[4:]
	var lags [2]uint64
	for _, n := range []*uint64{&c.Offset, &lags[0], &lags[1]} {
		x, size := binary.Uvarint(b)
		if size <= 0 {
			return nil, errShort
		}
		*n, b = x, b[size:]
	}
	for i, v := range []*Value{&c.LagBytes, &c.LagSeconds} {
		switch {
		case lags[i] == unknownLag:
		case lags[i] > math.MaxInt64:
			return nil, errRange
		default:
			*v = Of(float64(lags[i]))
		}
	}
	return b, nil
}

// tells is Cried in seconds, doubled, and one more for Evicting.
func (r *Report) tells() (x uint64) {
	if at := r.Cried.Unix(); at > 0 && at <= maxCried {
		x = uint64(at) << 1
	}
	if r.Evicting {
		x |= 1
	}
	return x
}

// values lists the measurements in the order of their presence bits.
func (r *Report) values() [7]*Value {
	return [7]*Value{&r.CPU, &r.Steal, &r.Memory, &r.Queue, &r.InFlight, &r.Requests, &r.Errors}
}

type text struct {
	name string
	text *string
	max  int
}

// texts lists the text fields in wire order.
func (r *Report) texts() [7]text {
	return [7]text{
		{"machine", &r.Machine, maxID},
		{"boot", &r.Boot, maxID},
		{"service", &r.Service, maxID},
		{"region", &r.Region, maxShort},
		{"version", &r.Version, maxID},
		{"config", &r.Config, maxShort},
		{"reason", &r.Reason, maxReason},
	}
}

// cut shortens s to at most n bytes without splitting a rune.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n]
}
