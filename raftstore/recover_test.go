package raftstore_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"flymesh/raftstore"
	"flymesh/raftstore/arbitertest"
	"flymesh/raftstore/epoch"
	"flymesh/raftstore/state"
)

func propose(t *testing.T, m *machine, value int) {
	t.Helper()
	_, err := m.up().Propose(context.Background(), state.Command{At: time.Now(), By: "test", Scale: &state.Scale{Service: "register", Target: value}})
	if err != nil {
		t.Fatalf("propose on %s: %v", m.id, err)
	}
}

func value(st *raftstore.Store) int {
	if m := st.State().Service("register").Manual; m != nil {
		return m.Target
	}
	return 0
}

// TestRestartOfAll: every machine restarts blank at once; a new epoch comes
// within 45 s, and not before the patience of 30 s.
func TestRestartOfAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 5, raftstore.Default)
		s.startAll()
		s.voters(3, 20*time.Second)
		for range 3 {
			was := s.reg.Record().Epoch
			for _, m := range s.machines {
				m.kill()
			}
			time.Sleep(2 * time.Second)
			s.startAll()
			begin := time.Now()
			s.leader(45 * time.Second)
			took := time.Since(begin)
			if e := s.reg.Record().Epoch; e != was+1 || took < 30*time.Second {
				t.Errorf("epoch %d after %d, %s without a leader", e, was, took)
			}
			s.voters(3, 10*time.Second)
			t.Logf("recovered after %s", took)
		}
		s.stopAll()
	})
}

// TestNoRecoveryWithoutProof: two of three voters are cut off, not dead. The
// third founds nothing, for as long as it takes; and nothing committed is lost.
func TestNoRecoveryWithoutProof(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 4, raftstore.Default)
		s.startAll()
		l := s.voters(3, 20*time.Second)
		propose(t, l, 7)
		for _, m := range s.machines {
			s.net.Isolate(m.addr, "m1:7947", "m2:7947", "m3:7947", "m4:7947")
		}
		time.Sleep(10 * time.Minute)
		if r := s.reg.Record(); r.Epoch != 1 {
			t.Errorf("epoch %d founded without proof", r.Epoch)
		}
		s.net.HealAll()
		l = s.leader(30 * time.Second)
		if v := value(l.up()); v != 7 {
			t.Errorf("register is %d after the cut, want 7", v)
		}
		s.stopAll()
	})
}

// TestRollingRestart: machines restart blank one after the other, as a deploy
// does. The epoch and what was committed stay.
func TestRollingRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 4, raftstore.Default)
		s.startAll()
		propose(t, s.voters(3, 20*time.Second), 9)
		for range 2 {
			for _, m := range s.machines {
				m.stop()
				time.Sleep(time.Second)
				m.start()
				s.voters(3, 30*time.Second)
				time.Sleep(5 * time.Second)
			}
		}
		l := s.leader(time.Second)
		if e, v := s.reg.Record().Epoch, value(l.up()); e != 1 || v != 9 {
			t.Errorf("epoch %d, register %d, want 1 and 9", e, v)
		}
		s.stopAll()
	})
}

// TestFounderThatWritesLate: a founder stands still between its lease and its
// write until another has founded and acts. Its write deposes that one; at no
// time do both act, and one cluster remains.
func TestFounderThatWritesLate(t *testing.T) {
	for _, c := range []struct {
		stall, slow time.Duration // slow: of the others' API calls, each way
	}{{25 * time.Second, 0}, {40 * time.Second, 0}, {2 * time.Minute, 0}, {41 * time.Second, 900 * time.Millisecond}, {42 * time.Second, 950 * time.Millisecond}} {
		synctest.Test(t, func(t *testing.T) {
			stall := c.stall
			s := newSim(t, 4, raftstore.Fast)
			var stalled atomic.Bool
			for _, m := range s.machines {
				m.start()
			}
			s.machines[0].arb.Stall(func(call string) {
				if call == "put" && stalled.CompareAndSwap(false, true) {
					time.Sleep(stall)
				}
			})
			if c.slow > 0 {
				for _, m := range s.machines[1:] {
					m.arb.SetLatency(c.slow)
				}
			}
			type sight struct {
				at      time.Time
				cluster string
			}
			var mu sync.Mutex
			var seen []sight
			var wg sync.WaitGroup
			for _, m := range s.machines {
				for range 6 { // Verify again and again, also while others wait for the API
					wg.Go(func() {
						st := m.up()
						for begin := time.Now(); time.Since(begin) < stall+40*time.Second; time.Sleep(time.Duration(rand.IntN(150)) * time.Millisecond) {
							before := st.Status()
							if before.Role == raftstore.Leader && st.Verify(context.Background()) == nil {
								mu.Lock()
								seen = append(seen, sight{time.Now(), before.Cluster})
								mu.Unlock()
							}
						}
					})
				}
			}
			wg.Wait()
			var order []string
			var last time.Time
			for _, x := range seen {
				if len(order) == 0 || order[len(order)-1] != x.cluster {
					if len(order) > 0 && x.at.Sub(last) < 250*time.Millisecond {
						t.Errorf("%s acted %s after %s", x.cluster, x.at.Sub(last), order[len(order)-1])
					}
					order = append(order, x.cluster)
				}
				last = x.at
			}
			t.Logf("stalled %s, others' calls take 2x%s: clusters that acted, in order: %v", stall, c.slow, order)
			if len(order) < 1 || order[len(order)-1] != s.reg.Record().Cluster {
				t.Errorf("record names %s", s.reg.Record().Cluster)
			}
			for i, c := range order {
				for _, d := range order[i+1:] {
					if c == d {
						t.Errorf("cluster %s acted again after it was deposed", c)
					}
				}
			}
			s.voters(3, time.Minute)
			for _, m := range s.machines {
				if c := m.up().Status().Cluster; c != s.reg.Record().Cluster {
					t.Errorf("%s is in %s", m.id, c)
				}
			}
			s.stopAll()
		})
	}
}

