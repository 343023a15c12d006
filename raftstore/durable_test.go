package raftstore

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"log/slog"

	"flymesh/raftstore/raftnet"
)

// TestSlowDisk: a write that hangs is given up after its limit and reported
// once; no other starts before it has ended.
func TestSlowDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := 0
		l := &timedLog{turn: make(chan struct{}, 1), limit: writeTimeout, stuck: func() { stuck++ }}
		begin, busy := time.Now(), false
		hang := func() error {
			busy = true
			time.Sleep(12 * time.Second)
			busy = false
			return nil
		}
		if err := l.timed(hang); !errors.Is(err, errSlowDisk) || time.Since(begin) != writeTimeout || stuck != 1 {
			t.Errorf("a write that hangs: %v after %s, reported %d times", err, time.Since(begin), stuck)
		}
		quick := func() error {
			if busy {
				t.Error("a write started while another was under way")
			}
			return nil
		}
		if err := l.timed(quick); !errors.Is(err, errSlowDisk) {
			t.Errorf("a write behind it: %v", err)
		}
		if err := l.timed(quick); err != nil {
			t.Errorf("a write after it: %v", err)
		}
	})
}

// TestBadVolume: a marker that cannot be read ends the start with an error,
// another machine's is not resumed.
func TestBadVolume(t *testing.T) {
	for _, tc := range []struct {
		marker string
		ok     bool
	}{{`{"machine":"m1"`, false}, {`{"machine":"m1"}`, false}, {`{"machine":"other","boot":"b","epoch":3,"cluster":"3-b"}`, true}} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, markerFile), []byte(tc.marker), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(Options{
			Mesh: "mesh", Network: raftnet.New(0).Listen("m1:1"), Peers: noPeers{}, Logger: slog.New(slog.DiscardHandler), DataDir: dir,
			Self: Self{Machine: "m1", Boot: "b1", Addr: "m1:1", BootAt: time.Now(), Eligible: true},
		})
		if err != nil {
			t.Fatal(err)
		}
		s.ctx, s.cancel = t.Context(), func() {}
		if err := s.resume(); (err == nil) != tc.ok || s.member() != nil {
			t.Errorf("marker %s: %v", tc.marker, err)
		}
	}
}
