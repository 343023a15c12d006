package raftstore

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"

	"flymesh/raftstore/state"
)

// maxSnapshot bounds what Restore reads.
const maxSnapshot = 64 << 20

// fsm puts state.State under raft. It implements raft.ConfigurationStore
// because raft refuses snapshots of a plain FSM while membership entries are
// newer than the newest command.
type fsm struct {
	mu    sync.Mutex
	state *state.State
	copy  *state.State // of the newest view; nil when out of date
	conf  uint64       // index of the newest committed configuration; 0: not known
}

var (
	_ raft.FSM                = (*fsm)(nil)
	_ raft.ConfigurationStore = (*fsm)(nil)
)

func newFSM() *fsm { return &fsm{state: state.New()} }

// Apply implements raft.FSM.
func (f *fsm) Apply(l *raft.Log) any {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.copy = nil
	return f.state.Apply(l.Index, l.Data)
}

// StoreConfiguration implements raft.ConfigurationStore. Raft keeps the
// configuration, but does not tell its index: GetConfiguration's is always 0.
func (f *fsm) StoreConfiguration(index uint64, _ raft.Configuration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conf = index
}

// configuration returns the index of the newest committed configuration, 0 if
// a snapshot hides it.
func (f *fsm) configuration() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.conf
}

// view returns a copy, the same one until the state changes: read only.
func (f *fsm) view() *state.State {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.copy == nil {
		f.copy = f.state.Clone()
	}
	return f.copy
}

// Snapshot implements raft.FSM.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	b, err := f.view().Snapshot()
	if err != nil {
		return nil, fmt.Errorf("snapshot state: %w", err)
	}
	return snapshot(b), nil
}

// Restore implements raft.FSM. A snapshot that cannot be read changes nothing.
func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxSnapshot+1))
	if err != nil {
		return fmt.Errorf("restore state: %w", err)
	}
	if len(b) > maxSnapshot {
		return fmt.Errorf("restore state: snapshot of more than %d bytes", maxSnapshot)
	}
	st, err := state.Restore(b)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state, f.copy, f.conf = st, nil, 0
	return nil
}

type snapshot []byte

// Persist implements raft.FSMSnapshot.
func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := sink.Write(s); err != nil {
		return fmt.Errorf("persist snapshot: %w", errors.Join(err, sink.Cancel()))
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (s snapshot) Release() {}