// TestDeposedLeader: an island that still has a majority of the old cluster
// is given up when the record names another. It cannot act meanwhile.
func TestDeposedLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 4, raftstore.Default)
		s.startAll()
		l := s.voters(3, 20*time.Second)
		other := s.machines[3]
		if l == other {
			other = s.machines[0]
		}
		term := <-l.up().Terms()
		if err := other.up().Recover(context.Background()); err != nil {
			t.Fatal(err)
		}
		if err := l.up().Verify(context.Background()); !errors.Is(err, raftstore.ErrDeposed) && !errors.Is(err, raftstore.ErrNotLeader) {
			t.Errorf("deposed leader's Verify: %v", err)
		}
		select {
		case <-term.Context.Done():
		case <-time.After(5 * time.Second):
			t.Error("the deposed leader's term goes on")
		}
		n := s.voters(3, time.Minute)
		if st := n.up().Status(); st.Epoch != 2 || st.Leader != other.id {
			t.Errorf("leader is %s in epoch %d", st.Leader, st.Epoch)
		}
		s.stopAll()
	})
}

// TestRecordOverwritten: a writer of an older epoch overwrites the record; the
// living leader puts it back, and Verify fails until then.
func TestRecordOverwritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 4, raftstore.Default)
		s.startAll()
		s.voters(3, 20*time.Second)
		old := s.reg.Record()
		for _, m := range s.machines {
			m.kill()
		}
		s.startAll()
		l := s.voters(3, time.Minute)
		time.Sleep(5 * time.Second)
		s.reg.Overwrite(old)
		if err := l.up().Verify(context.Background()); !errors.Is(err, raftstore.ErrDeposed) {
			t.Errorf("Verify while the record names another: %v", err)
		}
		time.Sleep(5 * time.Second)
		if again := s.leader(time.Second); again != l || s.reg.Record().Epoch != 2 || len(s.reg.Record().Voters) != 3 {
			t.Errorf("leader %s, record %+v", again.id, s.reg.Record())
		}
		s.stopAll()
	})
}

// TestRecordUnreadable: without the record the leader still leads, and nothing is verified.
func TestRecordUnreadable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 3, raftstore.Fast)
		s.startAll()
		l := s.voters(3, 20*time.Second)
		l.arb.SetDown(true)
		if err := l.up().Verify(context.Background()); !errors.Is(err, raftstore.ErrRecordUnreadable) {
			t.Errorf("Verify without the record: %v", err)
		}
		time.Sleep(time.Minute)
		propose(t, l, 3)
		l.arb.SetDown(false)
		if err := l.up().Verify(context.Background()); err != nil {
			t.Errorf("Verify with the record again: %v", err)
		}
		s.stopAll()
	})
}

// TestSuspendedIsNotDead: two of three voters are suspended; nothing is founded.
func TestSuspendedIsNotDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 3, raftstore.Default)
		var suspended atomic.Bool
		s.reg = arbitertest.NewRegister(func(v epoch.Voter) epoch.Fate {
			if suspended.Load() {
				return epoch.Suspended
			}
			return s.fate(v)
		})
		s.startAll()
		l := s.voters(3, 20*time.Second)
		suspended.Store(true)
		for _, m := range s.machines {
			if m != l {
				m.kill()
			}
		}
		time.Sleep(5 * time.Minute)
		if e := s.reg.Record().Epoch; e != 1 {
			t.Errorf("epoch %d founded while the voters were suspended", e)
		}
		suspended.Store(false)
		if got := s.leader(time.Minute); got != l {
			t.Errorf("%s leads", got.id)
		}
		s.stopAll()
	})
}

// TestFounderWithoutArbiter: the flagged machine founds; nothing recovers by
// itself, and a person's order does.
func TestFounderWithoutArbiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 4, raftstore.Default)
		s.noArb = true
		s.startAll()
		if l := s.voters(3, 20*time.Second); l.id != "m1" {
			t.Errorf("%s founded", l.id)
		}
		for _, m := range s.machines[:3] {
			m.kill()
		}
		time.Sleep(5 * time.Minute)
		if st := s.machines[3].up().Status(); st.Leader != "" || st.Reason == "" {
			t.Errorf("without an arbiter: %+v", st)
		}
		if err := s.machines[3].up().Recover(context.Background()); err != nil {
			t.Fatal(err)
		}
		if l := s.leader(10 * time.Second); l.id != "m4" || l.up().Status().Epoch != 2 {
			t.Errorf("%s leads epoch %d", l.id, l.up().Status().Epoch)
		}
		// The founder comes back blank and finds the cluster instead of founding.
		for _, m := range s.machines[:3] {
			m.start()
		}
		s.voters(3, time.Minute)
		if st := s.machines[0].up().Status(); st.Epoch != 2 {
			t.Errorf("the old founder is in epoch %d", st.Epoch)
		}
		s.stopAll()
	})
}

func TestArbiterModel(t *testing.T) {
	g := arbitertest.NewRegister(func(epoch.Voter) epoch.Fate { return epoch.Unknown })
	arbitertest.Conform(t, g.Client(0), g.Client(0))
}
