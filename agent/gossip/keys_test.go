package gossip

import (
	"bytes"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// The keyring follows the day while the mesh runs.
func TestKeysFollowTheDay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		// The bubble's day begins at midnight; let it end in half an hour.
		keys := func(now time.Time) [][]byte {
			day := byte(now.Add(23*time.Hour+30*time.Minute).UTC().Unix() / 86400)
			return [][]byte{key(day)[0], key(day - 1)[0], key(day + 1)[0]}
		}
		for i := range 3 {
			m.start(i, "b", Agent, func(o *Options) { o.Keys = keys })
		}
		within(t, 10*time.Second, "all know all", allSee(m.all, 3))
		first := m.all[0].keyring.GetPrimaryKey()
		for range 45 {
			time.Sleep(time.Minute)
			if !allSee(m.all, 3)() {
				t.Fatalf("the mesh fell apart at %v", time.Now().UTC())
			}
		}
		if bytes.Equal(first, m.all[0].keyring.GetPrimaryKey()) {
			t.Error("the key did not change with the day")
		}
		want := keys(time.Now())
		got := m.all[0].keyring.GetKeys()
		if !slices.EqualFunc(got, want, bytes.Equal) {
			t.Errorf("the ring holds %x, want %x", got, want)
		}
		m.end()
	})
}
