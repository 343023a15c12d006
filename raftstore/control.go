package raftstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"flymesh/raftstore/epoch"
)

const (
	controlEvery = 500 * time.Millisecond
	aliveWithin  = 3 * time.Second  // since the newest answer of a server that counts as alive
	fatesEvery   = 5 * time.Second  // between questions about silent servers
	changeLimit  = 2 * time.Second  // to enqueue a change
	behindLimit  = 10 * time.Second // a follower that does not move gets new connections
	slack        = 64               // entries that a caught-up follower may lack
)

// control is the voter controller of one leadership. Its loop makes one change
// of membership at a time.
type control struct {
	s    *Store
	l    *leadership
	kick chan struct{}

	mu      sync.Mutex // guards what follows
	heard   map[string]heard
	leaving map[string]time.Time // machine -> until
	written []epoch.Voter        // in the record by this leadership; nil: not yet
	writing bool                 // a write of the record is under way
	fewFrom time.Time            // since when eligible machines are too few; zero: they are not
	fatesAt time.Time
	proven  map[string]bool // server IDs
}

// heard is the newest that a server said of itself.
type heard struct {
	at    time.Time
	first time.Time
	last  uint64
	moved time.Time // when last changed
	voter epoch.Voter
}

func newControl(s *Store, l *leadership) *control {
	return &control{
		s: s, l: l, kick: make(chan struct{}, 1), heard: map[string]heard{},
		leaving: map[string]time.Time{}, proven: map[string]bool{},
	}
}

func (c *control) run() {
	ctx := c.l.Context
	t := time.NewTicker(controlEvery)
	defer t.Stop()
	for ctx.Err() == nil {
		made, err := c.round(ctx)
		if err != nil && ctx.Err() == nil {
			c.s.log.Warn("cannot change membership", "error", err)
		}
		if made && err == nil {
			continue
		}
		select {
		case <-t.C:
		case <-c.kick:
		case <-ctx.Done():
		}
	}
}

// round looks at every server and makes at most one change.
func (c *control) round(ctx context.Context) (bool, error) {
	conf, index := c.l.in.servers()
	r := c.survey(ctx, conf)
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	ch := r.next()
	if ch.kind == stepNone {
		if err := c.syncRecord(ctx, conf); err != nil {
			return false, err
		}
		return false, nil
	}
	if err := c.make(ctx, conf, index, ch); err != nil {
		return false, fmt.Errorf("%s server %s: %w", ch.kind, ch.id, err)
	}
	c.s.log.Info("membership changed", "change", string(ch.kind), "server", ch.id, "reason", ch.why)
	return true, nil
}

// make carries out one change. The record holds every server that may count
// for a majority before it does, so that no recovery overlooks one: a change
// of voters is recorded as pending first. Without that record no voter is
// added, and none removed from an even number, whose half would pass for lost.
func (c *control) make(ctx context.Context, conf raft.Configuration, index uint64, ch change) error {
	var target raft.Server
	voters := 0
	for _, srv := range conf.Servers {
		if srv.Suffrage == raft.Voter {
			voters++
		}
		if string(srv.ID) == ch.id {
			target = srv
		}
	}
	if ch.kind == stepPromote || ch.kind == stepRemove && target.Suffrage == raft.Voter {
		if err := c.record(ctx, conf, ch.id); err != nil && (ch.kind == stepPromote || voters%2 == 0) {
			return err
		}
	}
	rf := c.l.in.raft
	err := c.wait(ctx, func() error {
		switch ch.kind {
		case stepAdd:
			return rf.AddNonvoter(raft.ServerID(ch.id), addressOf(ch.addr, ch.id), index, changeLimit).Error()
		case stepPromote:
			return rf.AddVoter(target.ID, target.Address, index, changeLimit).Error()
		default:
			return rf.RemoveServer(target.ID, index, changeLimit).Error()
		}
	})
	if err != nil {
		return err
	}
	if ch.kind != stepAdd {
		conf, _ = c.l.in.servers()
		if err := c.syncRecord(ctx, conf); err != nil {
			c.s.log.Warn("epoch record is behind the voters", "error", err)
		}
	}
	return nil
}

