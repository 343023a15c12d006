package redis

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	proberedis "flymesh/probes/redis"
	"flymesh/probes/redis/redistest"
)

// chats makes conversations as n8n's chat memory does: a list a session.
func chats(t *testing.T, c *goredis.Client, prefix string, n, bytes int, ttl time.Duration) {
	t.Helper()
	p := c.Pipeline()
	for i := range n {
		k := fmt.Sprintf("%s%d", prefix, i)
		p.LPush(t.Context(), k, strings.Repeat("x", bytes))
		if ttl > 0 {
			p.Expire(t.Context(), k, ttl)
		}
	}
	if _, err := p.Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// jobs counts what a Bull queue holds, with redis-cli.
func jobs(t *testing.T, s *redistest.Server, prefix string) (wait string, hashes int) {
	t.Helper()
	keys := strings.Fields(s.CLI(t, "--scan", "--pattern", prefix+":[0-9]*"))
	for _, k := range slices.Compact(slices.Sorted(slices.Values(keys))) { // a scan may say a key twice
		if s.CLI(t, "TYPE", k) == "hash" {
			hashes++
		}
	}
	return s.CLI(t, "LLEN", prefix+":wait"), hashes
}

// trimAll calls until all was seen.
func trimAll(t *testing.T, r *Redis, q Trim) (sum Trimmed) {
	t.Helper()
	for {
		x, err := r.Trim(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		x.Matched, x.Old, x.Bytes, x.Done, x.Kept = x.Matched+sum.Matched, x.Old+sum.Old, x.Bytes+sum.Bytes, x.Done+sum.Done, x.Kept+sum.Kept
		if sum = x; x.Cursor == 0 {
			return sum
		}
		q.Cursor = x.Cursor
	}
}

func TestTrimFreesMemoryAndKeepsAllJobs(t *testing.T) {
	s := redistest.Start(t, "--maxmemory", "64mb")
	c, r := s.Client(t), of(s)
	redistest.Enqueue(t, c, "bull:jobs", 20, 100, time.Now())
	redistest.Enqueue(t, c, "{bull}:jobs", 5, 0, time.Now())
	chats(t, c, "chat:old:", 2000, 2000, 0)
	redistest.Age(t, c, "chat:old:*", 2*time.Hour)
	chats(t, c, "chat:new:", 500, 2000, 0)
	chats(t, c, "other:", 100, 2000, 0)
	wait, hashes := jobs(t, s, "bull:jobs")
	before := number(t, s.Info(t, "memory", "used_memory"))

	// Without Do nothing is touched.
	q := Trim{Match: "chat:*", Type: "list", Idle: time.Hour}
	x := trimAll(t, r, q)
	if n := c.DBSize(t.Context()).Val(); x.Old != 2000 || x.Done != 0 || x.Keys != n {
		t.Errorf("dry: %+v of %d keys", x, n)
	}
	q.Do = true
	x = trimAll(t, r, q)
	until(t, "the memory is free", func() bool { return number(t, s.Info(t, "memory", "used_memory")) < before-3e6 })
	after := number(t, s.Info(t, "memory", "used_memory"))
	wait2, hashes2 := jobs(t, s, "bull:jobs")
	t.Logf("trim: %d matched, %d old, %d removed, %.1f MB by its own count; used_memory %.1f -> %.1f MB; jobs waiting %s -> %s, job hashes %d -> %d",
		x.Matched, x.Old, x.Done, float64(x.Bytes)/1e6, before/1e6, after/1e6, wait, wait2, hashes, hashes2)
	if x.Done != 2000 || wait != "20" || wait2 != "20" || hashes != 20 || hashes2 != 20 {
		t.Errorf("%+v; jobs %s %s, %d %d", x, wait, wait2, hashes, hashes2)
	}
	for prefix, want := range map[string]int{"chat:old:*": 0, "chat:new:*": 500, "other:*": 100, "{bull}:jobs:*": 5 + 2} {
		if n := len(strings.Fields(s.CLI(t, "--scan", "--pattern", prefix))); n != want {
			t.Errorf("%d keys %s, want %d", n, prefix, want)
		}
	}

	// The widest pattern still takes no job.
	redistest.Age(t, c, "*", 2*time.Hour)
	x = trimAll(t, r, Trim{Match: "*", Idle: time.Hour, Do: true})
	if wait, hashes := jobs(t, s, "bull:jobs"); wait != "20" || hashes != 20 || x.Kept < 20+3+5+2 {
		t.Errorf("after *: waiting %s, hashes %d, %+v", wait, hashes, x)
	}
}

func TestTrimByTimeToLive(t *testing.T) {
	s := redistest.Start(t)
	c, r := s.Client(t), of(s)
	chats(t, c, "chat:soon:", 50, 10, 5*time.Minute)
	chats(t, c, "chat:late:", 50, 10, 5*time.Hour)
	chats(t, c, "chat:never:", 50, 10, 0)
	if x := trimAll(t, r, Trim{Match: "chat:*", TTLUnder: time.Hour, Do: true}); x.Done != 50 || c.Exists(t.Context(), "chat:soon:1").Val() != 0 {
		t.Errorf("%+v", x)
	}
	redistest.Age(t, c, "chat:*", 2*time.Hour)
	if x := trimAll(t, r, Trim{Match: "chat:*", Idle: time.Hour, Expire: time.Hour, Do: true}); x.Done != 100 || c.TTL(t.Context(), "chat:never:1").Val() < time.Minute {
		t.Errorf("%+v", x)
	}
	redistest.Age(t, c, "chat:*", 2*time.Hour)
	if x := trimAll(t, r, Trim{Match: "chat:*", Idle: time.Hour, Expire: time.Hour, Do: true}); x.Done != 0 {
		t.Errorf("an end was put off again: %+v", x)
	}
	c.ConfigSet(t.Context(), "maxmemory-policy", "volatile-lfu")
	if _, err := r.Trim(t.Context(), Trim{Match: "chat:*", Idle: time.Second}); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "--ttl-under") {
		t.Errorf("idle times under LFU: %v", err)
	}
}

func TestTrimRefuses(t *testing.T) {
	r := New(proberedis.Server{Addr: "127.0.0.1:1"}, "", []string{"own:queue"})
	for want, q := range map[string]Trim{
		"never trimmed":        {Match: "bull:*", Idle: time.Hour},
		"never trimmed:":       {Match: "{bull}*", Idle: time.Hour},
		"are keys of a queue":  {Match: "own:queue:*", Idle: time.Hour},
		"which keys are chats": {Idle: time.Hour},
		"what is old":          {Match: "chat:*"},
	} {
		if _, err := r.Trim(t.Context(), q); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), strings.TrimSuffix(want, ":")) {
			t.Errorf("%+v: %v, want %q", q, err, want)
		}
	}
}

