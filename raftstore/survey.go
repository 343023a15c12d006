package raftstore

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"flymesh/raftstore/epoch"
)

// survey asks every server, looks at gossip and, for the silent, at the arbiter.
func (c *control) survey(ctx context.Context, servers []raft.Server) roster {
	s := c.s
	peers := map[string]Peer{}
	for _, p := range s.o.Peers.Peers() {
		peers[p.Machine] = p
	}
	var addrs []string
	inRaft := map[string]bool{}
	perApp := map[string]int{s.o.Self.App: 1}
	for _, srv := range servers {
		m := machineOf(string(srv.ID))
		inRaft[m] = true
		if string(srv.ID) != c.l.in.server {
			at := hostportOf(srv.Address)
			addrs = append(addrs, at)
			if p, ok := peers[m]; ok && p.Addr != at {
				addrs = append(addrs, p.Addr) // it moved, so it is another incarnation
			}
			perApp[peers[m].App]++
		}
	}
	pool := c.pool(peers, inRaft, perApp)
	if len(servers) < wantVoters(len(servers)+len(pool))+warmStandbys {
		for _, p := range pool {
			addrs = append(addrs, p.Addr)
		}
	}
	commit, added := c.l.in.raft.CommitIndex(), c.l.in.fsm.configuration()
	answers := s.askAll(ctx, addrs)
	said := map[string]sight{}
	for _, a := range answers {
		said[a.Machine] = a
	}
	for _, a := range answers {
		if a.Epoch > c.l.Epoch {
			s.suspect(c.l.in, a.Epoch, "a machine knows a newer epoch")
		}
	}
	now := time.Now()

	c.mu.Lock()
	defer c.mu.Unlock()
	r := roster{silentAfter: s.o.SilentAfter, going: s.isClosing()}
	var silent []epoch.Voter
	eligible := 0
	for _, srv := range servers {
		id := string(srv.ID)
		v := server{id: id, machine: machineOf(id), voter: srv.Suffrage == raft.Voter, self: id == c.l.in.server}
		h := c.hear(id, said[v.machine], now)
		v.alive = v.self || !h.at.IsZero() && now.Sub(h.at) <= aliveWithin
		v.silent = now.Sub(newest(h.at, h.first))
		if v.self {
			v.silent = 0
		}
		a, answered := said[v.machine]
		p, known := peers[v.machine]
		v.dead = !v.self && (c.proven[id] || answered && supersedes(a.Server, id) ||
			known && p.Alive && p.Boot != rootBoot(bootOf(id)) && p.BootAt.After(h.voter.BootAt) && !h.voter.BootAt.IsZero() && !h.voter.Durable)
		if v.dead {
			v.alive = false
			c.proven[id] = true
		}
		v.caughtUp = v.alive && h.at.Equal(now) && h.member && h.last >= added && h.last+slack >= commit
		if v.caughtUp || v.voter {
			h.fresh = now
			c.heard[id] = h
		} else if now.Sub(h.fresh) > s.o.SilentAfter {
			// A stand-by that does not follow takes the place of one that would.
			c.leaving[v.machine] = now.Add(demotedFor)
		}
		v.leaving = c.isLeaving(v.machine, bootOf(id), now) && !v.self
		if !v.alive && !v.dead {
			silent = append(silent, epoch.Voter{App: cmp.Or(h.voter.App, p.App), Machine: v.machine, Boot: bootOf(id), BootAt: h.voter.BootAt, Durable: h.voter.Durable})
		}
		if v.alive && !v.self && h.last+slack < commit && now.Sub(h.moved) > behindLimit {
			// A follower that answers but gets nothing: raft's own connections
			// to it hang (hashicorp/raft #612).
			s.log.Warn("follower does not move: new connections", "server", id)
			c.l.in.stream.recycle(id)
			h.moved = now
			c.heard[id] = h
		}
		if v.alive && !v.leaving {
			eligible++
		}
		r.servers = append(r.servers, v)
	}
	for _, p := range pool {
		a, ok := said[p.Machine]
		if ok && !a.Eligible {
			continue
		}
		eligible++
		if r.others++; ok && !a.Member {
			r.candidates = append(r.candidates, candidate{a.Server, p.Addr, p.Machine})
		}
	}
	voters := 0
	for _, v := range r.servers {
		if v.voter {
			voters++
		}
	}
	if wantVoters(eligible) >= voters {
		c.fewFrom = time.Time{}
	} else if c.fewFrom.IsZero() {
		c.fewFrom = now
	}
	if c.pending.Machine != "" {
		for _, v := range r.servers {
			h := c.heard[v.id]
			if v.voter && !v.self && v.alive && (!h.at.Equal(now) || h.last < c.pendingAt) {
				r.unsettled = true
			}
		}
		if !r.unsettled {
			c.pending = epoch.Voter{}
		}
	}
	r.shrink = !c.fewFrom.IsZero() && now.Sub(c.fewFrom) >= s.o.ShrinkAfter
	if len(silent) > 0 && s.o.Arbiter != nil && now.Sub(c.fatesAt) >= fatesEvery {
		c.fatesAt = now
		s.goDo(func() { c.inquire(ctx, silent) })
	}
	return r
}

