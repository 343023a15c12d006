package flytest

import (
	crand "crypto/rand"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// source makes identifiers and draws chances.
type source struct {
	mu  sync.Mutex // guards rng
	rng *rand.Rand
}

func newSource(seed uint64) *source {
	if seed == 0 {
		var b [8]byte
		crand.Read(b[:])
		seed = binary.LittleEndian.Uint64(b[:])
	}
	return &source{rng: rand.New(rand.NewPCG(seed, 0x666c79))}
}

func (s *source) uint64() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rng.Uint64()
}

// hit reports true with the given chance.
func (s *source) hit(chance float64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rng.Float64() < chance
}

// machineID returns 14 hex digits.
func (s *source) machineID() string { return fmt.Sprintf("%014x", s.uint64()>>8) }

// nonce returns 16 hex digits.
func (s *source) nonce() string { return fmt.Sprintf("%016x", s.uint64()) }

// ulid returns a 26 character ULID of the moment.
func (s *source) ulid(t time.Time) string {
	var out [26]byte
	ms := uint64(t.UnixMilli())
	for i := 9; i >= 0; i-- {
		out[i] = crockford[ms&31]
		ms >>= 5
	}
	for _, at := range []int{10, 18} {
		r := s.uint64()
		for i := range 8 {
			out[at+i] = crockford[r&31]
			r >>= 5
		}
	}
	return string(out[:])
}

// name returns a machine name as Fly makes them up.
func (s *source) name() string {
	first := [...]string{"aged", "billowing", "cold", "dawn", "empty", "falling", "green", "hidden", "icy", "late", "misty", "nameless", "old", "patient", "quiet", "red"}
	second := [...]string{"brook", "cloud", "dust", "field", "glade", "hill", "lake", "moon", "night", "paper", "rain", "sea", "tree", "voice", "water", "wind"}
	r := s.uint64()
	return fmt.Sprintf("%s-%s-%d", first[r&15], second[r>>4&15], r>>8%10000)
}
