package bull

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"flymesh/probes"
	"flymesh/probes/redis"
	"flymesh/probes/report"
)

// start runs a real redis-server and returns its address and a client.
func start(t *testing.T, args ...string) (string, *goredis.Client) {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("redis-server is not on the PATH")
		}
		t.Skip("redis-server is not on the PATH (Debian: apt-get install redis-server)")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	l.Close()
	cmd := exec.Command(path, append([]string{"--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", t.TempDir()}, args...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	c := goredis.NewClient(&goredis.Options{Addr: addr})
	t.Cleanup(func() { _ = c.Close() })
	for deadline := time.Now().Add(10 * time.Second); c.Ping(t.Context()).Err() != nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("redis-server does not answer")
		}
	}
	return addr, c
}

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

// enqueue adds jobs as Bull 4 does: the id counter, a hash of the job, the
// list, and for prioritised jobs the set beside it.
func enqueue(t *testing.T, c *goredis.Client, prefix string, jobs int, priority float64, at time.Time) {
	t.Helper()
	ctx := t.Context()
	for range jobs {
		id := strconv.FormatInt(c.Incr(ctx, prefix+":id").Val(), 10)
		c.HSet(ctx, prefix+":"+id, "name", "__default__", "data", `{"executionId":"`+id+`"}`, "opts", `{"priority":100}`,
			"timestamp", at.UnixMilli(), "delay", 0, "priority", priority)
		c.LPush(ctx, prefix+":wait", id)
		if priority > 0 {
			c.ZAdd(ctx, prefix+":priority", goredis.Z{Score: priority, Member: id})
		}
	}
	if err := c.Ping(ctx).Err(); err != nil {
		t.Fatal(err)
	}
}

// cli is redis-cli's answer, the independent reading.
func cli(t *testing.T, addr string, args ...string) string {
	t.Helper()
	host, port, _ := net.SplitHostPort(addr)
	out, err := exec.Command("redis-cli", append([]string{"-h", host, "-p", port}, args...)...).Output()
	if err != nil {
		t.Fatalf("redis-cli %v: %v", args, err)
	}
	return strings.TrimSpace(string(out))
}

func TestDepthIsThatOfRedisCLI(t *testing.T) {
	addr, c := start(t)
	for _, prefix := range []string{DefaultPrefix, "{bull}:jobs"} {
		b := make1(t, Options{Server: redis.Server{Addr: addr}, Prefix: prefix})
		if m := probe(t, b); m.Queue != report.Of(0) || m.QueueScope != report.QueueService || fact(m, "oldest_wait_seconds") != report.Of(0) {
			t.Errorf("%s: no queue yet: %+v", prefix, m)
		}
		enqueue(t, c, prefix, 11, 100, time.Now().Add(-7*time.Second))
		enqueue(t, c, prefix, 6, 0, time.Now())
		// A worker took three, and one waits behind a global pause.
		for range 3 {
			c.LMove(t.Context(), prefix+":wait", prefix+":active", "RIGHT", "LEFT")
		}
		c.LPush(t.Context(), prefix+":paused", "99")
		m := probe(t, b)
		oldest := fact(m, "oldest_wait_seconds")
		t.Logf("%-12s depth %v, redis-cli wait %s + paused %s (priority set %s); active %v, redis-cli %s; oldest %.2f s",
			prefix, m.Queue.X, cli(t, addr, "LLEN", prefix+":wait"), cli(t, addr, "LLEN", prefix+":paused"), cli(t, addr, "ZCARD", prefix+":priority"),
			fact(m, "active_jobs").X, cli(t, addr, "LLEN", prefix+":active"), oldest.X)
		if m.Queue != report.Of(15) || fact(m, "active_jobs") != report.Of(3) || len(m.Problems) != 0 {
			t.Errorf("%s: 14 waiting, 1 paused, 3 active: %+v", prefix, m)
		}
		if oldest.X < 6.9 || oldest.X > 10 {
			t.Errorf("%s: the oldest has waited %v, want 7 s", prefix, oldest)
		}
	}
	c.Set(t.Context(), "bull:jobs:wait", "not a list", 0)
	if m := probe(t, make1(t, Options{Server: redis.Server{Addr: addr}})); m.Queue.OK || len(m.Problems) != 1 || !strings.Contains(m.Problems[0], "WRONGTYPE") {
		t.Errorf("a changed layout: %+v", m)
	}
}

// An empty list under allkeys-lru is no empty queue: the jobs may have been
// evicted, silently.
func TestEvictedQueueIsUnknown(t *testing.T) {
	addr, c := start(t, "--maxmemory", "4mb", "--maxmemory-policy", "allkeys-lru", "--maxmemory-samples", "10")
	b := make1(t, Options{Server: redis.Server{Addr: addr}})
	enqueue(t, c, DefaultPrefix, 20, 100, time.Now())
	if m := probe(t, b); m.Queue != report.Of(20) {
		t.Fatalf("before the pressure: %+v", m)
	}
	chat := strings.Repeat("x", 1000)
	for i := range 6000 {
		c.LPush(t.Context(), fmt.Sprintf("session-%d", i), chat)
	}
	m := probe(t, b)
	t.Logf("redis-cli: wait %s, evicted by info; probe: %+v %q", cli(t, addr, "LLEN", "bull:jobs:wait"), m.Queue, m.Problems)
	if m.Queue.OK || len(m.Problems) != 1 || !strings.Contains(m.Problems[0], "allkeys-lru") {
		t.Errorf("after the eviction: %+v", m)
	}
	// A policy that spares keys without a TTL leaves the jobs alone.
	if err := c.ConfigSet(t.Context(), "maxmemory-policy", "volatile-lru").Err(); err != nil {
		t.Fatal(err)
	}
	c.FlushAll(t.Context())
	enqueue(t, c, DefaultPrefix, 20, 100, time.Now())
	for i := range 6000 {
		c.Set(t.Context(), fmt.Sprintf("chat-%d", i), chat, time.Hour)
	}
	m = probe(t, b)
	t.Logf("volatile-lru: redis-cli wait %s, probe %v", cli(t, addr, "LLEN", "bull:jobs:wait"), m.Queue.X)
	if m.Queue != report.Of(20) {
		t.Errorf("volatile-lru: %+v", m)
	}
}

func TestRefusalAndSilence(t *testing.T) {
	addr, _ := start(t)
	cli(t, addr, "CONFIG", "SET", "requirepass", "secret")
	m := probe(t, make1(t, Options{Server: redis.Server{Addr: addr}}))
	if m.Queue.OK || m.Ready == nil || *m.Ready || !strings.Contains(m.Reason, "NOAUTH") || len(m.Problems) != 1 {
		t.Errorf("without the password: %+v", m)
	}
	if m := probe(t, make1(t, Options{Server: redis.Server{Addr: addr, Password: "secret"}})); m.Queue != report.Of(0) {
		t.Errorf("with the password: %+v", m)
	}
	if m, err := make1(t, Options{Server: redis.Server{Addr: "127.0.0.1:1"}}).Probe(t.Context()); err == nil || m.Queue.OK {
		t.Errorf("nobody listens: %+v", m)
	}
	if _, err := New(Options{Server: redis.Server{Addr: "localhost"}}); err == nil {
		t.Error("an address without a port was accepted")
	}
}
