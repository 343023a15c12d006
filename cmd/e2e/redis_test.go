package e2e

import (
	"strings"
	"testing"
	"time"

	"flymesh/cmd/agentctl/emulator"
	"flymesh/probes/redis/redistest"
)

// redisConfig is a Redis with a candidate, and somebody to form a majority with.
const redisConfig = `
[mesh]
name = "e2e"
anchor_app = "e2e-cache"
report_every = "1s"
discover = ["api"]
drain_timeout = "3s"
[service.cache]
app = "e2e-cache"
kind = "redis"
vote = true
pinned = true
baseline = 2
` + rules + `
[service.cache.redis]
failover = "auto"
failover_after = "5s"
chat_keys = "chat:*"
[[service.cache.probe]]
type = "redis"
addr = "${FLY_PRIVATE_IP}:8080"
[service.worker]
app = "e2e-worker"
kind = "app"
vote = true
` + rules

// redisServer is the command of a Redis that keeps nothing on disk and waits
// for the mesh to say which role it has.
const redisServer = `exec redis-server --bind $FLY_PRIVATE_IP --port 8080 --protected-mode no --save '' --appendonly no --dir /tmp
	--replicaof 127.0.0.1 1 --repl-diskless-sync-delay 0 --loglevel warning`

// pairOfRedis is a mesh with a primary and its candidate.
type pairOfRedis struct{ *mesh }

func newRedis(t *testing.T) *pairOfRedis {
	t.Helper()
	redistest.Path(t)
	p := &pairOfRedis{startWith(t, redisConfig, emulator.Options{Exec: func(service string, argv []string) []string {
		if service != "cache" {
			return argv
		}
		return append(argv[:5:5], "sh", "-c", strings.ReplaceAll(redisServer, "\n", " ")) // argv: agent run --config FILE -- APP ...
	}})}
	return p
}

// pair waits until status shows one primary and one linked replica, both ready
// and in one history: their reports are not of one moment.
func (p *pairOfRedis) pair(limit time.Duration) (primary, replica emulator.Machine) {
	p.t.Helper()
	p.until("a primary and its linked replica", limit, func() bool {
		primary, replica = emulator.Machine{}, emulator.Machine{}
		all, errs := ask(p.t.Context(), p.running(), 3*time.Second, status)
		for i := range all {
			if errs[i] != nil || all[i].Leader == nil {
				continue
			}
			var histories []uint32
			for _, x := range all[i].Machines {
				if x.Replication != nil && x.Replication.Linked {
					histories = append(histories, x.Replication.History)
				}
				switch r := x.Replication; {
				case r == nil || x.Ready == nil || !*x.Ready:
				case !r.Replica && x.Pinned:
					primary = p.byID(x.ID)
				case r.Replica && r.Linked:
					replica = p.byID(x.ID)
				}
			}
			return primary.ID != "" && replica.ID != "" && len(histories) == 2 && histories[0] == histories[1]
		}
		return false
	})
	return primary, replica
}

// asker is a machine that has no Redis.
func (p *pairOfRedis) asker() emulator.Machine { return p.of("worker")[0] }

// told prints what people are told of the Redis from an event on.
func (p *pairOfRedis) told(after int) {
	p.t.Helper()
	for _, e := range p.events()[after:] {
		if strings.HasPrefix(e.Kind, "redis_") || e.Kind == "fence" || e.Kind == "pin" || strings.Contains(e.Reason, "redis/") {
			p.t.Logf("%s %s %s: %s", e.At.Format("05.000"), e.Machine, e.Kind, e.Reason)
		}
	}
}

