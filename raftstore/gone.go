package raftstore

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// A leader whose process ended is replaced sooner than one that falls silent:
// its kernel ends its connections at once, and a voter that sees this calls the
// leader's address. That nobody listens there, or another incarnation, proves
// that this server leads no more. The voter then waits for as long as the
// leader could still act on what this voter confirmed last, and has raft look
// at its heartbeat timer at once instead of at a random later time.
//
// What is safe does not rest on the proof, which a firewall can forge. Raft
// goes by its usual rules: it looks again whether the leader has been silent
// for the lease, asks for pre-votes, and whoever still hears a leader refuses.

// callEvery is the pause between calls of a leader whose connection ended: its
// listener may outlive the connection by a moment.
const callEvery = 50 * time.Millisecond

// calm is how long a leader has to be silent before it is replaced early: its
// lease, and at least the time in which it may act on an old confirmation.
func (p Profile) calm() time.Duration {
	_, lease, _ := p.timeouts()
	return max(lease, 2*verifyLimit)
}

// guardLeader looks into each end of a connection that another server opened.
func (s *Store) guardLeader(in *instance) {
	for {
		select {
		case server := <-in.stream.ended:
			s.leaderEnded(in, raft.ServerID(server), time.Now())
		case <-in.done:
			return
		}
	}
}

// leaderEnded elects early if a server whose connection ended was the leader
// and is gone.
func (s *Store) leaderEnded(in *instance, server raft.ServerID, at time.Time) {
	addr, leader := in.raft.LeaderWithID()
	if leader != server || roleOf(in) != Voter {
		return
	}
	calm := s.o.Profile.calm()
	ctx, cancel := context.WithDeadline(s.ctx, at.Add(calm))
	defer cancel()
	why := s.proveGone(ctx, in, hostportOf(addr), string(server))
	if why == "" {
		return
	}
	heartbeat, lease, _ := s.o.Profile.timeouts()
	first := s.electFirst(ctx, in, server)
	s.log.Info("leader is gone", "server", string(server), "reason", why, "voters_first", first)
	select {
	case <-time.After(time.Until(at.Add(calm + time.Duration(first)*heartbeat/8))):
	case <-in.done:
		return
	}
	if _, leader = in.raft.LeaderWithID(); leader != server || time.Since(in.raft.LastContact()) < calm {
		return
	}
	usual := in.raft.ReloadableConfig()
	early := usual
	early.HeartbeatTimeout, early.ElectionTimeout = lease, lease // no less passes for valid
	s.reload(in, early)
	defer s.reload(in, usual)
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for end := time.Now().Add(heartbeat); leader == server && time.Now().Before(end); _, leader = in.raft.LeaderWithID() {
		select {
		case <-t.C:
		case <-in.done:
			return
		}
	}
}

func (s *Store) reload(in *instance, c raft.ReloadableConfig) {
	if err := in.raft.ReloadConfig(c); err != nil {
		s.log.Error("cannot change raft's timeouts", "error", err)
	}
}

// proveGone calls a server and returns what proves that it is gone, empty if
// nothing does. Silence proves nothing.
func (s *Store) proveGone(ctx context.Context, in *instance, hostport, server string) string {
	for ctx.Err() == nil {
		c, err := s.dialRaft(ctx, in, hostport, server)
		switch {
		case err == nil:
			c.Close()
			return ""
		case errors.Is(err, syscall.ECONNREFUSED):
			return "nobody listens at its address"
		case errors.Is(err, otherTarget):
			return "another incarnation answers at its address"
		}
		select {
		case <-time.After(callEvery):
		case <-ctx.Done():
		}
	}
	return ""
}

// electFirst counts the voters that go first: those with less in their log, so
// that the last that asks for votes, whom the others no longer refuse, can get
// them. Asking one after the other avoids split votes.
func (s *Store) electFirst(ctx context.Context, in *instance, gone raft.ServerID) int {
	var addrs []string
	voter := map[string]bool{}
	for _, srv := range in.servers() {
		if id := string(srv.ID); srv.Suffrage == raft.Voter && srv.ID != gone && id != in.server {
			voter[id] = true
			addrs = append(addrs, hostportOf(srv.Address))
		}
	}
	last, n := in.raft.LastIndex(), 0
	for _, a := range s.askAll(ctx, addrs) {
		if voter[a.Server] && (a.Last < last || a.Last == last && a.Server < in.server) {
			n++
		}
	}
	return n
}