// hear takes in an answer; the caller holds mu.
func (c *control) hear(id string, a sight, now time.Time) heard {
	h, ok := c.heard[id]
	if !ok {
		h = heard{first: now, fresh: now, moved: now}
	}
	if h.voter.Machine == "" {
		h.voter = c.recorded[id]
	}
	if a.Server == id {
		h.at, h.member = now, a.Member && a.Cluster == c.l.in.cluster
		if a.Last != h.last {
			h.last, h.moved = a.Last, now
		}
		h.voter = epoch.Voter{App: a.App, Machine: a.Machine, Boot: bootOf(id), BootAt: a.BootAt, Durable: a.Durable}
	}
	c.heard[id] = h
	return h
}

func newest(t ...time.Time) time.Time { return slices.MaxFunc(t, time.Time.Compare) }

// inquire asks the arbiter what became of silent servers.
func (c *control) inquire(ctx context.Context, silent []epoch.Voter) {
	ctx, cancel := context.WithTimeout(ctx, 2*c.s.o.ReadTimeout)
	defer cancel()
	fates, err := c.s.o.Arbiter.Fates(ctx, silent)
	if err != nil {
		if c.l.Context.Err() == nil {
			c.s.log.Warn("cannot read the fates of silent servers", "error", err)
		}
		return
	}
	c.mu.Lock()
	for _, v := range silent {
		// Without the time of its boot a start event proves nothing.
		f := fates[v.Machine]
		if v.Ended(f) && (f != epoch.Rebooted || !v.BootAt.IsZero()) {
			c.proven[v.ID()] = true
		}
	}
	c.mu.Unlock()
	c.poke()
}

// fits reports whether a machine may be a server. Only the wide profile takes
// other regions than the leader's.
func (c *control) fits(p Peer) bool {
	return p.Alive && p.Eligible && !p.Burst && (p.Region == c.s.o.Self.Region || c.s.o.Profile == Wide)
}

// pool lists the machines outside raft that may become servers, best first.
func (c *control) pool(peers map[string]Peer, inRaft map[string]bool, perApp map[string]int) []Peer {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	var l []Peer
	for _, p := range peers {
		if p.BootAt.After(c.leaving[p.Machine].Add(-demotedFor)) {
			delete(c.leaving, p.Machine) // what was to be stopped was stopped, and began anew
		}
		if c.fits(p) && !inRaft[p.Machine] && !c.isLeaving(p.Machine, p.Boot, now) {
			l = append(l, p)
		}
	}
	l = rank(l, perApp)
	return l[:min(len(l), 8)]
}
