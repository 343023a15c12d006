package leader_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"flymesh/leader"
	"flymesh/leader/flyapi/flytest"
	"flymesh/raftstore/state"
)

// lockOp is one operation of a lock history. free is a step of the leader's.
type lockOp struct {
	call, back        int64
	lock, verb, token string
	id                string // acquire: of the request
	ok, unknown       bool
}

// lockModel is what a lock is to those who use it: one token at a time, each
// greater than the one before.
var lockModel = porcupine.Model{
	Partition: func(all []porcupine.Operation) [][]porcupine.Operation {
		by := map[string][]porcupine.Operation{}
		for _, o := range all {
			by[o.Input.(lockOp).lock] = append(by[o.Input.(lockOp).lock], o)
		}
		var parts [][]porcupine.Operation
		for _, p := range by {
			parts = append(parts, p)
		}
		return parts
	},
	Init: func() any { return [2]string{} }, // current token, newest token
	Step: func(st, in, _ any) (bool, any) {
		now, o := st.([2]string), in.(lockOp)
		switch o.verb {
		case "acquire":
			if now[0] == o.token {
				return true, now
			}
			return now[0] == "" && state.Fence(o.token) > state.Fence(now[1]), [2]string{o.token, o.token}
		case "renew", "check":
			return now[0] == o.token, now
		case "release":
			return now[0] != o.token, now
		case "free":
			if now[0] == o.token {
				now[0] = ""
			}
			return true, now
		}
		return false, now
	},
	DescribeOperation: func(in, _ any) string { o := in.(lockOp); return o.verb + " " + o.lock + " " + o.token },
}

// operations are the part of a history that says something: what was answered,
// and what has happened although no answer came.
func (m *lockSim) operations() (ops []porcupine.Operation) {
	for _, o := range m.history {
		switch {
		case o.verb == "acquire" && o.unknown:
			if o.token = m.granted[o.id]; o.token == "" {
				continue
			}
			o.back = m.seq + 1
		case o.unknown, !o.ok && o.verb != "release":
			continue
		}
		ops = append(ops, porcupine.Operation{Input: o, Call: o.call, Return: o.back})
	}
	return ops
}

func seeds(t *testing.T, usual int) int {
	if n, err := strconv.Atoi(os.Getenv("FLYMESH_SEEDS")); err == nil && n > 0 {
		return n
	}
	if testing.Short() {
		return usual / 10
	}
	return usual
}

// TestLockHistories lets clients on three machines take two locks while leaders
// die, machines are cut off, freeze, stop and start, the API fails and all
// state is lost. No two hold a lock at one time, tokens grow, the history is
// linearizable, and when all is well again every lock can be had.
func TestLockHistories(t *testing.T) {
	n := seeds(t, 100)
	begun, ops := 0, 0
	causes := map[state.Cause]int{}
	for seed := range n {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble(t, flytest.DefaultTiming(), func(s *stand) {
				m := runLocks(t, s, uint64(seed))
				begun += m.begun
				ops += len(m.history)
				for c, k := range m.causes {
					causes[c] += k
				}
			})
		})
		if t.Failed() {
			return
		}
	}
	t.Logf("%d seeds: %d holds, %d operations, freed %v", n, begun, ops, causes)
}

func runLocks(t *testing.T, s *stand, seed uint64) *lockSim {
	s.seed("more", 2, true)
	time.Sleep(time.Minute)
	s.offer(1.5)
	s.lead("v0")
	ctx, cancel := context.WithCancel(context.Background())
	m := newLockSim(ctx, s, seed)
	for _, b := range m.boxes {
		for range 2 {
			m.wg.Go(func() { m.client(b) })
		}
	}
	for range 12 {
		time.Sleep(time.Duration(1+m.n(20)) * time.Second)
		m.harm()
	}
	m.heal()
	probe := &box{id: "probe", sessions: map[string]*work{}}
	for _, l := range simLocks {
		s.await("lock "+l.name+" free again", 5*time.Minute, func() bool {
			w := &work{box: probe, lock: l.name, policy: l.policy, session: "probe-" + l.name}
			a, err := m.ask(probe, leader.LockRequest{Verb: leader.LockAcquire, ID: fmt.Sprint("p", m.n(1<<40)), Lock: l.name, Policy: l.policy,
				Holder: state.Holder{Machine: "probe", App: appName, Boot: "0", Session: w.session}})
			return err == nil && a.OK
		})
	}
	cancel()
	m.wg.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.wrong) > 0 {
		t.Errorf("seed %d:\n%s\n%s", seed, strings.Join(m.wrong, "\n"), s.story())
	}
	if ok := porcupine.CheckOperations(lockModel, m.operations()); !ok {
		t.Errorf("seed %d: the history of %d operations is not linearizable\n%s", seed, len(m.history), s.story())
	}
	return m
}

// harm does one bad thing.
func (m *lockSim) harm() {
	s := m.s
	ids := make([]string, 0, len(m.boxes))
	for id := range m.boxes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	b := m.boxes[ids[m.n(len(ids))]]
	switch m.n(9) {
	case 0, 1:
		s.raft.elect("")
		time.Sleep(time.Duration(m.n(20)) * time.Second)
		s.lead(fmt.Sprintf("v%d", m.n(3)))
	case 2:
		old := s.raft.forget()
		s.raft.elect("")
		m.mu.Lock()
		m.seq++
		from := m.seq
		m.mu.Unlock()
		time.Sleep(time.Duration(m.n(40)) * time.Second)
		s.lead(fmt.Sprintf("v%d", m.n(3)))
		s.await("the locks of the new epoch", 2*time.Minute, func() bool { return s.raft.state().Rebuilt > 0 })
		m.vanished(old, from)
	case 3, 4:
		m.with(func() { b.isolated = !b.isolated })
	case 5, 6:
		m.with(func() {
			if b.frozen {
				m.thaw(b)
			} else {
				b.frozen = true
			}
		})
	case 7:
		_ = s.api.AddFaults(flytest.Fault{Action: "stop", Status: 503, Count: 1 + m.n(4)})
	case 8:
		m.restart(b.id)
	}
}

// vanished takes into the history what was held before all state was lost and
// is not held in the new epoch.
func (m *lockSim) vanished(old *state.State, from int64) {
	now := m.s.raft.state()
	m.with(func() {
		m.seq++
		for name, l := range old.Locks {
			if n := now.Locks[name]; n == nil || n.Token != l.Token {
				m.history = append(m.history, lockOp{call: from, back: m.seq, lock: name, verb: "free", token: l.Token, ok: true})
			}
		}
	})
}

func (m *lockSim) with(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// restart ends a machine, if it runs, and starts it.
func (m *lockSim) restart(id string) {
	ctx, cancel := context.WithTimeout(m.ctx, time.Minute)
	defer cancel()
	cloud := m.s.voters[0].cloud
	_ = cloud.Stop(ctx, appName, id, 0)
	time.Sleep(10 * time.Second)
	_ = cloud.Start(ctx, appName, id)
}

func (m *lockSim) heal() {
	m.s.api.ClearFaults()
	m.with(func() {
		for _, b := range m.boxes {
			m.thaw(b)
			b.isolated = false
		}
		m.quiet = true
	})
	m.s.lead("v1")
}
