package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"flymesh/agent/api"
	"flymesh/agent/redis"
	"flymesh/raftstore/state"
)

type redisCmd struct {
	Pressure pressureCmd `cmd:"" help:"show what fills the memory"`
	Trim     trimCmd     `cmd:"" help:"remove old chats; without --yes only count them"`
	Eviction evictionCmd `cmd:"" help:"set what Redis does when it is full"`
	Promote  promoteCmd  `cmd:"" help:"make the candidate the primary: planned, or when the primary is gone"`
}

// redisTarget says which Redis is meant.
type redisTarget struct {
	Service string `arg:"" optional:"" help:"name in mesh.toml; may be left out where one service has a Redis"`
	Machine string `placeholder:"ID" help:"another machine than the one that takes writes"`
}

// ask waits longer than other commands do: Redis is asked in small steps.
func (t redisTarget) ask(s *session, r api.RedisRequest) (api.RedisAnswer, error) {
	ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
	defer cancel()
	r.Service, r.Machine = t.Service, t.Machine
	all, err := s.client.Redis(ctx, r)
	if err == nil && len(all) == 0 {
		err = errors.New("no Redis has answered")
	}
	if err != nil {
		return api.RedisAnswer{}, err
	}
	return all[0], nil
}

type pressureCmd struct {
	redisTarget
	JSON bool `help:"print JSON"`
}

// Run prints what fills the memory.
func (c *pressureCmd) Run(s *session) error {
	x, err := c.ask(s, api.RedisRequest{Pressure: true})
	if err != nil {
		return err
	}
	p := x.Pressure
	if c.JSON {
		return printJSON(s.out, p, true)
	}
	limit := "no maxmemory"
	if p.Limit > 0 {
		limit = fmt.Sprintf("%.0f %% of %s", 100*float64(p.Used)/float64(p.Limit), size(p.Limit))
	}
	fmt.Fprintf(s.out, "redis of machine %s (%s)   used %s, %s   policy %s   evicted %.0f   refused writes %.0f   fragmentation %s\n",
		p.Machine, p.Role, size(p.Used), limit, p.Policy, p.Evicted, p.Refused, size(p.Fragmentation))
	seen := fmt.Sprintf("all %d keys", p.Keys)
	if p.Scanned < p.Keys {
		seen = fmt.Sprintf("estimated from %d of %d keys", p.Scanned, p.Keys)
	}
	if len(p.Others) > 0 {
		seen += fmt.Sprintf("; not looked at: databases %v", p.Others)
	}
	fmt.Fprintf(s.out, "%s\n\n", seen)
	t := newTable(s.out)
	t.row("KEYS LIKE", "KEYS", "BYTES", "SHARE", "WITHOUT END", "IDLE", "NOTE")
	for _, g := range p.Groups {
		kind := ""
		if g.Queue {
			kind = "queue: never trimmed"
		}
		t.row(g.Prefix, fmt.Sprintf("%.0f", g.Keys), size(int64(g.Bytes)), fmt.Sprintf("%.0f %%", 100*g.Bytes/float64(max(p.Used, 1))),
			fmt.Sprintf("%.0f %%", 100*g.Lasting), idle(g.Idle), kind)
	}
	t.row()
	t.flush()
	t = newTable(s.out)
	t.row("BIGGEST KEY", "TYPE", "BYTES", "ENDS IN", "IDLE")
	for _, k := range p.Biggest {
		t.row(k.Key, k.Type, size(k.Bytes), idle(k.TTL), idle(k.Idle))
	}
	for _, q := range p.Queues {
		t.row("queue "+q.Prefix, fmt.Sprintf("%d jobs", q.Jobs), size(max(q.Bytes, 0)), "-", "-")
	}
	err = t.flush()
	if len(p.Advice) > 0 {
		fmt.Fprintln(s.out)
	}
	for _, a := range p.Advice {
		fmt.Fprintf(s.out, "advice: %s\n", a)
	}
	return err
}

// size shows bytes in the unit that people think in.
func size(n int64) string {
	x, unit := float64(n), "B"
	for _, u := range []string{"KB", "MB", "GB"} {
		if x < 1000 {
			break
		}
		x, unit = x/1024, u
	}
	if unit == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", x, unit)
}

// idle shows seconds; -1 is none, or not known.
func idle(seconds float64) string {
	if seconds < 0 {
		return "-"
	}
	return age(time.Duration(seconds * float64(time.Second)))
}

type trimCmd struct {
	redisTarget
	Match    string        `placeholder:"PATTERN" help:"keys that are chats, such as 'chat:*' (default: chat_keys of mesh.toml)"`
	Type     string        `default:"list" help:"their type, n8n's chats are lists; any: all types"`
	Idle     time.Duration `placeholder:"168h" help:"not used for so long"`
	TTLUnder time.Duration `placeholder:"1h" help:"would end within it anyway"`
	Expire   time.Duration `placeholder:"24h" help:"let them end after so long instead of now"`
	Yes      bool          `help:"do it"`
}

