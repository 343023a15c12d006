package raftstore

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"
)

const (
	transferTimeout = time.Second
	leaveTimeout    = time.Second
	demoteTimeout   = 15 * time.Second
	demotedFor      = 5 * time.Minute // a demoted machine is not chosen again so soon
)

// MayStop tells the autoscaler whether stopping a machine costs the mesh no
// voter: nil, or an error that wraps ErrVoter (Demote it first) or ErrNotLeader.
func (s *Store) MayStop(machine string) error {
	l := s.leading()
	if l == nil {
		return fmt.Errorf("may stop %s: %w", machine, ErrNotLeader)
	}
	for _, srv := range l.in.servers() {
		if machineOf(string(srv.ID)) == machine && srv.Suffrage == raft.Voter {
			return fmt.Errorf("may stop %s: %w", machine, ErrVoter)
		}
	}
	return nil
}

// Demote removes a machine's server from raft, when the others can do without
// it, and does not choose it again for 5 minutes, or before it has booted anew.
// The leader cannot demote itself.
func (s *Store) Demote(ctx context.Context, machine string) error {
	l := s.leading()
	if l == nil {
		return fmt.Errorf("demote %s: %w", machine, ErrNotLeader)
	}
	if machine == s.o.Self.Machine {
		return fmt.Errorf("demote %s: %w: it leads", machine, ErrVoter)
	}
	if err := l.control.remove(ctx, machine, demoteTimeout, demotedFor); err != nil {
		return fmt.Errorf("demote: %w", err)
	}
	return nil
}

// Transfer hands leadership to another voter. It is for the way out: in a
// process that goes on, a failed transfer can leave a leader that refuses
// every write (hashicorp/raft #696), so raft is restarted if it fails.
func (s *Store) Transfer(ctx context.Context) error {
	l := s.leading()
	if l == nil {
		return fmt.Errorf("transfer leadership: %w", ErrNotLeader)
	}
	if err := s.transfer(ctx, l); err != nil {
		s.restart(s.ctx, l.in, "a leadership transfer failed")
		return fmt.Errorf("transfer leadership: %w", err)
	}
	return nil
}

func (s *Store) transfer(ctx context.Context, l *leadership) error {
	ctx, cancel := context.WithTimeout(ctx, transferTimeout)
	defer cancel()
	s.endLeadership(l.in) // before another can lead
	select {
	case err := <-l.in.call(func() error { return l.in.raft.LeadershipTransfer().Error() }):
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// leave hands over and asks the leader to remove this server, as far as that
// is possible in the time that a machine has to stop.
func (s *Store) leave() {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	in := s.member()
	if in == nil {
		return
	}
	servers := in.servers()
	if len(servers) < 2 {
		return
	}
	if l := s.leading(); l != nil {
		if !s.successor(l) {
			return
		}
		if err := s.transfer(s.ctx, l); err != nil {
			s.log.Warn("cannot hand over leadership", "error", err)
			return
		}
	}
	if s.o.DataDir != "" {
		return // it comes back as the same server
	}
	ctx, cancel := context.WithTimeout(s.ctx, leaveTimeout)
	defer cancel()
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for {
		addr, id := in.raft.LeaderWithID()
		if id != "" && string(id) != in.server {
			if s.askToRemove(ctx, in, hostportOf(addr), string(id)) == nil {
				s.log.Info("left the cluster", "leader", string(id))
				return
			}
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			s.log.Info("left without being removed")
			return
		}
	}
}

func (s *Store) askToRemove(ctx context.Context, in *instance, hostport, leader string) error {
	return s.order(ctx, hostport, request{kind: kindLeave, epoch: in.epoch, cluster: in.cluster, target: leader, own: in.server})
}

// successor waits, where the leader is the only voter, until a stand-by is
// another, and reports whether there is one.
func (s *Store) successor(l *leadership) bool {
	l.control.poke()
	end := time.NewTimer(leaveTimeout)
	defer end.Stop()
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for {
		voters, servers := 0, l.in.servers()
		for _, srv := range servers {
			if srv.Suffrage == raft.Voter {
				voters++
			}
		}
		switch {
		case voters == len(servers) && voters < 2:
			return false
		case voters >= 2:
			return true
		}
		select {
		case <-t.C:
		case <-end.C:
			return false
		case <-l.Context.Done():
			return false
		}
	}
}

// order makes a request and waits until it is carried out.
func (s *Store) order(ctx context.Context, hostport string, r request) error {
	c, err := s.dial(ctx, hostport, r)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err = io.ReadFull(c, make([]byte, 1))
	return err
}
