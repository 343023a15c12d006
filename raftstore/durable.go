package raftstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
)

const (
	segmentSize   = 2 << 20 // raft-wal allocates a segment as a whole
	writeTimeout  = 5 * time.Second
	keptSnapshots = 2
	markerFile    = "server.json"
)

// stores is what a raft server must not forget while it keeps its ID.
type stores struct {
	logs   raft.LogStore
	stable raft.StableStore
	snaps  raft.SnapshotStore
	wal    *timedLog // nil in memory
}

func (st *stores) close() error {
	if st.wal == nil {
		return nil
	}
	return st.wal.WAL.Close()
}

// marker says whose log a data directory holds. Without it the directory is blank.
type marker struct {
	Machine string `json:"machine"`
	Boot    string `json:"boot"` // of the server ID
	Epoch   uint64 `json:"epoch"`
	Cluster string `json:"cluster"`
}

// blankStores returns the stores of a new server; on a volume whatever an
// older one left is removed first.
func (s *Store) blankStores(server string, epoch uint64, cluster string) (*stores, error) {
	if s.o.DataDir == "" {
		mem := raft.NewInmemStore()
		return &stores{logs: mem, stable: mem, snaps: raft.NewInmemSnapshotStore()}, nil
	}
	if err := s.wipe(); err != nil {
		return nil, err
	}
	st, err := s.openStores()
	if err != nil {
		return nil, err
	}
	m := marker{machineOf(server), bootOf(server), epoch, cluster}
	if err := writeMarker(filepath.Join(s.o.DataDir, markerFile), m); err != nil {
		return nil, errors.Join(err, st.close())
	}
	return st, nil
}

// wipe makes the data directory blank: the marker goes first, so that no crash
// leaves one beside a log that lost something.
func (s *Store) wipe() error {
	if s.o.DataDir == "" {
		return nil
	}
	for _, name := range []string{markerFile, "wal", "snapshots"} {
		if err := os.RemoveAll(filepath.Join(s.o.DataDir, name)); err != nil {
			return fmt.Errorf("wipe data directory: %w", err)
		}
	}
	return syncDir(s.o.DataDir)
}

func (s *Store) openStores() (*stores, error) {
	dir := filepath.Join(s.o.DataDir, "wal")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	w, err := wal.Open(dir, wal.WithSegmentSize(segmentSize), wal.WithLogger(hclog.NewNullLogger()))
	if err != nil {
		return nil, fmt.Errorf("open write-ahead log: %w", err)
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(s.o.DataDir, keptSnapshots, hclog.NewNullLogger())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open snapshots: %w", err), w.Close())
	}
	t := &timedLog{WAL: w, turn: make(chan struct{}, 1), limit: writeTimeout}
	return &stores{logs: t, stable: t, snaps: snaps, wal: t}, nil
}

// resume goes on as the server whose log the data directory holds, if it does.
func (s *Store) resume() error {
	if s.o.DataDir == "" {
		return nil
	}
	if err := os.MkdirAll(s.o.DataDir, 0o700); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	b, err := os.ReadFile(filepath.Join(s.o.DataDir, markerFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	var m marker
	if err := json.Unmarshal(b, &m); err != nil || m.Boot == "" || m.Cluster == "" {
		return fmt.Errorf("resume: marker in %s cannot be read: %w", s.o.DataDir, err)
	}
	if m.Machine != s.o.Self.Machine {
		s.log.Warn("the data directory is another machine's: starting blank", "machine", m.Machine)
		return nil
	}
	st, err := s.openStores()
	if err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	s.mu.Lock()
	s.resumed = m.Boot
	s.mu.Unlock()
	in := &instance{server: m.Machine + "." + m.Boot, epoch: m.Epoch, cluster: m.Cluster, stores: st}
	if _, err := s.start(in, false); err != nil {
		return errors.Join(fmt.Errorf("resume: %w", err), st.close())
	}
	s.log.Info("resumed on the volume's log", "server", in.server, "epoch", in.epoch)
	return nil
}

func writeMarker(path string, m marker) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("write marker: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), markerFile)
	if err != nil {
		return fmt.Errorf("write marker: %w", err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write marker: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}

var errSlowDisk = errors.New("disk write takes too long")

// timedLog gives up on writes that hang: a stalled disk would keep a leader
// that commits nothing and still sends heartbeats (hashicorp/raft #503). The
// write itself goes on; no other starts before it has ended.
type timedLog struct {
	*wal.WAL
	turn  chan struct{} // held through a write
	limit time.Duration
	stuck func() // called for each write that is given up
}

var (
	_ raft.LogStore    = (*timedLog)(nil)
	_ raft.StableStore = (*timedLog)(nil)
)

func (t *timedLog) timed(write func() error) error {
	timer := time.NewTimer(t.limit)
	defer timer.Stop()
	select {
	case t.turn <- struct{}{}:
	case <-timer.C:
		return errSlowDisk
	}
	done := make(chan error, 1)
	go func() {
		err := write()
		<-t.turn
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		if t.stuck != nil {
			t.stuck()
		}
		return errSlowDisk
	}
}

// StoreLog implements raft.LogStore.
func (t *timedLog) StoreLog(l *raft.Log) error {
	return t.timed(func() error { return t.WAL.StoreLog(l) })
}

// StoreLogs implements raft.LogStore.
func (t *timedLog) StoreLogs(l []*raft.Log) error {
	return t.timed(func() error { return t.WAL.StoreLogs(l) })
}

// DeleteRange implements raft.LogStore.
func (t *timedLog) DeleteRange(lo, hi uint64) error {
	return t.timed(func() error { return t.WAL.DeleteRange(lo, hi) })
}

// Set implements raft.StableStore.
func (t *timedLog) Set(k, v []byte) error {
	return t.timed(func() error { return t.WAL.Set(k, v) })
}

// SetUint64 implements raft.StableStore.
func (t *timedLog) SetUint64(k []byte, v uint64) error {
	return t.timed(func() error { return t.WAL.SetUint64(k, v) })
}
