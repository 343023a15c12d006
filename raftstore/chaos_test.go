package raftstore_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"flymesh/raftstore"
	"flymesh/raftstore/epoch"
	"flymesh/raftstore/state"
)

func envInt(k string, d int) int {
	if v, err := strconv.Atoi(os.Getenv(k)); err == nil {
		return v
	}
	return d
}

// act is something that a leader did after its checks.
type act struct {
	machine      string
	epoch, term  uint64
	verified, at time.Time
}

// history is what clients saw: a register, and what leaders did.
type history struct {
	mu   sync.Mutex
	ops  map[string][]porcupine.Operation // by cluster
	acts []act
	read []struct { // verified sights of the epoch
		from, to time.Time
		epoch    uint64
	}
}

type regIn struct {
	write bool
	value int
}

var register = porcupine.Model{
	Init: func() any { return 0 },
	Step: func(st, in, out any) (bool, any) {
		i := in.(regIn)
		if i.write {
			return true, i.value
		}
		return out.(int) == st.(int), st
	},
}

// client writes and reads one register at whoever leads, until ctx ends.
func (h *history) client(ctx context.Context, s *sim, id int, r *rand.Rand) {
	for n := 0; ctx.Err() == nil; n++ {
		time.Sleep(time.Duration(100+r.IntN(900)) * time.Millisecond)
		m := s.machines[r.IntN(len(s.machines))]
		st := m.up()
		if st == nil {
			continue
		}
		was := st.Status()
		if was.Role != raftstore.Leader {
			continue
		}
		from := time.Now()
		if r.IntN(2) == 0 {
			v := id*1_000_000 + n + 1
			pctx, cancel := context.WithTimeout(ctx, 4*time.Second)
			_, err := st.Propose(pctx, state.Command{ID: fmt.Sprint(v), At: from, By: "client", Scale: &state.Scale{Service: "register", Target: v}})
			cancel()
			if errors.Is(err, raftstore.ErrNotLeader) {
				continue
			}
			op := porcupine.Operation{ClientId: id, Input: regIn{true, v}, Call: from.UnixNano(), Return: time.Now().UnixNano()}
			if err != nil {
				op.Return = -1 // at the end: it may still happen
			}
			if now := st.Status(); now.Cluster != was.Cluster && err == nil {
				s.t.Errorf("%s changed cluster within a successful proposal", m.id)
			}
			h.add(was.Cluster, op)
			continue
		}
		value := 0
		if man := st.State().Service("register").Manual; man != nil {
			value = man.Target
		}
		if st.Verify(ctx) != nil {
			continue
		}
		now := st.Status()
		if now.Cluster != was.Cluster || now.Term != was.Term {
			continue
		}
		to := time.Now()
		h.add(was.Cluster, porcupine.Operation{ClientId: id, Input: regIn{}, Output: value, Call: from.UnixNano(), Return: to.UnixNano()})
		h.mu.Lock()
		h.read = append(h.read, struct {
			from, to time.Time
			epoch    uint64
		}{from, to, was.Epoch})
		h.mu.Unlock()
	}
}

func (h *history) add(cluster string, op porcupine.Operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops[cluster] = append(h.ops[cluster], op)
}

// lead acts on behalf of one machine's leaderships, each time after Verify and
// within 250 ms of it.
func (h *history) lead(ctx context.Context, m *machine, st *raftstore.Store, r *rand.Rand) {
	for {
		select {
		case <-ctx.Done():
			return
		case term := <-st.Terms():
			for term.Context.Err() == nil && ctx.Err() == nil {
				time.Sleep(time.Duration(r.IntN(800)) * time.Millisecond)
				if st.Verify(term.Context) != nil {
					continue
				}
				verified := time.Now()
				time.Sleep(time.Duration(r.IntN(250)) * time.Millisecond)
				if term.Context.Err() != nil || m.up() != st {
					continue
				}
				h.mu.Lock()
				h.acts = append(h.acts, act{m.id, term.Epoch, term.Number, verified, time.Now()})
				h.mu.Unlock()
			}
		}
	}
}

// check holds the history against the promises.
func (h *history) check(t testing.TB) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for cluster, ops := range h.ops {
		end := time.Now().UnixNano()
		for i := range ops {
			if ops[i].Return < 0 {
				ops[i].Return = end
			}
		}
		if res := porcupine.CheckOperationsTimeout(register, ops, 20*time.Second); res != porcupine.Ok {
			t.Errorf("history of %d operations in cluster %s: %s", len(ops), cluster, res)
		}
	}
	slices.SortFunc(h.acts, func(a, b act) int { return a.at.Compare(b.at) })
	for i := 1; i < len(h.acts); i++ {
		a, b := h.acts[i-1], h.acts[i]
		if a.machine == b.machine && a.epoch == b.epoch && a.term == b.term {
			continue
		}
		if c := cmp.Or(cmp.Compare(a.epoch, b.epoch), cmp.Compare(a.term, b.term)); c >= 0 || b.verified.Before(a.at) {
			t.Errorf("two leaders acted at once: %+v, then %+v", a, b)
		}
	}
	slices.SortFunc(h.read, func(a, b struct {
		from, to time.Time
		epoch    uint64
	}) int {
		return a.to.Compare(b.to)
	})
	for i, a := range h.read {
		for _, b := range h.read[i+1:] {
			if b.from.After(a.to) && b.epoch < a.epoch {
				t.Errorf("epoch went back from %d to %d", a.epoch, b.epoch)
			}
		}
	}
}

