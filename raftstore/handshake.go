package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A connection opens with the listener's greeting {magic, nonce}, the
// dialler's request and the listener's reply. The nonce comes back in the
// request, so a recorded request opens nothing. Lengths are bounded before
// anything is allocated.
const (
	magic    = "FMR1"
	nonceLen = 16
	maxField = 255

	kindRaft   = 'r' // the rest of the connection is raft's
	kindQuery  = 'q' // one byte asks for a sight, any number of times
	kindLeave  = 'l' // the dialler asks the leader to remove it
	kindResign = 'x' // the dialler asks a voter without a leader to drop its raft state
)

// maxRequest bounds the body of a request.
const maxRequest = 1 + nonceLen + 8 + 4*(1+maxField)

// request is what a dialler says first.
type request struct {
	kind    byte
	nonce   [nonceLen]byte
	epoch   uint64
	mesh    string
	cluster string
	target  string // server ID that is meant; empty in a query: whoever is there
	own     string // the dialler's server ID
}

var errMalformed = errors.New("malformed handshake")

func (r request) encode() ([]byte, error) {
	b := make([]byte, 2, 2+maxRequest)
	b = append(b, r.kind)
	b = append(b, r.nonce[:]...)
	b = binary.BigEndian.AppendUint64(b, r.epoch)
	for _, f := range []string{r.mesh, r.cluster, r.target, r.own} {
		if len(f) > maxField {
			return nil, fmt.Errorf("encode handshake: field of %d bytes", len(f))
		}
		b = append(b, byte(len(f)))
		b = append(b, f...)
	}
	binary.BigEndian.PutUint16(b, uint16(len(b)-2))
	return b, nil
}

// decodeRequest reads the body of a request: every byte must be accounted for.
func decodeRequest(b []byte) (request, error) {
	var r request
	if len(b) < 1+nonceLen+8+4 || len(b) > maxRequest {
		return r, errMalformed
	}
	r.kind, b = b[0], b[1:]
	switch r.kind {
	case kindRaft, kindQuery, kindLeave, kindResign:
	default:
		return r, errMalformed
	}
	copy(r.nonce[:], b)
	b = b[nonceLen:]
	r.epoch, b = binary.BigEndian.Uint64(b), b[8:]
	for _, f := range []*string{&r.mesh, &r.cluster, &r.target, &r.own} {
		if len(b) < 1 || len(b) < 1+int(b[0]) {
			return request{}, errMalformed
		}
		n := 1 + int(b[0])
		*f, b = string(b[1:n]), b[n:]
	}
	if len(b) != 0 {
		return request{}, errMalformed
	}
	return r, nil
}

func readRequest(r io.Reader) (request, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return request{}, err
	}
	n := binary.BigEndian.Uint16(head[:])
	if n > maxRequest {
		return request{}, errMalformed
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return request{}, err
	}
	return decodeRequest(b)
}

// refusal is why a listener does not talk. The set is closed: it labels a metric.
type refusal string

// Error implements error for the dialler.
func (r refusal) Error() string { return "refused: " + string(r) }

const (
	accepted     refusal = ""
	badRequest   refusal = "malformed"
	badNonce     refusal = "replayed"
	otherMesh    refusal = "other_mesh"
	otherTarget  refusal = "other_target"  // meant for another incarnation
	otherCluster refusal = "other_cluster" // of a cluster that is not ours
	oldEpoch     refusal = "old_epoch"
	notInvitable refusal = "not_invitable" // this machine never joins raft
	notNamed     refusal = "not_named"     // the epoch record names another cluster
	notLeading   refusal = "not_leading"
	notWedged    refusal = "not_wedged"
	busy         refusal = "busy"
)

// reply is the listener's answer; epoch and cluster are its own.
type reply struct {
	refusal refusal
	epoch   uint64
	cluster string
}

func (r reply) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, r.epoch)
	for _, f := range []string{string(r.refusal), r.cluster} {
		f = f[:min(len(f), maxField)]
		b = append(b, byte(len(f)))
		b = append(b, f...)
	}
	return b
}

func readReply(r io.Reader) (reply, error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return reply{}, err
	}
	var f [2]string
	for i := range f {
		var n [1]byte
		if _, err := io.ReadFull(r, n[:]); err != nil {
			return reply{}, err
		}
		b := make([]byte, n[0])
		if _, err := io.ReadFull(r, b); err != nil {
			return reply{}, err
		}
		f[i] = string(b)
	}
	return reply{refusal(f[0]), binary.BigEndian.Uint64(head[:]), f[1]}, nil
}
