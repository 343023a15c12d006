package redis

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"flymesh/probes"
	"flymesh/probes/redis/redistest"
)

// look returns the facts of a reading by name: numbers and words.
func look(m probes.Reading) (numbers map[string]float64, words map[string]string) {
	numbers, words = map[string]float64{}, map[string]string{}
	for _, f := range m.Facts {
		if f.Text != "" {
			words[f.Name] = f.Text
		} else {
			numbers[f.Name] = f.Value.X
		}
	}
	return numbers, words
}

func number(t *testing.T, s string) float64 {
	t.Helper()
	x, err := strconv.ParseFloat(s, 64)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// A full server: first it refuses writes, then, with a policy, it evicts.
func TestServerAtItsLimit(t *testing.T) {
	s := redistest.Start(t, "--maxmemory", "6mb", "--maxmemory-policy", "noeviction")
	c, r := s.Client(t), make1(t, Options{Server: Server{Addr: s.Addr}})
	probe(t, r)
	begin := time.Now()
	refused := 0
	value := strings.Repeat("x", 2000)
	for i := range 4000 {
		if err := c.Set(t.Context(), fmt.Sprintf("k%d", i), value, 0).Err(); err != nil {
			if !strings.HasPrefix(err.Error(), "OOM") {
				t.Fatal(err)
			}
			refused++
		}
	}
	m := probe(t, r)
	span := time.Since(begin).Seconds()
	n, w := look(m)
	used, limit := number(t, s.Info(t, "memory", "used_memory")), number(t, s.Info(t, "memory", "maxmemory"))
	t.Logf("noeviction: memory %.4f, redis-cli %.4f; rejected %.0f/s, client counted %d in %.2f s = %.0f/s",
		m.Memory.X, used/limit, n["rejected_writes_per_second"], refused, span, float64(refused)/span)
	if refused == 0 || m.Memory.X < 0.95 || m.Ready == nil || !*m.Ready {
		t.Errorf("%d refused, memory %v, ready %v", refused, m.Memory, m.Ready)
	}
	if got := n["rejected_writes_per_second"] * span; got < 0.9*float64(refused) || got > 1.1*float64(refused) {
		t.Errorf("rejected writes %.0f, the client counted %d", got, refused)
	}
	if n["evicted_keys_per_second"] != 0 || w["eviction_policy"] != "noeviction" || w["memory_limit"] != "maxmemory" || w["role"] != "primary" {
		t.Errorf("facts %v %v", n, w)
	}

	if err := c.ConfigSet(t.Context(), "maxmemory-policy", "allkeys-lru").Err(); err != nil {
		t.Fatal(err)
	}
	probe(t, r)
	before := number(t, s.Info(t, "stats", "evicted_keys"))
	begin = time.Now()
	for i := range 4000 {
		if err := c.Set(t.Context(), fmt.Sprintf("n%d", i), value, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	m = probe(t, r)
	span = time.Since(begin).Seconds()
	n, w = look(m)
	evicted := number(t, s.Info(t, "stats", "evicted_keys")) - before
	t.Logf("allkeys-lru: memory %.4f still; evicted %.0f/s, redis-cli %.0f in %.2f s = %.0f/s", m.Memory.X, n["evicted_keys_per_second"], evicted, span, evicted/span)
	if got := n["evicted_keys_per_second"] * span; evicted == 0 || got < 0.8*evicted || got > 1.1*evicted {
		t.Errorf("evicted %.0f, redis-cli says %.0f", got, evicted)
	}
	if m.Memory.X < 0.9 || n["rejected_writes_per_second"] != 0 || w["eviction_policy"] != "allkeys-lru" {
		t.Errorf("memory %v, facts %v %v", m.Memory, n, w)
	}
	if n["ping_p95_seconds"] <= 0 || n["ping_p95_seconds"] > 1 {
		t.Errorf("round trip %v", n["ping_p95_seconds"])
	}
	// CONFIG RESETSTAT takes the counters back to 0: no negative rate.
	if err := c.ConfigResetStat(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	if n, _ := look(probe(t, r)); n["evicted_keys_per_second"] < 0 || n["rejected_writes_per_second"] < 0 {
		t.Errorf("after a reset: %v", n)
	}
}

// A replica with its link, then with the link cut.
func TestReplicaWithACutLink(t *testing.T) {
	primary := redistest.Start(t, "--repl-diskless-sync-delay", "0")
	host, port, _ := net.SplitHostPort(primary.Addr)
	replica := redistest.Start(t, "--replicaof", host+" "+port, "--repl-timeout", "2")
	p, r := make1(t, Options{Server: Server{Addr: primary.Addr}}), make1(t, Options{Server: Server{Addr: replica.Addr}})
	var m probes.Reading
	poll := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not within 10 s: %s; last %+v", what, m)
			}
		}
	}
	poll("link up", func() bool { m = probe(t, r); return m.Ready != nil && *m.Ready })
	n, w := look(m)
	t.Logf("replica: role %s, link %v; redis-cli role %s, link %s", w["role"], n["primary_link_up"], replica.Info(t, "replication", "role"), replica.Info(t, "replication", "master_link_status"))
	if w["role"] != "replica" || n["primary_link_up"] != 1 {
		t.Errorf("facts %v %v", n, w)
	}
	poll("the primary knows its replica", func() bool { m = probe(t, p); n, _ = look(m); return n["replicas_online"] == 1 })
	_, w = look(m)
	t.Logf("primary: role %s, replicas %v, lag %v bytes, %v s; redis-cli slave0 %s", w["role"], n["replicas_online"], n["replica_lag_bytes"], n["replica_lag_seconds"], primary.Info(t, "replication", "slave0"))
	if w["role"] != "primary" || n["replicas_connected"] != 1 || n["replica_lag_bytes"] > 1<<20 {
		t.Errorf("facts %v %v", n, w)
	}

	primary.Stop()
	poll("link down", func() bool { m = probe(t, r); return !*m.Ready })
	n, _ = look(m)
	t.Logf("cut: not ready, %q; redis-cli link %s", m.Reason, replica.Info(t, "replication", "master_link_status"))
	if n["primary_link_up"] != 0 || !strings.HasPrefix(m.Reason, "replica has no link to its primary") {
		t.Errorf("facts %v, reason %q", n, m.Reason)
	}
	if !m.Memory.OK {
		t.Error("a cut link took the memory with it")
	}
}