// justified checks a new epoch against what is true at that moment: the
// recorded voters that still live must be too few for a majority.
func (s *sim) justified(before, after epoch.Record) {
	if after.Epoch <= before.Epoch || before.Zero() || before.Founder.ID() == after.Founder.ID() {
		return // the last: what it could not finish was never a cluster
	}
	living := 0
	var names []string
	for _, v := range before.Voters {
		for _, m := range s.machines {
			if m.id == v.Machine {
				if st := m.up(); st != nil && st.Status().Server == v.ID() && !v.Pending {
					living++
					names = append(names, v.ID())
				}
			}
		}
	}
	if 2*living > len(before.Voters) {
		s.t.Errorf("epoch %d founded although a majority lives: %v of %+v", after.Epoch, names, before.Voters)
	}
}

// chaos runs one random schedule in a bubble and then expects the mesh to be whole.
func chaos(t *testing.T, seed uint64) (acts, ops, epochs int) {
	synctest.Test(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := newSim(t, 4+r.IntN(3), []raftstore.Profile{raftstore.Default, raftstore.Fast}[r.IntN(2)])
		s.reg.Watch(s.justified)
		h := &history{ops: map[string][]porcupine.Operation{}}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		boot := func(m *machine) {
			m.start()
			st, lr := m.up(), rand.New(rand.NewPCG(r.Uint64(), 2))
			wg.Go(func() { h.lead(ctx, m, st, lr) })
		}
		for _, m := range s.machines {
			boot(m)
		}
		for i := range 3 {
			cr := rand.New(rand.NewPCG(seed, uint64(10+i)))
			wg.Go(func() { h.client(ctx, s, i+1, cr) })
		}
		s.leader(time.Minute)
		addrs := make([]string, len(s.machines))
		for i, m := range s.machines {
			addrs[i] = m.addr
		}
		for range 12 {
			time.Sleep(time.Duration(r.IntN(20_000)) * time.Millisecond)
			m := s.machines[r.IntN(len(s.machines))]
			switch r.IntN(13) {
			case 0, 1:
				m.kill()
			case 2:
				if m.up() != nil { // blank at once: gossip may not even notice
					m.kill()
					boot(m)
				}
			case 3:
				if m.up() != nil {
					m.stop()
					boot(m)
				}
			case 4, 5:
				s.net.Isolate(m.addr, addrs...)
			case 6:
				s.net.Cut(m.addr, addrs[r.IntN(len(addrs))])
			case 7:
				s.net.HealAll()
			case 8:
				for _, m := range s.machines {
					if r.IntN(4) > 0 && m.up() != nil {
						m.kill()
						boot(m)
					}
				}
			case 9: // its next founding writes late
				stall, once := time.Duration(r.IntN(60))*time.Second, sync.Once{}
				if m.arb != nil {
					m.arb.Stall(func(call string) {
						if st := m.up(); call == "write" && st != nil && st.Status().Role == raftstore.None {
							once.Do(func() { time.Sleep(stall) })
						}
					})
				}
			case 10:
				if m.arb != nil {
					m.arb.SetDown(r.IntN(2) == 0)
				}
			case 11, 12: // looks to some like the end of its process
				for _, a := range addrs {
					if a != m.addr && r.IntN(3) > 0 {
						s.net.Reject(m.addr, a)
					}
				}
			}
			for _, m := range s.machines {
				if m.up() == nil && r.IntN(3) == 0 {
					boot(m)
				}
			}
		}
		s.net.HealAll()
		for _, m := range s.machines {
			if m.up() == nil {
				boot(m)
			}
			m.arb.SetDown(false)
		}
		s.voters(3, 3*time.Minute)
		time.Sleep(10 * time.Second)
		cancel()
		wg.Wait()
		h.check(t)
		for _, l := range h.ops {
			ops += len(l)
		}
		acts, epochs = len(h.acts), int(s.reg.Record().Epoch)
		if t.Failed() {
			s.dump()
		}
		s.stopAll()
	})
	return acts, ops, epochs
}

// TestChaos runs random schedules: RAFTSTORE_SEEDS says how many (default
// 10), RAFTSTORE_SEED the first one.
func TestChaos(t *testing.T) {
	first, n := envInt("RAFTSTORE_SEED", 1), envInt("RAFTSTORE_SEEDS", 10)
	var acts, ops, epochs int
	begin := time.Now()
	for i := range n {
		a, o, e := chaos(t, uint64(first+i))
		acts, ops, epochs = acts+a, ops+o, epochs+e
		if t.Failed() {
			t.Fatalf("seed %d failed", first+i)
		}
	}
	t.Logf("%d schedules: %d operations, %d acts, %d epochs in %s", n, ops, acts, epochs, time.Since(begin).Round(time.Millisecond))
}
