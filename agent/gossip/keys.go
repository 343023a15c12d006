package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"
)

// newKeyring returns a ring of AES-256 keys.
func newKeyring(keys func(time.Time) [][]byte, now time.Time) (*memberlist.Keyring, error) {
	if keys == nil {
		return nil, errors.New("no keys: gossip is never sent in the clear")
	}
	ring, err := memberlist.NewKeyring(nil, nil)
	if err != nil {
		return nil, fmt.Errorf("make keyring: %w", err)
	}
	return ring, setKeys(ring, keys(now))
}

// setKeys makes want the keys of the ring, its first the one that encrypts.
//
// Keyring.RemoveKey shifts the list in place while the packet handlers read
// it, except when the last key goes: then nothing moves. UseKey builds a new
// list with its key in front. So the wanted keys are brought to the front, the
// first one last, and the others are taken off the end.
func setKeys(ring *memberlist.Keyring, want [][]byte) error {
	if len(want) == 0 {
		return errors.New("set keys: none given")
	}
	for _, k := range want {
		if len(k) != 32 {
			return fmt.Errorf("set keys: a key has %d bytes, want 32", len(k))
		}
	}
	for _, k := range want {
		if err := ring.AddKey(k); err != nil {
			return fmt.Errorf("set keys: %w", err)
		}
	}
	for _, k := range slices.Backward(want) {
		if err := ring.UseKey(k); err != nil {
			return fmt.Errorf("set keys: %w", err)
		}
	}
	for {
		has := ring.GetKeys()
		last := has[len(has)-1]
		if slices.ContainsFunc(want, func(k []byte) bool { return bytes.Equal(k, last) }) {
			return nil
		}
		if err := ring.RemoveKey(last); err != nil {
			return fmt.Errorf("set keys: %w", err)
		}
	}
}

// keepKeys lets the ring follow the day.
func (g *Gossip) keepKeys(ctx context.Context) {
	tick := time.NewTicker(keyRefresh)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if err := setKeys(g.keyring, g.opts.Keys(now)); err != nil {
				g.log.Error("gossip keys not refreshed", "error", err)
			}
		}
	}
}
