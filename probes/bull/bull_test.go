package bull

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"flymesh/probes"
	"flymesh/probes/redis"
	"flymesh/probes/redis/redistest"
	"flymesh/probes/report"
)

func make1(t *testing.T, o Options) *Bull {
	t.Helper()
	b, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func probe(t *testing.T, b *Bull) probes.Reading {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	m, err := b.Probe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func fact(m probes.Reading, name string) report.Value {
	for _, f := range m.Facts {
		if f.Name == name {
			return f.Value
		}
	}
	return report.Value{}
}

func TestDepthIsThatOfRedisCLI(t *testing.T) {
	s := redistest.Start(t)
	c := s.Client(t)
	for _, prefix := range []string{DefaultPrefix, "{bull}:jobs"} {
		b := make1(t, Options{Server: redis.Server{Addr: s.Addr}, Prefix: prefix})
		if m := probe(t, b); m.Queue != report.Of(0) || m.QueueScope != report.QueueService || fact(m, "oldest_wait_seconds") != report.Of(0) {
			t.Errorf("%s: no queue yet: %+v", prefix, m)
		}
		redistest.Enqueue(t, c, prefix, 11, 100, time.Now().Add(-7*time.Second))
		redistest.Enqueue(t, c, prefix, 6, 0, time.Now())
		// A worker took three, and one waits behind a global pause.
		for range 3 {
			c.LMove(t.Context(), prefix+":wait", prefix+":active", "RIGHT", "LEFT")
		}
		c.LPush(t.Context(), prefix+":paused", "99")
		m := probe(t, b)
		oldest := fact(m, "oldest_wait_seconds")
		t.Logf("%-12s depth %v, redis-cli wait %s + paused %s (priority set %s); active %v, redis-cli %s; oldest %.2f s",
			prefix, m.Queue.X, s.CLI(t, "LLEN", prefix+":wait"), s.CLI(t, "LLEN", prefix+":paused"), s.CLI(t, "ZCARD", prefix+":priority"),
			fact(m, "active_jobs").X, s.CLI(t, "LLEN", prefix+":active"), oldest.X)
		if m.Queue != report.Of(15) || fact(m, "active_jobs") != report.Of(3) || len(m.Problems) != 0 {
			t.Errorf("%s: 14 waiting, 1 paused, 3 active: %+v", prefix, m)
		}
		if oldest.X < 6.9 || oldest.X > 10 {
			t.Errorf("%s: the oldest has waited %v, want 7 s", prefix, oldest)
		}
	}
	c.Set(t.Context(), "bull:jobs:wait", "not a list", 0)
	if m := probe(t, make1(t, Options{Server: redis.Server{Addr: s.Addr}})); m.Queue.OK || len(m.Problems) != 1 || !strings.Contains(m.Problems[0], "WRONGTYPE") {
		t.Errorf("a changed layout: %+v", m)
	}
}

// An empty list under allkeys-lru is no empty queue: the jobs may have been
// evicted, silently.
func TestEvictedQueueIsUnknown(t *testing.T) {
	s := redistest.Start(t, "--maxmemory", "4mb", "--maxmemory-policy", "allkeys-lru", "--maxmemory-samples", "10")
	c := s.Client(t)
	b := make1(t, Options{Server: redis.Server{Addr: s.Addr}})
	redistest.Enqueue(t, c, DefaultPrefix, 20, 100, time.Now())
	if m := probe(t, b); m.Queue != report.Of(20) {
		t.Fatalf("before the pressure: %+v", m)
	}
	chat := strings.Repeat("x", 1000)
	for i := range 6000 {
		c.LPush(t.Context(), fmt.Sprintf("session-%d", i), chat)
	}
	m := probe(t, b)
	t.Logf("redis-cli: wait %s, evicted by info; probe: %+v %q", s.CLI(t, "LLEN", "bull:jobs:wait"), m.Queue, m.Problems)
	if m.Queue.OK || len(m.Problems) != 1 || !strings.Contains(m.Problems[0], "allkeys-lru") {
		t.Errorf("after the eviction: %+v", m)
	}
	// A policy that spares keys without a TTL leaves the jobs alone.
	if err := c.ConfigSet(t.Context(), "maxmemory-policy", "volatile-lru").Err(); err != nil {
		t.Fatal(err)
	}
	c.FlushAll(t.Context())
	redistest.Enqueue(t, c, DefaultPrefix, 20, 100, time.Now())
	for i := range 6000 {
		c.Set(t.Context(), fmt.Sprintf("chat-%d", i), chat, time.Hour)
	}
	m = probe(t, b)
	t.Logf("volatile-lru: redis-cli wait %s, probe %v", s.CLI(t, "LLEN", "bull:jobs:wait"), m.Queue.X)
	if m.Queue != report.Of(20) {
		t.Errorf("volatile-lru: %+v", m)
	}
}

func TestRefusalAndSilence(t *testing.T) {
	s := redistest.Start(t)
	s.CLI(t, "CONFIG", "SET", "requirepass", "secret")
	m := probe(t, make1(t, Options{Server: redis.Server{Addr: s.Addr}}))
	if m.Queue.OK || m.Ready == nil || *m.Ready || !strings.Contains(m.Reason, "NOAUTH") || len(m.Problems) != 1 {
		t.Errorf("without the password: %+v", m)
	}
	if m := probe(t, make1(t, Options{Server: redis.Server{Addr: s.Addr, Password: "secret"}})); m.Queue != report.Of(0) {
		t.Errorf("with the password: %+v", m)
	}
	if m, err := make1(t, Options{Server: redis.Server{Addr: "127.0.0.1:1"}}).Probe(t.Context()); err == nil || m.Queue.OK {
		t.Errorf("nobody listens: %+v", m)
	}
	if _, err := New(Options{Server: redis.Server{Addr: "localhost"}}); err == nil {
		t.Error("an address without a port was accepted")
	}
}
