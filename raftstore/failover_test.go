package raftstore_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

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
		limit   time.Duration // of the median; a split vote doubles it
	}{{raftstore.Fast, 1500 * time.Millisecond}, {raftstore.Default, 3 * time.Second}, {raftstore.Wide, 6 * time.Second}} {
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
			if how == "stopped" {
				limit = 100 * time.Millisecond
			}
			if mid, m := took[len(took)/2], slices.Max(took); mid > limit || m > 2*limit {
				t.Errorf("%s, %s: without a leader for %s, at most %s; want %s", c.profile, how, mid, m, limit)
			}
		}
	}
}
