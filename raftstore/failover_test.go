package raftstore_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"flymesh/raftstore"
	"flymesh/raftstore/state"
)

func summary(d []time.Duration) string {
	slices.Sort(d)
	q := func(p float64) time.Duration { return d[int(p*float64(len(d)-1)+0.5)].Round(10 * time.Microsecond) }
	return fmt.Sprintf("n=%d min %s p50 %s p90 %s p99 %s max %s", len(d), q(0), q(.5), q(.9), q(.99), q(1))
}

// committed waits until another machine than the old leader commits.
func (s *sim) committed(old *machine) {
	for {
		for _, m := range s.machines {
			if st := m.up(); m != old && st != nil && st.Status().Role == raftstore.Leader {
				c := state.Command{At: time.Now(), By: "test", Note: &state.Note{Kind: "test"}}
				if _, err := st.Propose(context.Background(), c); err == nil {
					return
				}
			}
		}
		time.Sleep(time.Millisecond)
	}
}

// TestFailover measures, free of scheduling noise, how long the mesh cannot
// commit: leader killed (its connections break), leader cut off (they hang),
// orderly stop. RAFTSTORE_KILLS sets the number of each (default 5).
func TestFailover(t *testing.T) {
	n := envInt("RAFTSTORE_KILLS", 5)
	for _, c := range []struct {
		profile raftstore.Profile
		killed  time.Duration // limit of the median
		limit   time.Duration // of the others' median; a split vote doubles it
	}{
		{raftstore.Fast, 700 * time.Millisecond, 800 * time.Millisecond},
		{raftstore.Default, 800 * time.Millisecond, 1300 * time.Millisecond},
		{raftstore.Wide, 1600 * time.Millisecond, 2600 * time.Millisecond},
	} {
		for _, how := range []string{"killed", "cut off", "stopped"} {
			var took []time.Duration
			synctest.Test(t, func(t *testing.T) {
				s := newSim(t, 5, c.profile)
				s.startAll()
				for range n {
					l := s.voters(3, time.Minute)
					time.Sleep(time.Duration(rand.IntN(5000)) * time.Millisecond)
					begin := time.Now()
					switch how {
					case "killed":
						l.kill()
					case "cut off":
						s.net.Isolate(l.addr, "m1:7947", "m2:7947", "m3:7947", "m4:7947", "m5:7947")
					default:
						go l.stop()
					}
					s.committed(l)
					took = append(took, time.Since(begin))
					time.Sleep(5 * time.Second)
					s.net.HealAll()
					if l.up() == nil {
						l.start()
					}
				}
				if e := s.reg.Record().Epoch; e != 1 {
					t.Errorf("epoch %d", e)
				}
				s.stopAll()
			})
			t.Logf("%-7s leader %-7s: %s", c.profile, how, summary(took))
			limit := c.limit
			switch how {
			case "killed":
				limit = c.killed
			case "stopped":
				limit = 100 * time.Millisecond
			}
			if mid, m := took[len(took)/2], slices.Max(took); mid > limit || m > 2*limit {
				t.Errorf("%s, %s: without a leader for %s, at most %s; want %s", c.profile, how, mid, m, limit)
			}
		}
	}
}

// TestForgedEnd: broken connections and refused calls look like the end of the
// leader's process. To one voter, or for a moment, they change nothing; to all
// of them, the next leader acts only when the old one does no more.
func TestForgedEnd(t *testing.T) {
	for _, profile := range []raftstore.Profile{raftstore.Fast, raftstore.Default} {
		synctest.Test(t, func(t *testing.T) {
			s := newSim(t, 4, profile)
			s.startAll()
			l := s.voters(3, time.Minute)
			term := l.up().Status().Term
			for i := range 40 {
				for _, m := range s.machines {
					if m != l && (i%2 == 0 || m.up().Role() == raftstore.Voter) {
						s.net.Reject(l.addr, m.addr)
						if i%2 == 1 {
							break // from one voter alone
						}
					}
				}
				if i%2 == 0 { // from all of them, for a moment
					time.Sleep(time.Duration(rand.IntN(50)) * time.Millisecond)
					s.net.HealAll()
				}
				time.Sleep(3 * time.Second)
				s.net.HealAll()
				time.Sleep(time.Second)
				if st := l.up().Status(); st.Role != raftstore.Leader || st.Term != term {
					t.Fatalf("%s: forged end %d: the leader is a %s of term %d, was of term %d", profile, i, st.Role, st.Term, term)
				}
			}

			h := &history{ops: map[string][]porcupine.Operation{}}
			ctx, cancel := context.WithCancel(context.Background())
			var wg sync.WaitGroup
			for i, m := range s.machines {
				wg.Go(func() { h.lead(ctx, m, m.up(), rand.New(rand.NewPCG(uint64(i), 3))) })
			}
			var took []time.Duration
			for range 40 {
				l := s.voters(3, time.Minute)
				time.Sleep(time.Duration(rand.IntN(3000)) * time.Millisecond)
				begin := time.Now()
				for _, m := range s.machines {
					if m != l {
						s.net.Reject(l.addr, m.addr)
					}
				}
				s.committed(l)
				took = append(took, time.Since(begin))
				s.net.HealAll()
			}
			cancel()
			wg.Wait()
			h.check(t)
			t.Logf("%s: rejected from all: %s, %d acts", profile, summary(took), len(h.acts))
			s.stopAll()
		})
	}
}
