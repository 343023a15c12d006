// Package arbitertest holds a small working model of raftstore.Arbiter, and
// the conformance that the model and every real arbiter pass.
package arbitertest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"flymesh/raftstore"
	"flymesh/raftstore/epoch"
)

// Register is the shared side of the model: the record, the lease and what is
// true of the machines.
type Register struct {
	mu     sync.Mutex
	record epoch.Record
	writes []epoch.Record
	holder *lease
	fate   func(epoch.Voter) epoch.Fate
	watch  func(before, after epoch.Record)
}

type lease struct{ until time.Time }

// NewRegister returns an empty register; fate says what became of a voter.
func NewRegister(fate func(epoch.Voter) epoch.Fate) *Register { return &Register{fate: fate} }

// Watch sets what sees each write as it happens.
func (g *Register) Watch(f func(before, after epoch.Record)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.watch = f
}

// Record returns the record without any fault.
func (g *Register) Record() epoch.Record {
	g.mu.Lock()
	defer g.mu.Unlock()
	return clone(g.record)
}

// Writes returns every record ever written, oldest first.
func (g *Register) Writes() []epoch.Record {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.writes)
}

// Client is one machine's access to the register, with faults.
type Client struct {
	g *Register

	mu      sync.Mutex
	down    bool
	latency time.Duration
	stall   func(call string) // called before the effect of each call
}

var _ raftstore.Arbiter = (*Client)(nil)

// Client returns an access whose calls take the latency each way.
func (g *Register) Client(latency time.Duration) *Client { return &Client{g: g, latency: latency} }

// SetDown makes every call fail, or work again.
func (c *Client) SetDown(down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = down
}

// SetLatency sets how long each call takes, each way.
func (c *Client) SetLatency(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.latency = d
}

// Stall sets what is called with the call's name before it takes effect.
func (c *Client) Stall(f func(call string)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stall = f
}

var errDown = errors.New("arbiter is down")

func (c *Client) call(ctx context.Context, name string, effect func()) error {
	c.mu.Lock()
	down, latency, stall := c.down, c.latency, c.stall
	c.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if stall != nil {
		stall(name) // a process that stands still does not look at its context
	}
	if down {
		return errDown
	}
	time.Sleep(latency)
	c.g.mu.Lock()
	effect()
	c.g.mu.Unlock()
	time.Sleep(latency)
	return ctx.Err()
}

// Read implements raftstore.Arbiter.
func (c *Client) Read(ctx context.Context) (r epoch.Record, err error) {
	err = c.call(ctx, "read", func() { r = clone(c.g.record) })
	return r, err
}

// Overwrite replaces the record whatever it says, as a write does that looked
// long before.
func (g *Register) Overwrite(r epoch.Record) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.record = clone(r)
}

var errSuperseded = errors.New("another cluster is recorded")

// Write implements raftstore.Arbiter: it looks ("write") and then writes ("put").
func (c *Client) Write(ctx context.Context, r epoch.Record) error {
	var have epoch.Record
	if err := c.call(ctx, "write", func() { have = c.g.record }); err != nil {
		return err
	}
	if have.Epoch > r.Epoch || have.Epoch == r.Epoch && have.Cluster != r.Cluster {
		return errSuperseded
	}
	return c.call(ctx, "put", func() {
		if c.g.watch != nil {
			c.g.watch(clone(c.g.record), clone(r))
		}
		c.g.record = clone(r)
		c.g.writes = append(c.g.writes, clone(r))
	})
}

// Lease implements raftstore.Arbiter.
func (c *Client) Lease(ctx context.Context, ttl time.Duration) (func(context.Context) error, error) {
	mine := &lease{}
	free := false
	err := c.call(ctx, "lease", func() {
		if free = c.g.holder == nil || !time.Now().Before(c.g.holder.until); free {
			mine.until = time.Now().Add(ttl)
			c.g.holder = mine
		}
	})
	if err != nil {
		return nil, err
	}
	if !free {
		return nil, errors.New("lease is held")
	}
	return func(ctx context.Context) error {
		return c.call(ctx, "release", func() {
			if c.g.holder == mine {
				c.g.holder = nil
			}
		})
	}, nil
}

// Fates implements raftstore.Arbiter.
func (c *Client) Fates(ctx context.Context, voters []epoch.Voter) (map[string]epoch.Fate, error) {
	m := map[string]epoch.Fate{}
	err := c.call(ctx, "fates", func() {
		for _, v := range voters {
			m[v.Machine] = c.g.fate(v)
		}
	})
	return m, err
}

func clone(r epoch.Record) epoch.Record {
	r.Voters = slices.Clone(r.Voters)
	return r
}

// Conform checks an arbiter that holds no record and whose lease is free.
// Other must be a second access to the same register.
func Conform(t *testing.T, a, other raftstore.Arbiter) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if r, err := a.Read(ctx); err != nil || !r.Zero() {
		t.Fatalf("first read: got %+v, %v, want the zero record", r, err)
	}
	release, err := a.Lease(ctx, time.Minute)
	if err != nil {
		t.Fatalf("free lease: %v", err)
	}
	if _, err := other.Lease(ctx, time.Minute); err == nil {
		t.Error("a held lease was given again")
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	v := epoch.Voter{App: "app", Machine: "m1", Boot: "b1", BootAt: at}
	want := epoch.Record{Epoch: 1, Cluster: epoch.ClusterID(1, "b1"), Founder: v, At: at,
		Voters: []epoch.Voter{v, {App: "app", Machine: "m2", Boot: "b2.1", BootAt: at, Pending: true}}}
	if err := a.Write(ctx, want); err != nil {
		t.Fatalf("write: %v", err)
	}
	for _, x := range []raftstore.Arbiter{a, other} {
		got, err := x.Read(ctx)
		if err != nil || !got.Same(want) || !got.At.Equal(at) || got.Voters[1].App != "app" || !got.Voters[1].BootAt.Equal(at) {
			t.Errorf("read after write: got %+v, %v, want %+v", got, err, want)
		}
	}
	if err := release(ctx); err != nil {
		t.Errorf("release: %v", err)
	}
	again, err := other.Lease(ctx, time.Minute)
	if err != nil {
		t.Fatalf("lease after release: %v", err)
	}
	// The lease does not guard the record: the last writer wins.
	late := want
	late.Epoch, late.Cluster = 2, epoch.ClusterID(2, "late")
	if err := a.Write(ctx, late); err != nil {
		t.Fatalf("write without the lease: %v", err)
	}
	rival := late
	rival.Cluster = epoch.ClusterID(2, "a-rival")
	for name, r := range map[string]epoch.Record{"an older epoch": want, "a rival of the epoch": rival} {
		if err := other.Write(ctx, r); err == nil {
			t.Errorf("the record of %s replaced a newer one", name)
		}
	}
	if got, err := other.Read(ctx); err != nil || !got.Same(late) {
		t.Errorf("read after the later write: got %+v, %v", got, err)
	}
	again(ctx)
}
