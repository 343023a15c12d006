package raftstore

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"flymesh/raftstore/epoch"
)

// syncRecord makes the record's voters those of the configuration, and the one
// whose change is pending, if this leadership has not written the same before.
func (c *control) syncRecord(ctx context.Context, servers []raft.Server) error {
	if c.s.o.Arbiter == nil {
		return nil
	}
	want := c.recordVoters(servers)
	c.mu.Lock()
	same := c.written != nil && slices.Equal(c.written, want)
	c.writing = !same
	c.mu.Unlock()
	if same {
		return nil
	}
	err := c.writeRecord(ctx, want)
	c.mu.Lock()
	c.writing = false
	c.written = nil // what failed may still have been written
	if err == nil {
		c.written = want
	}
	c.mu.Unlock()
	return err
}

// takeOver reads, once in a leadership, what an earlier leader recorded: who
// the voters are, and a change that may not have reached all of them.
func (c *control) takeOver(ctx context.Context) error {
	if c.s.o.Arbiter == nil || c.taken {
		return nil
	}
	r, err := c.s.readRecord(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRecordUnreadable, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.taken = true
	if !r.Names(c.l.Epoch, c.l.in.cluster) {
		return nil
	}
	for _, v := range r.Voters {
		if v.Pending {
			v.Pending = false
			c.pending, c.pendingAt = v, c.l.in.raft.LastIndex()
		}
		c.recorded[v.ID()] = v
	}
	return nil
}

// compare notes when the record does not hold what this leadership wrote last:
// an earlier leader's write came late. The next round writes it again.
func (c *control) compare(r epoch.Record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.written != nil && !c.writing && !(epoch.Record{Voters: c.written}).Same(epoch.Record{Voters: r.Voters}) {
		c.s.log.Warn("the recorded voters are not those written last: writing them again")
		c.written = nil
	}
}

// writeRecord writes the record of this leadership's cluster and reads it
// back. It does not write over a record that names another cluster of this or
// a later epoch. Nil voters: those of the configuration.
func (c *control) writeRecord(ctx context.Context, voters []epoch.Voter) error {
	if voters == nil {
		voters = c.recordVoters(c.l.in.servers())
	}
	now, err := c.s.readRecord(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRecordUnreadable, err)
	}
	if !now.Names(c.l.Epoch, c.l.in.cluster) && now.Epoch >= c.l.Epoch {
		return fmt.Errorf("write the epoch record: %w: %s", ErrDeposed, now.Cluster)
	}
	rec := epoch.Record{
		Epoch: c.l.Epoch, Cluster: c.l.in.cluster, Founder: now.Founder, Voters: voters, At: time.Now().UTC(),
	}
	if !now.Names(c.l.Epoch, c.l.in.cluster) {
		rec.Founder = epoch.Voter{} // another record's; the cluster ID still tells the boot
	}
	if rec.Same(now) {
		return nil
	}
	if c.s.leading() != c.l {
		return fmt.Errorf("write the epoch record: %w", ErrNotLeader)
	}
	wctx, cancel := context.WithTimeout(ctx, c.s.o.ReadTimeout)
	defer cancel()
	if err := c.s.o.Arbiter.Write(wctx, rec); err != nil {
		return fmt.Errorf("write the epoch record: %w", err)
	}
	back, err := c.s.readRecord(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRecordUnreadable, err)
	}
	if !back.Same(rec) {
		return fmt.Errorf("write the epoch record: it reads back as %s", back.Cluster)
	}
	return nil
}

// describe says who a server is, as well as is known; the caller holds mu.
func (c *control) describe(id string, peers map[string]Peer) epoch.Voter {
	v := epoch.Voter{Machine: machineOf(id), Boot: bootOf(id)}
	if id == c.l.in.server {
		v.App, v.BootAt, v.Durable = c.s.o.Self.App, c.s.o.Self.BootAt, c.s.o.DataDir != ""
	} else if h := c.heard[id].voter; h.Machine != "" {
		v = h
	} else if r := c.recorded[id]; r.Machine != "" {
		v = r
	} else if p := peers[v.Machine]; p.Boot == rootBoot(v.Boot) {
		v.App, v.BootAt = p.App, p.BootAt
	}
	return v
}

// recordVoters describes the voters, and the one whose change is pending.
func (c *control) recordVoters(servers []raft.Server) []epoch.Voter {
	peers := map[string]Peer{}
	for _, p := range c.s.o.Peers.Peers() {
		peers[p.Machine] = p
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var l []epoch.Voter
	if c.pending.Machine != "" {
		v := c.pending
		v.Pending = true
		l = append(l, v)
	}
	for _, srv := range servers {
		if id := string(srv.ID); srv.Suffrage == raft.Voter && id != c.pending.ID() {
			l = append(l, c.describe(id, peers))
		}
	}
	slices.SortFunc(l, func(a, b epoch.Voter) int {
		return strings.Compare(a.ID(), b.ID())
	})
	return l
}
