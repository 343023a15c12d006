package raftstore

import (
	"context"
	"time"

	"flymesh/raftstore/epoch"
)

// A leader that dies within a change of voters can leave living voters that
// never elect: hashicorp/raft refuses a vote to a server that the voter does
// not know as a voter yet (or any more), although the server's own, newer
// configuration says so. If all the living agree that nobody leads, they give
// up their raft state on request, which is then the proof that a recovery needs.

// wedged reports whether a member has been without a leader for long enough to
// give up its raft state.
func (s *Store) wedged(in *instance) bool {
	_, id := in.raft.LeaderWithID()
	return id == "" && s.leading() == nil && s.quietFor() >= s.o.RecoverAfter
}

// resign asks the living voters of the record to give up, if every one of them
// answers that it has no leader. One that does not answer forbids it: it may
// be a majority with others that this machine does not reach.
func (s *Store) resign(ctx context.Context, r epoch.Record, living []epoch.Voter) {
	ctx, cancel := context.WithTimeout(ctx, 4*handshakeTimeout)
	defer cancel()
	addrs := map[string]string{}
	for _, p := range s.o.Peers.Peers() {
		addrs[p.Machine] = p.Addr
	}
	in := s.member()
	for _, v := range living {
		if in != nil && in.server == v.ID() {
			if !s.wedged(in) {
				return
			}
			continue
		}
		a, err := s.asker.ask(ctx, addrs[v.Machine])
		if err != nil || a.Server != v.ID() || a.Leading || a.LeaderAge >= 0 {
			return
		}
	}
	s.log.Warn("no leader is possible: asking the living voters to give up", "epoch", r.Epoch, "voters", len(living))
	for _, v := range living {
		if in != nil && in.server == v.ID() {
			continue
		}
		octx, cancel := context.WithTimeout(ctx, handshakeTimeout+time.Second)
		err := s.order(octx, addrs[v.Machine], request{kind: kindResign, epoch: r.Epoch, cluster: r.Cluster, target: v.ID(), own: s.selfNow().ID()})
		cancel()
		if err != nil {
			s.log.Info("a voter did not resign", "server", v.ID(), "error", err)
			return
		}
	}
	if in != nil && in.cluster == r.Cluster {
		for _, v := range living {
			if v.ID() == in.server {
				s.drop(ctx, in, "resigned: the living voters differ in who may vote")
			}
		}
	}
}
