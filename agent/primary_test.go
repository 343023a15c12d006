package agent

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"flymesh/agent/api"
	"flymesh/agent/redis"
	"flymesh/leader"
	proberedis "flymesh/probes/redis"
	"flymesh/probes/redis/redistest"
	"flymesh/raftstore/state"
)

// redisLease is short, but longer than a renewal and all margins.
const redisLease = 9 * time.Second

// redisMesh is a leader with one fenced lock and one pin, and the machines that
// it reaches.
type redisMesh struct {
	mu     sync.Mutex // guards all below
	pin    string
	n      int
	lock   state.Lock // Token "": free
	cut    map[string]bool
	notes  []string
	agents map[string]*redisNode
}

// redisNode is one machine: a real Redis and what keeps its role.
type redisNode struct {
	id     string
	server *redistest.Server
	keeper *redisPrimary
	stop   func()
}

func (m *redisMesh) ask(from string) func(context.Context, leader.LockRequest) (leader.LockAnswer, error) {
	return func(_ context.Context, r leader.LockRequest) (leader.LockAnswer, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.cut[from] {
			return leader.LockAnswer{}, api.ErrNoLeader
		}
		switch r.Verb {
		case leader.LockAcquire:
			if m.lock.Token != "" && m.lock.Holder.Session != r.Holder.Session {
				h := m.lock.Holder
				return leader.LockAnswer{Holder: &h, Why: "held"}, nil
			}
			if m.lock.Token == "" {
				m.n++
				m.lock = state.Lock{Name: r.Lock, Token: fmt.Sprintf("1-%d", m.n), Policy: r.Policy, Holder: r.Holder}
			}
			return leader.LockAnswer{OK: true, Token: m.lock.Token, Lease: redisLease}, nil
		case leader.LockRelease:
			if m.lock.Token == r.Token {
				m.lock = state.Lock{}
			}
			return leader.LockAnswer{OK: true}, nil
		}
		return leader.LockAnswer{OK: m.lock.Token == r.Token, Token: r.Token, Lease: redisLease, Why: "lost"}, nil
	}
}

func (m *redisMesh) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// node starts the agent's part on a machine whose Redis runs.
func (m *redisMesh) node(t *testing.T, id string, s *redistest.Server) *redisNode {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	locks, err := openLocks(state.Holder{Machine: id, App: "a", Boot: fmt.Sprint("b", time.Now().UnixNano())}, filepath.Join(t.TempDir(), "s"), log, m.ask(id))
	if err != nil {
		t.Fatal(err)
	}
	p := &redisPrimary{
		redis: redis.New(proberedis.Server{Addr: s.Addr}, s.Addr, nil), locks: locks, lock: "redis/r", session: "redis-" + id, self: id,
		primary: func(context.Context) (string, error) {
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.cut[id] {
				return "", api.ErrNoLeader
			}
			return m.pin, nil
		},
		others: func() (ids []string) {
			m.mu.Lock()
			defer m.mu.Unlock()
			for other := range m.agents {
				if other != id {
					ids = append(ids, other)
				}
			}
			return ids
		},
		addr: func(machine string) string {
			m.mu.Lock()
			defer m.mu.Unlock()
			if n := m.agents[machine]; n != nil {
				return n.server.Addr
			}
			return ""
		},
		tell: func(_ context.Context, kind, reason string) {
			m.set(func() { m.notes = append(m.notes, id+" "+kind+": "+reason) })
		},
		stay: func(_ context.Context, reason string) {
			m.set(func() { m.pin = id; m.notes = append(m.notes, id+" stays: "+reason) })
		},
		log: log,
	}
	locks.ends[p.lock] = p.demote
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = locks.run(ctx) })
	wg.Go(func() { _ = p.run(ctx) })
	n := &redisNode{id: id, server: s, keeper: p, stop: sync.OnceFunc(func() { cancel(); wg.Wait() })}
	t.Cleanup(n.stop)
	m.set(func() { m.agents[id] = n })
	return n
}

