package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"flymesh/leader"
	"flymesh/leader/alert"
	"flymesh/raftstore/state"
)

const (
	// leaderlessEvery is how often an agent looks whether anybody leads, and how
	// soon it tries a receiver again.
	leaderlessEvery = 5 * time.Second
	// criedFor is how long an agent says in its reports that it has told people:
	// some of them may be lost.
	criedFor = 30 * time.Second
)

// cries is what this agent has told people while nobody led.
type cries struct {
	told map[leader.Receiver]time.Time // when each was told last

	mu    sync.Mutex // guards all below
	first time.Time  // when somebody was told first; zero: nobody was
	over  time.Time  // since when somebody leads again; zero: nobody does
}

// at is what a report says: when people were told, or zero.
func (c *cries) at() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over.IsZero() {
		return time.Time{}
	}
	return c.first
}

// runLeaderless tells people that nobody leads: then there is no leader to do
// it. Every agent that sees it uses one key, so receivers that know keys show
// one alert. The end is told by the leader that comes, once: see Report.Cried.
func (a *agent) runLeaderless(ctx context.Context) error {
	after := a.cfg.Alerts.NoLeaderAfter
	if after == 0 || len(a.receivers) == 0 {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(leaderlessEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		switch since := a.store.Status().NoLeaderSince; {
		case since.IsZero():
			a.cries.led(time.Now())
		case time.Since(since) >= after:
			a.cry(ctx, since)
		}
	}
}

// led forgets what was told, some time after somebody leads again.
func (c *cries) led(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.told)
	switch {
	case c.first.IsZero():
	case c.over.IsZero():
		c.over = now
	case now.Sub(c.over) > criedFor:
		c.first, c.over = time.Time{}, time.Time{}
	}
}

// cry tells each receiver that does not know, or wants to hear it again.
func (a *agent) cry(ctx context.Context, since time.Time) {
	c := &a.cries
	now := time.Now().UTC()
	first := c.begun(now)
	rule := alert.NoLeader()
	n := leader.Notice{Mesh: a.cfg.Mesh.Name, Key: rule.Key(), Summary: rule.Summary, Alert: state.Alert{
		Rule: rule.Name, Severity: rule.Severity, Phase: state.Firing, Since: since.UTC(), Fired: first,
		Text: fmt.Sprintf("no leader for %s: nothing is scaled until one is elected", now.Sub(since).Round(time.Second)),
	}}
	for _, r := range a.receivers {
		if at, ok := c.told[r]; !r.Wants(rule.Severity) || ok && (r.Again() == 0 || now.Sub(at) < r.Again()) {
			continue
		}
		err := r.Send(ctx, n)
		if err != nil && !errors.Is(err, leader.ErrRefused) {
			a.log.Warn("tell receiver failed", "receiver", r.Name(), "alert", n.Key, "error", err)
			continue
		}
		a.log.Warn("told people that nobody leads", "receiver", r.Name(), "since", since.UTC(), "refused", err != nil)
		c.told[r] = now
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.told) > 0 {
		c.first = first
	}
}

// begun is since when people are told of this time without a leader.
func (c *cries) begun(now time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over.IsZero() { // an earlier one was told of
		c.first, c.over = time.Time{}, time.Time{}
	}
	if c.first.IsZero() {
		return now
	}
	return c.first
}
