package raftstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// instance is one running raft server. Restarted in place it hands its stores
// to its successor.
type instance struct {
	server  string // server ID
	epoch   uint64
	cluster string
	stores  *stores

	since  time.Time
	fsm    *fsm
	raft   *raft.Raft
	stream *stream
	done   chan struct{} // closed when it stops

	mu        sync.Mutex // guards the next two; no call starts after the wait for calls
	stopping  bool
	suspected bool // a sign of a newer epoch is being looked into
	calls     sync.WaitGroup
}

var errStopping = errors.New("raft is stopping")

// call runs one call of raft that may wait; the answer comes once.
func (in *instance) call(f func() error) <-chan error {
	answer := make(chan error, 1)
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.stopping {
		answer <- errStopping
		return answer
	}
	in.calls.Add(1)
	go func() {
		defer in.calls.Done()
		answer <- f()
	}()
	return answer
}

func (in *instance) start(s *Store, bootstrap bool) error {
	heartbeat, lease, err := s.o.Profile.timeouts()
	if err != nil {
		return err
	}
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(in.server)
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = heartbeat, heartbeat, lease
	// Halves the idle leader's CPU; followers learn of a commit up to 1 s
	// later when nothing else is written, the leader's commits are not slower.
	c.CommitTimeout = 500 * time.Millisecond
	c.SnapshotThreshold, c.SnapshotInterval, c.TrailingLogs = 512, 30*time.Second, 1024
	c.ShutdownOnRemove = false
	c.NoLegacyTelemetry = true
	c.Logger = raftLogger(s.log)

	in.since = time.Now()
	in.done = make(chan struct{})
	in.fsm = newFSM()
	addr := addressOf(s.o.Self.Addr, in.server)
	in.stream = newStream(addr, func(ctx context.Context, hostport, server string) (net.Conn, error) {
		return s.dialRaft(ctx, in, hostport, server)
	})
	if in.stores.wal != nil {
		var once sync.Once
		in.stores.wal.stuck = func() {
			once.Do(func() { s.goDo(func() { s.restart(s.ctx, in, "a disk write takes longer than 5 s") }) })
		}
	}
	trans := newTransport(in.stream, c.Logger)
	if bootstrap {
		conf := raft.Configuration{Servers: []raft.Server{{ID: c.LocalID, Address: addr}}}
		if err := raft.BootstrapCluster(c, in.stores.logs, in.stores.stable, in.stores.snaps, trans, conf); err != nil {
			trans.Close()
			return fmt.Errorf("bootstrap raft: %w", err)
		}
	}
	if in.raft, err = raft.NewRaft(c, in.fsm, in.stores.logs, in.stores.stable, in.stores.snaps, trans); err != nil {
		trans.Close()
		return fmt.Errorf("start raft: %w", err)
	}
	return nil
}

// stop ends raft and all its connections, and waits for it. Calls end first:
// raft leaves some unanswered that are queued when it shuts down, and a leader
// without connections steps down within its lease.
// It reports false if raft did not end: then its stores are still in use.
func (in *instance) stop() bool {
	in.mu.Lock()
	in.stopping = true
	in.mu.Unlock()
	close(in.done)
	in.stream.Close()
	idle := make(chan struct{})
	go func() {
		in.calls.Wait()
		close(idle)
	}()
	select {
	case <-idle:
	case <-time.After(stopTimeout):
	}
	ended := make(chan struct{})
	go func() {
		in.raft.Shutdown().Error()
		close(ended)
	}()
	select {
	case <-ended:
		return true
	case <-time.After(2 * stopTimeout):
		return false
	}
}

// stopTimeout is longer than any lease; a raft that is stuck leaves calls behind.
const stopTimeout = 2 * time.Second

// servers returns the newest configuration, committed or not.
func (in *instance) servers() []raft.Server {
	return in.raft.GetConfiguration().Configuration().Servers
}