// Run trims until all keys were seen.
func (c *trimCmd) Run(s *session) error {
	q := redis.Trim{Match: c.Match, Type: c.Type, Idle: c.Idle, TTLUnder: c.TTLUnder, Expire: c.Expire, Do: c.Yes}
	if q.Type == "any" {
		q.Type = ""
	}
	var sum redis.Trimmed
	first := int64(0)
	machine := ""
	for {
		x, err := c.ask(s, api.RedisRequest{Trim: &q})
		if err != nil {
			if machine != "" {
				return fmt.Errorf("after %d keys: %w", sum.Done, err)
			}
			return err
		}
		if machine == "" {
			machine, first = x.Machine, x.Trimmed.Before
			c.Machine = machine // the cursor is that server's
		}
		r := *x.Trimmed
		sum.Matched, sum.Old, sum.Bytes, sum.Done, sum.Kept = sum.Matched+r.Matched, sum.Old+r.Old, sum.Bytes+r.Bytes, sum.Done+r.Done, sum.Kept+r.Kept
		sum.Used, sum.Keys = r.Used, r.Keys
		if q.Cursor = r.Cursor; q.Cursor == 0 {
			break
		}
		fmt.Fprintf(s.err, "agentctl: %d keys seen, %d old; going on\n", sum.Matched, sum.Old)
	}
	fmt.Fprintf(s.out, "redis of machine %s: %d keys match, %d of them are old (%s)", machine, sum.Matched, sum.Old, size(sum.Bytes))
	if sum.Kept > 0 {
		fmt.Fprintf(s.out, "; %d are a queue's or n8n's own and stay", sum.Kept)
	}
	fmt.Fprintln(s.out)
	var err error
	switch {
	case !c.Yes && sum.Old > 0:
		_, err = fmt.Fprintln(s.out, "nothing was changed: --yes does it")
	case c.Yes && c.Expire > 0:
		_, err = fmt.Fprintf(s.out, "%d end within %s\n", sum.Done, c.Expire)
	case c.Yes:
		_, err = fmt.Fprintf(s.out, "%d removed; used memory %s, before %s; %d keys are left\n", sum.Done, size(sum.Used), size(first), sum.Keys)
	}
	return err
}

type evictionCmd struct {
	Policy string `arg:"" help:"volatile-lru evicts keys that have an end; noeviction refuses writes"`
	redisTarget
	Force bool `help:"also a policy that evicts jobs"`
}

// Run sets the policy.
func (c *evictionCmd) Run(s *session) error {
	ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
	defer cancel()
	all, err := s.client.Redis(ctx, api.RedisRequest{
		Service: c.Service, Machine: c.Machine, Eviction: &api.EvictionRequest{Policy: c.Policy, Force: c.Force},
	})
	if err != nil {
		return err
	}
	for _, x := range all {
		e := x.Eviction
		fmt.Fprintf(s.out, "redis of machine %s: %s, before %s\n", e.Machine, e.After, e.Before)
		for _, n := range e.Notes {
			fmt.Fprintf(s.out, "  %s\n", n)
		}
	}
	return nil
}

type promoteCmd struct {
	redisTarget
	Force  bool          `help:"also a machine whose data are not known to be the primary's"`
	Wait   time.Duration `default:"90s" help:"how long to watch it; 0s: not at all"`
	Reason string        `placeholder:"T" help:"why, for the events"`
}

// Run asks for the promotion and tells how it goes.
func (c *promoteCmd) Run(s *session) error {
	p, err := s.client.PromoteRedis(s.ctx, api.PromoteRequest{Service: c.Service, Machine: c.Machine, Force: c.Force, Reason: c.Reason, By: who()})
	if err := s.accepted(p.Accepted, err); err != nil || c.Wait <= 0 {
		return err
	}
	last := p.Index
	for end := time.Now().Add(c.Wait); time.Now().Before(end); {
		ctx, cancel := context.WithTimeout(s.ctx, 5*time.Second)
		es, err := s.client.Events(ctx, last)
		cancel()
		for _, e := range es {
			last = e.Index
			if !ofPromotion(e, p) {
				continue
			}
			fmt.Fprintf(s.out, "%s  %s  %s: %s\n", clock(e.At), e.Machine, e.Kind, e.Reason)
			switch {
			case e.Kind == "redis_primary" && e.Machine == p.To:
				return nil
			case e.Kind == "pin" && e.Machine != p.To:
				return fmt.Errorf("%s is not the primary: %s", p.To, e.Reason)
			}
		}
		if err != nil && !passing(err) {
			return err
		}
		if !s.sleep(followEvery) {
			return nil
		}
	}
	return fmt.Errorf("%s does not take writes after %s; agentctl locks says what it waits for, agentctl events how it goes on", p.To, c.Wait)
}

// ofPromotion says whether an event is a step of it.
func ofPromotion(e state.Event, p api.Promoted) bool {
	switch e.Kind {
	case "redis_primary", "redis_handed_over", "redis_empty":
		return e.Service == p.Service
	case "pin":
		return e.Service == p.Service
	case "fence", "fence_blocked":
		return e.Machine == p.From
	case "unlock":
		return strings.HasPrefix(e.Reason, api.RedisLock(p.Service))
	}
	return false
}
