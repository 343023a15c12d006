package raftstore

import (
	"strings"
	"time"

	"github.com/hashicorp/raft"
)

// sighting is the newest leader that this machine knows of.
type sighting struct {
	machine, server, addr string
	epoch, term           uint64
	cluster               string
	since                 time.Time
	voters                []VoterStatus
	at                    time.Time // when it was last known to lead
}

// How often a machine that raft does not tell looks for the leader.
const (
	watchEvery     = time.Second     // without a leader, where this machine may have to found
	watchEveryOK   = 2 * time.Second // with one
	watchEveryElse = 5 * time.Second // where it may not
	// watchCalm is how long such a machine takes the leader's word for while
	// gossip sees that boot of it alive in that epoch: a fleet that asked more
	// often would cost the leader more than all its followers do. Who asks one
	// that has handed over is sent on.
	watchCalm = 20 * time.Second
)

// watch keeps track of who leads.
func (s *Store) watch() {
	period := watchEveryElse
	if s.o.Self.Eligible {
		period = watchEvery
	}
	var good time.Time // when a leader outside was last seen
	s.every(s.ctx, period, func() {
		quiet := time.Since(good)
		if s.member() == nil && quiet < watchEveryOK-watchEvery/2 {
			return
		}
		if !s.o.Self.Eligible && quiet < watchCalm-period/2 && s.leaderLives() {
			return
		}
		if good = (time.Time{}); s.look() {
			good = time.Now()
		}
	})
}

// leaderLives reports whether gossip sees the leader that was known last alive
// and in the same epoch, and notes that.
func (s *Store) leaderLives() bool {
	s.mu.Lock()
	known := s.leader
	s.mu.Unlock()
	for _, p := range s.o.Peers.Peers() {
		if p.Alive && p.Machine == known.machine && p.Boot == rootBoot(bootOf(known.server)) && p.Epoch == known.epoch {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.leader.server == known.server {
				s.leader.at = time.Now()
			}
			return true
		}
	}
	return false
}

// look finds the leader: raft knows in a cluster, else the leader known last is
// asked, and if it leads no more, everybody. It reports whether one leads.
func (s *Store) look() bool {
	if s.leading() != nil {
		s.mu.Lock()
		s.quietAt = time.Now()
		s.mu.Unlock()
		return true
	}
	in := s.member()
	if in != nil && s.followsIn(in) {
		return true
	}
	s.mu.Lock()
	last := s.leader.addr
	s.mu.Unlock()
	if last != "" {
		if a, err := s.asker.ask(s.ctx, last); err == nil && s.note(a) {
			return true
		}
	}
	found := false
	for _, a := range s.askAll(s.ctx, s.livingAddrs()) {
		found = s.note(a) || found
	}
	return found
}

// followsIn notes the leader that raft knows, if it does.
func (s *Store) followsIn(in *instance) bool {
	addr, id := in.raft.LeaderWithID()
	if id == "" || string(id) == in.server {
		return false
	}
	contact := in.raft.LastContact()
	s.mu.Lock()
	defer s.mu.Unlock()
	if contact.After(s.quietAt) {
		s.quietAt = contact
	}
	was := s.leader
	s.leader = sighting{
		machine: machineOf(string(id)), server: string(id), addr: hostportOf(addr), epoch: in.epoch,
		term: in.raft.CurrentTerm(), cluster: in.cluster, since: was.since, at: contact,
	}
	if was.server != string(id) || was.term != s.leader.term || was.cluster != in.cluster {
		s.leader.since = time.Now()
	}
	return true
}

// note takes in what another machine says and reports whether it leads.
func (s *Store) note(a sight) bool {
	in := s.member()
	if in != nil && a.Epoch > in.epoch {
		s.suspect(in, a.Epoch, "a machine knows a newer epoch")
	}
	if in != nil && a.Leading && a.Cluster == in.cluster && time.Since(in.since) > 2*time.Second {
		listed := false
		for _, id := range a.Servers {
			listed = listed || id == in.server
		}
		if !listed {
			s.drop(s.ctx, in, "the leader has removed this server")
		}
	}
	s.mu.Lock()
	if a.Epoch < s.maxEpoch {
		s.mu.Unlock()
		return false
	}
	heard := time.Now().Add(-time.Duration(a.LeaderAge) * time.Millisecond)
	if a.Member && a.LeaderAge >= 0 && heard.After(s.quietAt) {
		s.quietAt = heard
	}
	if a.Leading {
		s.leader = sighting{
			machine: a.Machine, server: a.Server, addr: a.LeaderAddr, epoch: a.Epoch, term: a.Term,
			cluster: a.Cluster, since: a.Since, voters: a.Voters, at: time.Now(),
		}
	}
	s.mu.Unlock()
	// Only who leads names the mesh: of two clusters of one epoch, that one
	// which the record named can have found a majority and followers.
	if a.Leading && in == nil {
		s.know(a.Epoch, a.Cluster)
	}
	return a.Leading
}

// livingAddrs lists the machines that can be members, as far as gossip knows.
func (s *Store) livingAddrs() []string {
	var l []string
	for _, p := range s.o.Peers.Peers() {
		if p.Alive && p.Eligible && len(l) < maxAskers {
			l = append(l, p.Addr)
		}
	}
	return l
}

func machineOf(server string) string {
	m, _, _ := strings.Cut(server, ".")
	return m
}

func bootOf(server string) string {
	_, b, _ := strings.Cut(server, ".")
	return b
}

// rootBoot is the agent's boot ID in an incarnation's.
func rootBoot(boot string) string {
	b, _, _ := strings.Cut(boot, ".")
	return b
}

func hostportOf(a raft.ServerAddress) string {
	hp, _, _ := strings.Cut(string(a), "|")
	return hp
}
