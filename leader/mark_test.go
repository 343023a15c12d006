package leader_test

import (
	"testing"
	"time"

	"flymesh/leader"
	"flymesh/leader/flyapi/flytest"
	"flymesh/raftstore/state"
)

// TestLateCordon: the answer to a cordon is lost, the machine is given back
// because it is busy, and only then the cordon is carried out. It is taken back
// all the same, by another leader as well.
func TestLateCordon(t *testing.T) {
	for _, heir := range []string{"v0", "v1"} {
		bubble(t, flytest.DefaultTiming(), func(s *stand) {
			s.seed("more", 1, true)
			s.lead("v0")
			s.await("a primary", time.Minute, func() bool { return s.mem().Primary != "" })
			s.armAt(state.StepCordon, flytest.Fault{Action: "cordon", Delay: flytest.Delay(90 * time.Second), Late: true, Count: 1})
			s.raft.also(func(c state.Command) {
				if reaches(c, state.StepDrain) {
					s.mu.Lock()
					defer s.mu.Unlock()
					s.agents[c.Advance.Machine].busy = true
				}
			})
			s.scale(1)
			s.await("the removal to be given up", 2*time.Minute, func() bool { return s.happened("down_abandoned") == 1 })
			s.raft.person(state.Command{By: "ann", Pause: &state.Pause{Service: "n8n", Until: time.Now().Add(time.Hour)}})
			if heir != "v0" {
				s.lead(heir)
			}
			cordoned := func() (n int) {
				for _, m := range s.machines() {
					if m.Cordoned {
						n++
					}
				}
				return n
			}
			s.await("the first cordon to be carried out", 2*time.Minute, func() bool { return cordoned() == 1 })
			s.await("it to be taken back", time.Minute, func() bool { return cordoned() == 0 })
			s.await("its mark to go", 5*time.Minute, func() bool {
				for _, m := range s.machines() {
					if m.Metadata[leader.MetaRemoval] != "" {
						return false
					}
				}
				return true
			})
		})
	}
}

// TestPrimaryTakesTraffic: when the primary is gone, a machine that a deploy
// has left cordoned is not chosen while another one serves, although the deploy
// copied the primary's mark to it.
func TestPrimaryTakesTraffic(t *testing.T) {
	bubble(t, flytest.DefaultTiming(), func(s *stand) {
		s.seed("green", 1, true)
		s.lead("v0")
		s.await("a primary", time.Minute, func() bool { return s.mem().Primary != "" })
		old, green := s.mem().Primary, ""
		s.seed("blue", 1, true)
		person := s.somebody()
		defer person.Close()
		for _, m := range s.machines() {
			if m.Name == "green0" {
				green = m.ID
			}
		}
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(person.Cordon(s.t.Context(), appName, green))
		s.raft.elect("") // or the leader would take the mark off
		must(person.SetMetadata(s.t.Context(), appName, green, leader.MetaPrimary, "n8n"))
		must(person.Stop(s.t.Context(), appName, old, 0))
		s.lead("v1")
		s.await("another primary", 5*time.Minute, func() bool { return s.mem().Primary != old })
		if s.mem().Primary == green {
			t.Errorf("the primary is the cordoned machine\n%s", s.story())
		}
	})
}