func newRedisMesh() *redisMesh {
	return &redisMesh{pin: "a", cut: map[string]bool{}, agents: map[string]*redisNode{}}
}

// standby are the arguments of a Redis that waits for the mesh.
var standby = []string{"--replicaof", "127.0.0.1 1", "--repl-diskless-sync-delay", "0"}

func writable(t *testing.T, n *redisNode) bool {
	t.Helper()
	return n.server.Client(t).Set(t.Context(), "probe", "x", 0).Err() == nil
}

func linked(n *redisNode) bool {
	st, err := n.keeper.look(context.Background())
	return err == nil && st.Replica && st.Linked
}

func TestRedisIsHandedOver(t *testing.T) {
	t.Parallel()
	m := newRedisMesh()
	sa, sb := redistest.Start(t, standby...), redistest.Start(t, standby...)
	a, b := m.node(t, "a", sa), m.node(t, "b", sb)
	until(t, "the pinned one takes writes", func() bool { return writable(t, a) })
	until(t, "the other copies it", func() bool { return linked(b) })
	w := redistest.Poll(t, sa.Addr, sb.Addr)
	until(t, "writes", func() bool { return w.By(sa.Addr) > 50 })
	m.set(func() { m.pin = "b" })
	until(t, "the new primary takes writes", func() bool { return w.By(sb.Addr) > 50 })
	gap, taken, lost := w.Turn(t, sa.Addr, sb.Addr)
	until(t, "the old primary copies the new one", func() bool { return linked(a) })
	t.Logf("switch: no writes for %s; %d writes taken before it, %d lost; full syncs at the new primary %s", gap, taken, lost, sb.Info(t, "stats", "sync_full"))
	if lost != 0 {
		t.Errorf("%d writes lost in a planned switch", lost)
	}
	m.set(func() { t.Logf("events: %q", m.notes) })

	// A candidate that copies something else is not waited for longer than is
	// said, and until then nothing changes.
	other := redistest.Start(t, standby...)
	m.set(func() { m.agents["c"] = &redisNode{id: "c", server: other}; m.pin = "c" })
	time.Sleep(2 * time.Second)
	if !writable(t, b) {
		t.Error("the primary gave up for a machine that has not its data")
	}
}

func TestRedisFailsOver(t *testing.T) {
	t.Parallel()
	m := newRedisMesh()
	sa, sb := redistest.Start(t, standby...), redistest.Start(t, standby...)
	a, b := m.node(t, "a", sa), m.node(t, "b", sb)
	until(t, "the pinned one takes writes", func() bool { return writable(t, a) })
	until(t, "the other copies it", func() bool { return linked(b) })
	w := redistest.Poll(t, sa.Addr, sb.Addr)
	until(t, "writes", func() bool { return w.By(sa.Addr) > 200 })

	// The machine dies at once: Redis and agent. Nobody is promoted before the
	// platform says so, which is when the leader frees the lock.
	// The candidate has lost its link a moment before the machine dies, at once:
	// Redis and agent.
	b.stop()
	if _, err := b.keeper.redis.Follow(t.Context(), redis.Nobody); err != nil {
		t.Fatal(err)
	}
	behind, err := b.keeper.look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	before := w.By(sa.Addr)
	until(t, "writes that are not copied", func() bool { return w.By(sa.Addr) > before+20 })
	last, err := a.keeper.look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m.set(func() { m.cut["a"] = true })
	sa.Stop()
	a.stop()
	b = m.node(t, "b", sb)
	// Nobody is promoted before the platform says so, which is when the leader
	// frees the lock.
	m.set(func() { m.pin = "b" })
	time.Sleep(time.Second)
	if n := w.By(sb.Addr); n > 0 {
		t.Errorf("%d writes taken before the old primary was proven gone", n)
	}
	m.set(func() { m.lock = state.Lock{} })
	until(t, "the candidate takes writes", func() bool { return w.By(sb.Addr) > 20 })
	// The old machine comes back with its old data, and does not take a write.
	sa2 := redistest.StartAt(t, sa.Addr, standby...)
	m.set(func() { m.cut["a"] = false })
	a2 := m.node(t, "a", sa2)
	until(t, "the old primary copies the new one", func() bool { return linked(a2) })
	_, taken, lost := w.Turn(t, sa.Addr, sb.Addr)
	t.Logf("fail-over: %d writes taken by the old primary, %d lost with it; the candidate was %d bytes behind (%d of %d), same history %v",
		taken, lost, last.Offset-behind.Offset, behind.Offset, last.Offset, last.History == behind.History)
	if lost < 20 || last.Offset <= behind.Offset || last.History != behind.History {
		t.Error("the offsets do not tell that writes were lost")
	}
	if writable(t, a2) {
		t.Error("the old primary takes writes")
	}
}

