package redis

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	proberedis "flymesh/probes/redis"
	"flymesh/probes/redis/redistest"
)

func of(s *redistest.Server) *Redis { return New(proberedis.Server{Addr: s.Addr}, s.Addr, nil) }

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// pair is a primary and its replica, in step.
func pair(t *testing.T) (a, b *redistest.Server) {
	t.Helper()
	a = redistest.Start(t, "--repl-diskless-sync-delay", "0")
	b = redistest.Start(t, "--repl-diskless-sync-delay", "0", "--replicaof", "127.0.0.1 1")
	if _, err := of(b).Follow(t.Context(), a.Addr); err != nil {
		t.Fatal(err)
	}
	until(t, "the replica is linked", func() bool {
		x, err1 := of(a).State(t.Context())
		y, err2 := of(b).State(t.Context())
		return err1 == nil && err2 == nil && x.Linked && y.Linked && x.History == y.History
	})
	return a, b
}

// once is a client that tries each command once.
func once(t *testing.T, s *redistest.Server) *goredis.Client {
	c := goredis.NewClient(&goredis.Options{Addr: s.Addr, MaxRetries: -1})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestHandOverLosesNoWrite(t *testing.T) {
	a, b := pair(t)
	w := redistest.Poll(t, a.Addr, b.Addr)
	// A client that writes to whoever takes it, and remembers what was taken.
	var taken []string
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	ca, cb := once(t, a), once(t, b)
	go func() {
		defer close(done)
		for n := 0; ctx.Err() == nil; n++ {
			key := fmt.Sprintf("w:%d", n)
			if ca.Set(ctx, key, "x", 0).Err() == nil || cb.Set(ctx, key, "x", 0).Err() == nil {
				taken = append(taken, key)
			}
		}
	}()
	time.Sleep(200 * time.Millisecond)
	begin := time.Now()
	sa, err := of(a).HandOver(t.Context(), b.Addr)
	if err != nil {
		t.Fatal(err)
	}
	handed := time.Since(begin)
	sb, err := of(b).Promote(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(begin)
	time.Sleep(200 * time.Millisecond)
	until(t, "the old primary copies the new one", func() bool { s, err := of(a).State(t.Context()); return err == nil && s.Linked })
	cancel()
	<-done
	gap, _, _ := w.Turn(t, a.Addr, b.Addr)
	lost := 0
	for _, key := range taken {
		if cb.Exists(t.Context(), key).Val() == 0 {
			lost++
		}
	}
	t.Logf("handed over in %s, writable again after %s; offsets %d and %d; %d writes taken, %d lost; no writes for %s; syncs in full at the new primary: %s, in part: %s",
		handed, took, sa.Offset, sb.Offset, len(taken), lost, gap, b.Info(t, "stats", "sync_full"), b.Info(t, "stats", "sync_partial_ok"))
	if lost != 0 || sa.Offset != sb.Offset || sa.Writable || sb.Replica {
		t.Errorf("lost %d, states %+v %+v", lost, sa, sb)
	}
	if full := b.Info(t, "stats", "sync_full"); full != "0" {
		t.Errorf("the old primary copied all anew: %s", full)
	}
}

func TestHandOverRefuses(t *testing.T) {
	a, b := pair(t)
	other := redistest.Start(t)
	for addr, want := range map[string]string{other.Addr: "does not copy this one", "127.0.0.1:1": "refused"} {
		if _, err := of(a).HandOver(t.Context(), addr); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("hand over to %s: %v, want %q", addr, err, want)
		}
	}
	// A replica that stands still: the pause ends and the primary is what it was.
	if err := b.Client(t).Do(t.Context(), "client", "pause", "60000", "all").Err(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	if _, err := of(a).HandOver(ctx, b.Addr); err == nil {
		t.Error("handed over to a server that does not answer")
	}
	if err := a.Client(t).Set(t.Context(), "k", "v", 0).Err(); err != nil {
		t.Errorf("the primary takes no writes after a hand-over that failed: %v", err)
	}
	if _, port, _ := net.SplitHostPort(b.Addr); !strings.Contains(a.Info(t, "replication", "slave0"), "port="+port) {
		t.Error("the replica is not announced by its own address")
	}
}

func TestFollowNobody(t *testing.T) {
	a := redistest.Start(t, "--requirepass", "secret")
	r := New(proberedis.Server{Addr: a.Addr, Password: "secret"}, a.Addr, nil)
	s, err := r.Follow(t.Context(), Nobody)
	if err != nil || s.Writable || !s.Replica || s.Linked || s.Primary != Nobody {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err = r.Promote(t.Context()); err != nil || !s.Writable {
		t.Errorf("%+v, %v", s, err)
	}
}

func number(t *testing.T, s string) float64 {
	t.Helper()
	x, err := strconv.ParseFloat(s, 64)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// slowest sends PINGs until the function that it returns is called, which says
// how long the slowest took.
func slowest(t *testing.T, c *goredis.Client) func() time.Duration {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan time.Duration)
	go func() {
		var worst time.Duration
		for ctx.Err() == nil {
			begin := time.Now()
			if c.Ping(ctx).Err() == nil {
				worst = max(worst, time.Since(begin))
			}
			time.Sleep(2 * time.Millisecond)
		}
		done <- worst
	}()
	return func() time.Duration { cancel(); return <-done }
}
