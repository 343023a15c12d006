package identity

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// minSecret is the least size of a secret in bytes.
const minSecret = 32

// ErrNoSecret says that no secret is set at all.
var ErrNoSecret = errors.New("FLYMESH_SECRET is not set: make one with `agentctl secret new` and set the same on every app")

// Secret is the mesh's shared secret, or several while one replaces another.
// Everything that proves membership follows from it and the mesh's name. The
// first one issues and encrypts; all of them are trusted.
//
// Gossip is encrypted with the first one alone, so a rotation that loses no
// packet goes old, then "old,new", then "new,old", then new: at each step
// everyone already reads what anyone sends. TLS holds in shorter ways too, see
// TLS.
type Secret struct {
	hidden
	reveal func() [][]byte
}

// ParseSecret reads FLYMESH_SECRET: one secret or several with commas between
// them, each at least 32 random bytes in base64 (standard or URL alphabet, with
// or without padding). Its errors never show the value.
func ParseSecret(env string) (Secret, error) {
	if strings.TrimSpace(env) == "" {
		return Secret{}, ErrNoSecret
	}
	parts := strings.Split(env, ",")
	var keys [][]byte
	for i, part := range parts {
		which := ""
		if len(parts) > 1 {
			which = fmt.Sprintf("secret %d of %d ", i+1, len(parts))
		}
		key, err := decodeSecret(strings.TrimSpace(part))
		if err != nil {
			return Secret{}, fmt.Errorf("read FLYMESH_SECRET: %s%w", which, err)
		}
		if slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, key) }) {
			return Secret{}, fmt.Errorf("read FLYMESH_SECRET: %sis there twice", which)
		}
		keys = append(keys, key)
	}
	return newSecret(keys), nil
}

func decodeSecret(s string) ([]byte, error) {
	if s == "" {
		return nil, errors.New("is empty")
	}
	// The decoder's own errors would show a part of the value's shape.
	s = strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(s, "="))
	key, err := base64.RawStdEncoding.DecodeString(s)
	if err != nil {
		return nil, errors.New("is not base64: make one with `agentctl secret new`")
	}
	if len(key) < minSecret {
		return nil, fmt.Errorf("has %d bytes, at least %d are needed: make one with `agentctl secret new`", len(key), minSecret)
	}
	distinct := map[byte]bool{}
	for _, b := range key {
		distinct[b] = true
	}
	// 32 random bytes hold about 30 distinct ones; under 16 has a chance of less than 1e-12.
	if len(distinct) < 16 {
		return nil, errors.New("is not random: make one with `agentctl secret new`")
	}
	return key, nil
}

// NewSecret returns a new secret as it goes into FLYMESH_SECRET.
func NewSecret() string {
	var b [minSecret]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return base64.StdEncoding.EncodeToString(b[:])
}

// Dev returns a secret that everybody knows, for --dev on loopback alone.
func Dev(mesh string) Secret {
	key := sha256.Sum256([]byte("flymesh development, not a secret\x00" + mesh))
	return newSecret([][]byte{key[:]})
}

func newSecret(keys [][]byte) Secret {
	return Secret{reveal: func() [][]byte { return keys }}
}

func (s Secret) keys() [][]byte {
	if s.reveal == nil {
		return nil
	}
	return s.reveal()
}

// GossipKeys returns the AES-256 keys of the gossip ring. The first encrypts:
// that of the UTC day and the first secret. The others only decrypt: those of
// yesterday, today and tomorrow of every secret. The day is in the key because
// random nonces are good for 2^32 packets of one key only.
func (s Secret) GossipKeys(mesh string, now time.Time) [][]byte {
	var ring [][]byte
	for _, key := range s.keys() {
		for _, days := range [...]int{0, -1, 1} {
			day := now.UTC().AddDate(0, 0, days).Format(time.DateOnly)
			ring = append(ring, derive(key, "gossip", mesh, day))
		}
	}
	return ring
}

// PageToken returns the token that opens the page from off the machine. It
// follows from the first secret.
func (s Secret) PageToken(mesh string) string {
	if len(s.keys()) == 0 {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(derive(s.keys()[0], "page", mesh))
}

// derive makes 32 bytes for one purpose. The parts are told apart by NUL,
// which none of them holds.
func derive(key []byte, parts ...string) []byte {
	out, err := hkdf.Key(sha256.New, key, nil, "flymesh/v1\x00"+strings.Join(parts, "\x00"), 32)
	if err != nil { // only for more than 255 blocks
		panic(fmt.Sprintf("derive key: %v", err))
	}
	return out
}