// TestRedisWithoutALeader: who cannot renew takes no writes before the lease
// ends, and goes on by itself when it can.
func TestRedisWithoutALeader(t *testing.T) {
	t.Parallel()
	m := newRedisMesh()
	a := m.node(t, "a", redistest.Start(t, standby...))
	until(t, "the pinned one takes writes", func() bool { return writable(t, a) })
	begin := time.Now()
	m.set(func() { m.cut["a"] = true })
	until(t, "it takes no more writes", func() bool { return !writable(t, a) })
	if took := time.Since(begin); took > redisLease {
		t.Errorf("it took writes for %s without a leader, its lease is %s", took, redisLease)
	} else {
		t.Logf("no writes %s after the leader was gone; the lease is %s", took.Round(100*time.Millisecond), redisLease)
	}
	m.set(func() { m.cut["a"] = false })
	until(t, "it takes writes again", func() bool { return writable(t, a) })
}

// TestRedisThatStartsWritable: one that was not started as a standby is made
// one before the mesh has said who is primary.
func TestRedisThatStartsWritable(t *testing.T) {
	t.Parallel()
	m := newRedisMesh()
	m.pin = "b"
	s := redistest.Start(t)
	s.Client(t).Set(t.Context(), "k", "v", 0)
	a := m.node(t, "a", s)
	until(t, "it takes no writes", func() bool { return !writable(t, a) })
	m.set(func() { m.pin = "a" })
	until(t, "it takes writes", func() bool { return writable(t, a) })
	if v := s.Client(t).Get(t.Context(), "k").Val(); v != "v" {
		t.Errorf("its data are gone: %q", v)
	}

	// It comes back without its data while another has some: that one would copy
	// nothing over everything.
	other := redistest.Start(t, standby...)
	if _, err := redis.New(proberedis.Server{Addr: other.Addr}, other.Addr, nil).Follow(t.Context(), s.Addr); err != nil {
		t.Fatal(err)
	}
	until(t, "the other has the data", func() bool { return other.Client(t).Get(t.Context(), "k").Val() == "v" })
	m.set(func() { m.agents["c"] = &redisNode{id: "c", server: other} })
	s.Stop()
	s = redistest.StartAt(t, s.Addr, standby...)
	until(t, "people are told", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return strings.Contains(strings.Join(m.notes, " "), "redis_empty")
	})
	if writable(t, a) || other.Client(t).Get(t.Context(), "k").Val() != "v" {
		t.Error("an empty Redis takes writes while another has data")
	}
	m.set(func() { delete(m.agents, "c"); t.Logf("events: %q", m.notes) })
	until(t, "it takes writes when it is alone", func() bool { return writable(t, a) })

	// The leader ends the hold: nothing runs under it any more.
	m.mu.Lock()
	held := m.lock
	m.pin = "b"
	m.mu.Unlock()
	if got := a.keeper.locks.endLock(held); !got.Gone || writable(t, a) {
		t.Errorf("ended by the leader: %+v, writable %v", got, writable(t, a))
	}
	// Of a Redis that does not run, nothing takes writes.
	s.Stop()
	if gone, why := a.keeper.demote(); !gone {
		t.Errorf("a Redis that is gone is not taken for it: %s", why)
	}
}