// TestRedisPromote: agentctl on a machine without a Redis makes the candidate
// the primary, while clients write. No write is lost, and never do two take any.
func TestRedisPromote(t *testing.T) {
	long(t)
	p := newRedis(t)
	primary, replica := p.pair(60 * time.Second)
	out, code := p.agentctl(p.asker(), "status")
	t.Logf("agentctl status: %d\n%s", code, grepped(out, "cache"))
	w := redistest.Poll(t, primary.Addr, replica.Addr)
	p.until("writes", 10*time.Second, func() bool { return w.By(primary.Addr) > 50 })
	begin := time.Now()
	out, code = p.agentctl(p.asker(), "redis", "promote", "--reason", "test")
	took := time.Since(begin)
	if code != 0 {
		t.Fatalf("agentctl redis promote: %d\n%s", code, out)
	}
	p.until("writes at the new primary", 10*time.Second, func() bool { return w.By(replica.Addr) > 50 })
	gap, taken, lost := w.Turn(t, primary.Addr, replica.Addr)
	t.Logf("agentctl redis promote, %s:\n%s", took.Round(10*time.Millisecond), out)
	t.Logf("no writes for %s; %d writes taken by the old primary, %d lost", gap.Round(time.Millisecond), taken, lost)
	if lost != 0 || !strings.Contains(out, "none is lost") {
		t.Errorf("%d writes lost in a planned promotion", lost)
	}
	if a, b := p.pair(30 * time.Second); a.ID != replica.ID || b.ID != primary.ID {
		t.Errorf("primary %s, replica %s", a.ID, b.ID)
	}
	for _, args := range [][]string{{"pressure"}, {"eviction", "volatile-lru"}, {"trim", "--idle", "1h"}} {
		out, code := p.agentctl(p.asker(), append([]string{"redis"}, args...)...)
		if code != 0 || !strings.Contains(out, replica.ID) {
			t.Errorf("agentctl redis %v: %d\n%s", args, code, out)
		}
	}
	if out, code := p.agentctl(p.asker(), "pin", "cache", primary.ID); code != 1 || !strings.Contains(out, "agentctl redis promote cache") {
		t.Errorf("agentctl pin of a Redis: %d %s", code, out)
	}
}

// TestRedisMachineKilled: kill -9 of all processes of the primary's machine,
// which the platform starts again, without its data.
func TestRedisMachineKilled(t *testing.T) {
	long(t)
	p := newRedis(t)
	primary, replica := p.pair(60 * time.Second)
	w := redistest.Poll(t, primary.Addr, replica.Addr)
	p.until("writes", 10*time.Second, func() bool { return w.By(primary.Addr) > 300 })
	before := len(p.events())
	begin := time.Now()
	if err := p.Server().Kill(primary.ID); err != nil {
		t.Fatal(err)
	}
	p.until("writes at the new primary", 2*time.Minute, func() bool { return w.By(replica.Addr) > 50 })
	took := time.Since(begin)
	a, b := p.pair(time.Minute)
	gap, taken, lost := w.Turn(t, primary.Addr, replica.Addr)
	p.told(before)
	t.Logf("kill -9 of the primary's machine: writes again after %s, no writes for %s; %d writes taken by the old primary, %d lost", took.Round(time.Second), gap.Round(time.Second), taken, lost)
	if a.ID != replica.ID || b.ID != primary.ID {
		t.Errorf("primary %s, replica %s", a.ID, b.ID)
	}
	if lost > taken/10 {
		t.Errorf("%d of %d writes lost", lost, taken)
	}
}

// TestRedisMachineFrozen: the primary's machine stands still for longer than
// any lease, and then goes on.
func TestRedisMachineFrozen(t *testing.T) {
	long(t)
	p := newRedis(t)
	primary, replica := p.pair(60 * time.Second)
	w := redistest.Poll(t, primary.Addr, replica.Addr)
	p.until("writes", 10*time.Second, func() bool { return w.By(primary.Addr) > 300 })
	before := len(p.events())
	begin := time.Now()
	if err := p.Server().Freeze(primary.ID); err != nil {
		t.Fatal(err)
	}
	p.until("writes at the new primary", 2*time.Minute, func() bool { return w.By(replica.Addr) > 50 })
	took := time.Since(begin)
	_ = p.Server().Thaw(primary.ID) // it may have been stopped
	time.Sleep(5 * time.Second)     // for what thaws to write, if it could
	gap, taken, lost := w.Turn(t, primary.Addr, replica.Addr)
	p.told(before)
	t.Logf("freeze and thaw of the primary's machine: writes again after %s, no writes for %s; %d writes taken by the old primary, %d lost", took.Round(time.Second), gap.Round(time.Second), taken, lost)
}
