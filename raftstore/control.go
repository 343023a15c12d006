package raftstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"flymesh/raftstore/epoch"
)

const (
	controlEvery = 500 * time.Millisecond
	settleEvery  = 50 * time.Millisecond
	surveyEvery  = 2 * time.Second  // while nothing has to change
	aliveWithin  = 5 * time.Second  // since the newest answer of a server that counts as alive
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

	mu       sync.Mutex // guards what follows
	heard    map[string]heard
	leaving  map[string]time.Time   // machine, or machine.boot, -> until
	recorded map[string]epoch.Voter // by server ID, as the record had them when this leadership began
	// pending is the voter whose change may not have reached every living
	// voter; pendingAt is the log index at which it has.
	pending   epoch.Voter
	pendingAt uint64
	taken     bool          // takeOver has read the record; only the loop uses it
	written   []epoch.Voter // in the record by this leadership; nil: not yet
	writing   bool          // a write of the record is under way
	fewFrom   time.Time     // since when eligible machines are too few; zero: they are not
	fatesAt   time.Time
	proven    map[string]bool // server IDs
}

// heard is the newest that a server said of itself.
type heard struct {
	at     time.Time
	first  time.Time // when this leadership first looked for it
	fresh  time.Time // when it was last caught up
	last   uint64
	moved  time.Time // when last changed
	member bool      // of this cluster
	voter  epoch.Voter
}

func newControl(s *Store, l *leadership) *control {
	return &control{
		s: s, l: l, kick: make(chan struct{}, 1), heard: map[string]heard{},
		leaving: map[string]time.Time{}, proven: map[string]bool{}, recorded: map[string]epoch.Voter{},
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
		if c.isPending() && err == nil {
			select {
			case <-time.After(settleEvery):
			case <-ctx.Done():
			}
			continue
		}
		for idle := controlEvery; ; idle += controlEvery {
			select {
			case <-t.C:
				if idle < surveyEvery && err == nil && c.quiet() {
					continue
				}
			case <-c.kick:
			case <-ctx.Done():
			}
			break
		}
	}
}

// quiet reports whether gossip shows nothing that a round would act on: every
// server of raft lives as the incarnation that raft knows, and none is wanted.
func (c *control) quiet() bool {
	servers := c.l.in.servers()
	boots := map[string]string{}
	c.mu.Lock()
	known := maps.Clone(c.heard)
	c.mu.Unlock()
	eligible := 1
	for _, p := range c.s.o.Peers.Peers() {
		if p.Alive {
			boots[p.Machine] = p.Boot
			if c.fits(p) {
				eligible++
			}
		}
	}
	voters := 0
	for _, srv := range servers {
		id := string(srv.ID)
		if srv.Suffrage == raft.Voter {
			voters++
		}
		boot, alive := boots[machineOf(id)]
		if id != c.l.in.server && (!alive || boot != rootBoot(bootOf(id)) && !known[id].voter.Durable) {
			return false
		}
	}
	return voters == wantVoters(eligible) && len(servers) >= min(eligible, wantVoters(eligible)+warmStandbys)
}

// round looks at every server and makes at most one change.
func (c *control) round(ctx context.Context) (bool, error) {
	// Read the index first: if it is older than the servers, raft refuses the change.
	index, servers := c.l.in.fsm.configuration(), c.l.in.servers()
	blind := c.takeOver(ctx)
	r := c.survey(ctx, servers)
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	r.unsettled = r.unsettled || blind != nil
	ch := r.next()
	if ch.kind == stepNone {
		if err := c.syncRecord(ctx, servers); err != nil {
			return false, err
		}
		return false, nil
	}
	if err := c.make(ctx, servers, index, ch); err != nil {
		return false, fmt.Errorf("%s server %s: %w", ch.kind, ch.id, err)
	}
	c.s.log.Info("membership changed", "change", string(ch.kind), "server", ch.id, "reason", ch.why)
	return true, nil
}

// make carries out one change. The record holds every server that may count
// for a majority before it does, so that no recovery overlooks one: a change
// of voters is pending in it until every living voter has it. Without that
// record no voter is added, and none removed from an even number, whose half
// would pass for lost, or that may live on and take itself for a voter. One
// that ends is removed from an odd number without: the others need as many of
// them as before. So a machine that stops, and has no time, need not wait for
// the API.
func (c *control) make(ctx context.Context, servers []raft.Server, index uint64, ch change) error {
	var target raft.Server
	voters := 0
	for _, srv := range servers {
		if srv.Suffrage == raft.Voter {
			voters++
		}
		if string(srv.ID) == ch.id {
			target = srv
		}
	}
	ofVoters := ch.kind == stepPromote || ch.kind == stepRemove && target.Suffrage == raft.Voter
	if ofVoters {
		c.setPending(ch.id)
	}
	if ofVoters && (ch.kind == stepPromote || voters%2 == 0 || !c.ends(ch.id)) {
		if err := c.syncRecord(ctx, servers); err != nil {
			c.setPending("")
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
	if ofVoters {
		c.mu.Lock()
		c.pendingAt = rf.LastIndex() // where the change is, or after it
		c.mu.Unlock()
	}
	return err
}

// setPending marks the change of a server as pending; empty: none.
func (c *control) setPending(id string) {
	peers := map[string]Peer{}
	for _, p := range c.s.o.Peers.Peers() {
		peers[p.Machine] = p
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending, c.pendingAt = epoch.Voter{}, 0
	if id != "" {
		c.pending = c.describe(id, peers)
	}
}

func (c *control) isPending() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pending.Machine != ""
}

func (c *control) wait(ctx context.Context, f func() error) error {
	select {
	case err := <-c.l.in.call(f):
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// isLeaving reports whether a machine, or this boot of it, has to stay out; the
// caller holds mu.
func (c *control) isLeaving(machine, boot string, now time.Time) bool {
	return c.leaving[machine].After(now) || c.leaving[machine+"."+rootBoot(boot)].After(now)
}

// ends reports whether a server never votes again, or asked to be removed
// because its process is about to end.
func (c *control) ends(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.proven[id] || c.leaving[machineOf(id)+"."+rootBoot(bootOf(id))].After(time.Now())
}

func (c *control) poke() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// voters describes the voters for Status.
func (c *control) voters() []VoterStatus {
	servers := c.l.in.servers()
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	var l []VoterStatus
	for _, srv := range servers {
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
	return c.remove(ctx, machineOf(id)+"."+rootBoot(bootOf(id)), limit, demotedFor) == nil
}

var errStays = errors.New("it is still a server")

// remove marks a machine, or one boot of it, as leaving and waits until raft
// does not hold it.
func (c *control) remove(ctx context.Context, who string, limit, keepOut time.Duration) error {
	c.mu.Lock()
	c.leaving[who] = time.Now().Add(keepOut)
	c.mu.Unlock()
	machine := machineOf(who)
	c.poke()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		servers := c.l.in.servers()
		in := len(servers) == 0
		for _, srv := range servers {
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
