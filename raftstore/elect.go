package raftstore

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// Raft waits a random one to two heartbeat timeouts for a leader that says
// nothing, so that voters do not ask for votes at once. Here they agree on an
// order instead, and then raft looks at its timer at the right moment.
//
// A leader whose process ended is replaced sooner than one that falls silent:
// its kernel ends its connections at once, and a voter that sees this calls the
// leader's address. That nobody listens there, or another incarnation, proves
// that this server leads no more. The voter then waits only for as long as the
// leader could still act on what this voter confirmed last.
//
// What is safe does not rest on the proof, which a firewall can forge, nor on
// the order. Raft goes by its usual rules: it looks again whether the leader
// has been silent for the lease, asks for pre-votes, and whoever still hears a
// leader refuses.

// callEvery is the pause between calls of a leader whose connection ended: its
// listener may outlive the connection by a moment.
const callEvery = 50 * time.Millisecond

// calm is how long a leader that is gone has to be silent before it is
// replaced: its lease, and at least the time in which it may act on an old
// confirmation.
func (p Profile) calm() time.Duration {
	_, lease, _ := p.timeouts()
	return max(lease, 2*verifyLimit)
}

// guardLeader looks into each end of a connection that another server opened,
// and into a silence of the leader shortly before it is as long as the
// heartbeat timeout.
func (s *Store) guardLeader(in *instance) {
	heartbeat, _, _ := s.o.Profile.timeouts()
	early := heartbeat - heartbeat/8 // leaves time to ask the other voters
	t := time.NewTimer(heartbeat)
	defer t.Stop()
	for {
		select {
		case server := <-in.stream.ended:
			s.leaderEnded(in, raft.ServerID(server), time.Now())
		case <-t.C:
			if heard := in.raft.LastContact(); time.Since(heard) >= early {
				s.leaderSilent(in, heard)
			}
		case <-in.done:
			return
		}
		t.Reset(max(early-time.Since(in.raft.LastContact()), heartbeat/4))
	}
}

// leaderEnded replaces a server whose connection ended if it was the leader and
// is gone.
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
	s.log.Info("leader is gone", "server", string(server), "reason", why)
	first, _ := s.electFirst(ctx, in, server)
	s.replace(in, server, calm, at, first)
}

// leaderSilent replaces a leader that this voter heard last at some time, if
// none of the others hears it.
func (s *Store) leaderSilent(in *instance, heard time.Time) {
	heartbeat, _, _ := s.o.Profile.timeouts()
	_, leader := in.raft.LeaderWithID()
	if leader == "" || leader == raft.ServerID(in.server) || roleOf(in) != Voter {
		return
	}
	ctx, cancel := context.WithDeadline(s.ctx, heard.Add(heartbeat))
	defer cancel()
	first, newest := s.electFirst(ctx, in, leader)
	if newest.Before(heard) {
		newest = heard // so that all count from one time
	}
	if time.Since(newest) < heartbeat/2 {
		return
	}
	s.replace(in, leader, heartbeat, newest, first)
}

// replace has raft look at its heartbeat timer once the leader has been silent
// for long enough since a time that all voters share, and those that go first
// have done so.
func (s *Store) replace(in *instance, was raft.ServerID, silence time.Duration, since time.Time, first int) {
	heartbeat, lease, _ := s.o.Profile.timeouts()
	select {
	case <-time.After(time.Until(since.Add(silence + time.Duration(first)*heartbeat/8))):
	case <-in.done:
		return
	}
	_, leader := in.raft.LeaderWithID()
	if leader != was || time.Since(in.raft.LastContact()) < silence {
		return
	}
	usual := in.raft.ReloadableConfig()
	early := usual
	early.HeartbeatTimeout, early.ElectionTimeout = lease, lease // no less passes for valid
	s.reload(in, early)
	defer s.reload(in, usual)
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for end := time.Now().Add(heartbeat); leader == was && time.Now().Before(end); _, leader = in.raft.LeaderWithID() {
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
// them. It also tells when one of them heard the leader last.
func (s *Store) electFirst(ctx context.Context, in *instance, leader raft.ServerID) (first int, heard time.Time) {
	var addrs []string
	voter := map[string]bool{}
	for _, srv := range in.servers() {
		if id := string(srv.ID); srv.Suffrage == raft.Voter && srv.ID != leader && id != in.server {
			voter[id] = true
			addrs = append(addrs, hostportOf(srv.Address))
		}
	}
	last := in.raft.LastIndex()
	for _, a := range s.askAll(ctx, addrs) {
		if !voter[a.Server] {
			continue
		}
		if a.Last < last || a.Last == last && a.Server < in.server {
			first++
		}
		if at := time.Now().Add(-time.Duration(a.LeaderAge) * time.Millisecond); a.LeaderAge >= 0 && at.After(heard) {
			heard = at
		}
	}
	return first, heard
}