func TestEvictionSparesQueues(t *testing.T) {
	s := redistest.Start(t, "--maxmemory", "32mb")
	c, r := s.Client(t), of(s)
	chats(t, c, "chat:", 10, 10, 0)
	if e, err := r.Eviction(t.Context(), "allkeys-lru", false); err != nil || e.Before != "noeviction" {
		t.Errorf("without a queue: %+v, %v", e, err)
	}
	e, err := r.Eviction(t.Context(), "volatile-lru", false)
	if err != nil || s.Info(t, "memory", "maxmemory_policy") != "volatile-lru" || !strings.Contains(strings.Join(e.Notes, " "), "time to live") {
		t.Errorf("%+v, %v", e, err)
	}
	// A queue in another database counts, too: the policy is the server's.
	other := goredis.NewClient(&goredis.Options{Addr: s.Addr, DB: 3})
	t.Cleanup(func() { _ = other.Close() })
	redistest.Enqueue(t, other, "bull:jobs", 20, 0, time.Now())
	_, err = r.Eviction(t.Context(), "allkeys-lru", false)
	t.Logf("refused: %v", err)
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "bull:jobs, 20 jobs") || !strings.Contains(err.Error(), "19 were destroyed") || s.Info(t, "memory", "maxmemory_policy") != "volatile-lru" {
		t.Errorf("allkeys-lru beside a queue: %v", err)
	}
	if _, err := r.Eviction(t.Context(), "allkeys-lfu", true); err != nil || s.Info(t, "memory", "maxmemory_policy") != "allkeys-lfu" {
		t.Errorf("forced: %v", err)
	}
	if _, err := r.Eviction(t.Context(), "lru", false); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "volatile-lru") {
		t.Errorf("unknown policy: %v", err)
	}
	// A queue of any name is spared where mesh.toml names it.
	own := redistest.Start(t)
	redistest.Enqueue(t, own.Client(t), "tasks:mail", 3, 0, time.Now())
	if _, err := New(proberedis.Server{Addr: own.Addr}, own.Addr, []string{"tasks:mail"}).Eviction(t.Context(), "allkeys-random", false); !errors.Is(err, ErrRefused) {
		t.Errorf("a queue named in mesh.toml: %v", err)
	}
}

func TestPressureNamesWhatFillsTheMemory(t *testing.T) {
	s := redistest.Start(t, "--maxmemory", "16mb")
	c, r := s.Client(t), of(s)
	redistest.Enqueue(t, c, "bull:jobs", 30, 0, time.Now())
	chats(t, c, "chat:", 4000, 2000, 0)
	chats(t, c, "session:", 500, 100, time.Hour)
	chats(t, c, "big", 1, 900_000, 0)
	latest := slowest(t, c)
	begin := time.Now()
	p, err := r.Pressure(t.Context())
	took := time.Since(begin)
	worst := latest()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d of %d keys in %s; PINGs beside it took %s at most; groups %+v; queues %+v; advice %q", p.Scanned, p.Keys, took, worst, p.Groups, p.Queues, p.Advice)
	if p.Scanned != p.Keys || took > 5*time.Second {
		t.Errorf("%d of %d keys in %s", p.Scanned, p.Keys, took)
	}
	g := p.Groups[0]
	if g.Prefix != "chat:*" || g.Keys != 4000 || g.Bytes < 8e6 || g.Bytes > 11e6 || g.Lasting != 1 {
		t.Errorf("largest group %+v", g)
	}
	if p.Biggest[0].Key != "big0" || p.Biggest[0].Bytes < 900_000 || p.Biggest[0].TTL != -1 {
		t.Errorf("biggest key %+v", p.Biggest[0])
	}
	if len(p.Queues) != 1 || p.Queues[0].Prefix != "bull:jobs" || p.Queues[0].Jobs != 30 || p.Queues[0].Bytes <= 0 {
		t.Errorf("queues %+v", p.Queues)
	}
	if used := number(t, s.Info(t, "memory", "used_memory")); float64(p.Used) < 0.9*used || p.Limit != 16<<20 || p.Policy != "noeviction" || p.Role != "primary" {
		t.Errorf("%+v, redis-cli says %v", p, used)
	}
	if all := strings.Join(p.Advice, "\n"); !strings.Contains(all, "agentctl redis trim --match 'chat:*'") {
		t.Errorf("advice %q", all)
	}
	c.ConfigSet(t.Context(), "maxmemory-policy", "allkeys-lru")
	if p, err = r.Pressure(t.Context()); err != nil || !strings.Contains(p.Advice[0], "eviction volatile-lru") {
		t.Errorf("advice %q, %v", p.Advice, err)
	}
}