func (c *control) wait(ctx context.Context, f func() error) error {
	select {
	case err := <-c.l.in.call(f):
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// survey asks every server, looks at gossip and, for the silent, at the arbiter.
func (c *control) survey(ctx context.Context, conf raft.Configuration) roster {
	s := c.s
	peers := map[string]Peer{}
	for _, p := range s.o.Peers.Peers() {
		peers[p.Machine] = p
	}
	var addrs []string
	inRaft := map[string]bool{}
	perApp := map[string]int{s.o.Self.App: 1}
	for _, srv := range conf.Servers {
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
	for _, p := range pool {
		addrs = append(addrs, p.Addr)
	}
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
	commit := c.l.in.raft.CommitIndex()
	r := roster{silentAfter: s.o.SilentAfter}
	var silent []epoch.Voter
	eligible := 0
	for _, srv := range conf.Servers {
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
			known && p.Alive && p.Boot != rootBoot(bootOf(id)) && p.BootAt.After(h.voter.BootAt) && !h.voter.BootAt.IsZero())
		if v.dead {
			v.alive = false
			c.proven[id] = true
		}
		v.leaving = c.leaving[v.machine].After(now) && !v.self
		v.caughtUp = v.alive && h.at.Equal(now) && h.last+slack >= commit
		if !v.alive && !v.dead {
			silent = append(silent, epoch.Voter{App: cmp.Or(h.voter.App, p.App), Machine: v.machine, Boot: bootOf(id), BootAt: h.voter.BootAt})
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
		if a, ok := said[p.Machine]; ok && a.Eligible && !a.Member {
			r.candidates = append(r.candidates, candidate{a.Server, p.Addr, p.Machine})
			eligible++
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
		h = heard{first: now, moved: now}
	}
	if a.Server == id {
		h.at = now
		if a.Last != h.last {
			h.last, h.moved = a.Last, now
		}
		h.voter = epoch.Voter{App: a.App, Machine: a.Machine, Boot: bootOf(id), BootAt: a.BootAt}
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
		if f.Dead() && (f != epoch.Rebooted || !v.BootAt.IsZero()) {
			c.proven[v.ID()] = true
		}
	}
	c.mu.Unlock()
	c.poke()
}

// pool lists the machines outside raft that may become servers, best first.
// Only the wide profile takes other regions than the leader's.
func (c *control) pool(peers map[string]Peer, inRaft map[string]bool, perApp map[string]int) []Peer {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	var l []Peer
	for _, p := range peers {
		if p.Alive && p.Eligible && !p.Burst && !inRaft[p.Machine] && !c.leaving[p.Machine].After(now) &&
			(p.Region == c.s.o.Self.Region || c.s.o.Profile == Wide) {
			l = append(l, p)
		}
	}
	l = rank(l, perApp)
	return l[:min(len(l), 8)]
}

func (c *control) poke() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// voters describes the voters for Status.
func (c *control) voters() []VoterStatus {
	conf, _ := c.l.in.servers()
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	var l []VoterStatus
	for _, srv := range conf.Servers {
		if srv.Suffrage == raft.Voter {
			id := string(srv.ID)
			h := c.heard[id]
			l = append(l, VoterStatus{
				Machine: machineOf(id), Boot: bootOf(id),
				Alive: id == c.l.in.server || now.Sub(h.at) <= aliveWithin,
			})
		}
	}
	return l
}

// removed removes a server on its own request and reports whether it is out.
func (c *control) removed(ctx context.Context, id string, limit time.Duration) bool {
	return c.remove(ctx, machineOf(id), limit, 10*time.Second) == nil
}

var errStays = errors.New("it is still a server")

// remove marks a machine as leaving and waits until raft does not hold it.
func (c *control) remove(ctx context.Context, machine string, limit, keepOut time.Duration) error {
	c.mu.Lock()
	c.leaving[machine] = time.Now().Add(keepOut)
	c.mu.Unlock()
	c.poke()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		conf, index := c.l.in.servers()
		in := index == 0
		for _, srv := range conf.Servers {
			in = in || machineOf(string(srv.ID)) == machine
		}
		if !in {
			return nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("remove server of %s: %w: %w", machine, errStays, ctx.Err())
		case <-c.l.Context.Done():
			return fmt.Errorf("remove server of %s: %w", machine, ErrNotLeader)
		}
	}
}
