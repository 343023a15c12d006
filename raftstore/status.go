package raftstore

import (
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"flymesh/raftstore/state"
)

// Role is this machine's part in raft.
type Role string

// The roles.
const (
	Leader    Role = "leader"
	Voter     Role = "voter"
	Nonvoter  Role = "nonvoter"
	Candidate Role = "candidate" // a voter that looks for votes
	None      Role = "none"      // in gossip only
)

// VoterStatus is one voter of the mesh.
type VoterStatus struct {
	Machine string `json:"machine"`
	Boot    string `json:"boot"`
	Alive   bool   `json:"alive"`
}

// Status is what this machine knows of the mesh's agreement.
type Status struct {
	Server        string // this machine's raft server ID, or the one that it would join with
	Epoch         uint64
	Cluster       string
	Term          uint64
	Leader        string // machine; empty if none is known
	LeaderAddr    string // host:port of its mesh port
	Voters        []VoterStatus
	Role          Role
	Healthy       bool // a leader is known and a majority of the voters is alive
	LeaderSince   time.Time
	NoLeaderSince time.Time // zero while a leader is known
	Reason        string    // without a leader: why this machine does not found
}

// Status describes the mesh as this machine knows it.
func (s *Store) Status() Status {
	in, l := s.member(), s.leading()
	known, fresh := s.newestLeader(in, l)
	s.mu.Lock()
	st := Status{Server: s.incarnation(s.lives).ID(), Epoch: s.seen.Epoch, Cluster: s.seen.Cluster, Role: None, Reason: s.reason}
	quiet := s.quietAt
	s.mu.Unlock()

	if in != nil {
		st.Epoch, st.Cluster, st.Term = in.epoch, in.cluster, in.raft.CurrentTerm()
		st.Role = roleOf(in)
		st.Voters = s.votersOf(in)
	}
	switch {
	case l != nil && l.in == in:
		st.Role, st.Leader, st.LeaderAddr = Leader, s.o.Self.Machine, s.o.Self.Addr
		st.LeaderSince, st.Voters = l.since, l.control.voters()
	case fresh:
		st.Leader, st.LeaderAddr, st.LeaderSince = known.machine, known.addr, known.since
		if in == nil {
			st.Term, st.Voters = known.term, slices.Clone(known.voters)
		}
	default:
		st.NoLeaderSince = quiet
		if in == nil && known.cluster == st.Cluster {
			st.Voters = slices.Clone(known.voters)
		}
	}
	if st.Leader != "" {
		st.Reason = ""
	}
	alive := 0
	for _, v := range st.Voters {
		if v.Alive {
			alive++
		}
	}
	st.Healthy = st.Leader != "" && 2*alive > len(st.Voters)
	return st
}

// newestLeader returns the leader that was known last, and whether it can be
// taken to lead still.
func (s *Store) newestLeader(in *instance, l *leadership) (sighting, bool) {
	fresh := 2 * watchEveryElse // what a machine outside raft knows is as old as its newest question
	cluster := ""
	switch {
	case in != nil:
		if l == nil {
			s.followsIn(in) // raft may know of a newer election than the watch
		}
		heartbeat, _, _ := s.o.Profile.timeouts()
		fresh, cluster = 3*heartbeat, in.cluster
	case s.o.Self.Eligible:
		fresh = 2 * watchEveryOK
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if in == nil {
		cluster = s.seen.Cluster
	}
	known := s.leader
	return known, known.machine != "" && known.cluster == cluster && time.Since(known.at) <= fresh && known.machine != s.o.Self.Machine
}

// LeaderKnown reports whether somebody leads the mesh as far as this machine
// knows. It costs less than Status.
func (s *Store) LeaderKnown() bool {
	in, l := s.member(), s.leading()
	if l != nil && l.in == in {
		return true
	}
	_, fresh := s.newestLeader(in, l)
	return fresh
}

// Role returns this machine's part in raft. It costs less than Status.
func (s *Store) Role() Role {
	in, l := s.member(), s.leading()
	switch {
	case in == nil:
		return None
	case l != nil && l.in == in:
		return Leader
	}
	return roleOf(in)
}

func roleOf(in *instance) Role {
	if in.raft.State() == raft.Candidate {
		return Candidate
	}
	for _, srv := range in.servers() {
		if string(srv.ID) == in.server && srv.Suffrage == raft.Voter {
			return Voter
		}
	}
	return Nonvoter
}

// votersOf describes the voters as a follower knows them: alive by gossip.
func (s *Store) votersOf(in *instance) []VoterStatus {
	alive := map[string]bool{s.o.Self.Machine + "." + rootBoot(bootOf(in.server)): true}
	running := map[string]bool{s.o.Self.Machine: true}
	for _, p := range s.o.Peers.Peers() {
		if p.Alive {
			alive[p.Machine+"."+p.Boot], running[p.Machine] = true, true
		}
	}
	durable := s.o.DataDir != "" // then other boots may be the same server
	var l []VoterStatus
	for _, srv := range in.servers() {
		if srv.Suffrage == raft.Voter {
			id := string(srv.ID)
			m, b := machineOf(id), bootOf(id)
			l = append(l, VoterStatus{Machine: m, Boot: b, Alive: alive[m+"."+rootBoot(b)] || durable && running[m]})
		}
	}
	return l
}

// State returns the newest state that this machine has applied; read only, as
// callers share it. A follower is up to 1 s behind its leader; a machine
// outside raft has the empty state, and asks the leader.
func (s *Store) State() *state.State {
	in := s.member()
	if in == nil {
		return state.New()
	}
	v := in.fsm.view()
	s.mu.Lock()
	defer s.mu.Unlock()
	// A raft that restarted in place applies its log again.
	if s.lastOf == in.cluster && s.last != nil && s.last.Index > v.Index {
		return s.last
	}
	s.last, s.lastOf = v, in.cluster
	return v
}
