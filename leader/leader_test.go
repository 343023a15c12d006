package leader_test

import (
	"testing"
	"time"

	"flymesh/leader/flyapi/flytest"
	"flymesh/raftstore/state"
)

// TestSpikeAndFall is the strategy from end to end in virtual time, with the
// default durations: one machine more and one more up to the cap, no further,
// then one fewer and one fewer, and the primary stays.
func TestSpikeAndFall(t *testing.T) {
	bubble(t, flytest.FlyTiming(), func(s *stand) {
		s.lead("v0")
		s.await("a primary", time.Minute, func() bool { return s.raft.state().Service("n8n").Primary != "" })
		primary := s.raft.state().Service("n8n").Primary

		s.offer(2.6)
		first := s.await("a second machine", 10*time.Minute, func() bool { return len(s.started()) == 2 })
		if first < 3*time.Minute || first > 4*time.Minute {
			t.Errorf("second machine after %s, want 3 to 4 m after the load came\n%s", first, s.story())
		}
		second := s.await("a third machine", 20*time.Minute, func() bool { return len(s.started()) == 3 })
		if second < 5*time.Minute {
			t.Errorf("third machine %s after the second: the cooldown is 5 m", second)
		}
		s.offer(6)
		time.Sleep(30 * time.Minute)
		if n := len(s.machines()); n != 3 {
			t.Fatalf("%d machines at the cap of 3\n%s", n, s.story())
		}
		s.offer(0.2)
		s.await("back to one", time.Hour, func() bool { return len(s.started()) == 1 && len(s.raft.state().Ops) == 0 })
		if got := s.started(); got[0] != primary {
			t.Errorf("machine %s is left, the primary is %s", got[0], primary)
		}
		s.offer(2.6)
		s.await("three again", time.Hour, func() bool { return len(s.started()) == 3 })
		if n := s.calls("create"); n != 2 {
			t.Errorf("%d creates: the stopped machines should have been started again\n%s", n, s.story())
		}
	})
}

// TestLeaderChangeKeepsClocks kills the leader while a rule's clock and a
// cooldown run: the next leader goes on where they stood.
func TestLeaderChangeKeepsClocks(t *testing.T) {
	run := func(t *testing.T, change bool) (up, second time.Duration) {
		bubble(t, flytest.FlyTiming(), func(s *stand) {
			s.lead("v0")
			time.Sleep(2 * time.Minute)
			s.offer(2.6)
			from := time.Now()
			begun := func(n int) func() bool {
				return func() bool {
					k := 0
					for _, e := range s.raft.state().Events {
						if e.Kind == string(state.OpUp) {
							k++
						}
					}
					return k >= n
				}
			}
			time.Sleep(2 * time.Minute)
			if change {
				s.lead("v1")
			}
			s.await("first step", 10*time.Minute, begun(1))
			up = time.Since(from)
			time.Sleep(2 * time.Minute)
			if change {
				s.lead("v2")
			}
			s.await("second step", 20*time.Minute, begun(2))
			second = time.Since(from)
		})
		return up, second
	}
	up, second := run(t, false)
	upC, secondC := run(t, true)
	t.Logf("first step after %s, with a leader change %s; second after %s, with another change %s", up, upC, second, secondC)
	for _, d := range []time.Duration{upC - up, secondC - second} {
		if d.Abs() > every+time.Second {
			t.Errorf("a leader change moved a clock by %s, more than one report interval of %s", d, every)
		}
	}
}

// TestSilentMachineBlocksRemoval mutes one agent of three while the load is
// gone: nothing may be removed on missing data.
func TestSilentMachineBlocksRemoval(t *testing.T) {
	bubble(t, flytest.FlyTiming(), func(s *stand) {
		s.lead("v0")
		s.offer(2.6)
		s.await("three machines", time.Hour, func() bool { return len(s.started()) == 3 })
		time.Sleep(10 * time.Minute)
		s.mu.Lock()
		for _, id := range s.started() {
			if id != s.raft.state().Service("n8n").Primary {
				s.agents[id].mute = true
				break
			}
		}
		s.mu.Unlock()
		s.offer(0.1)
		time.Sleep(2 * time.Hour)
		if n := len(s.started()); n != 3 {
			t.Errorf("%d machines run: one was removed although another was silent\n%s", n, s.story())
		}
	})
}

// TestAPIDown holds through an outage and goes on after it.
func TestAPIDown(t *testing.T) {
	bubble(t, flytest.FlyTiming(), func(s *stand) {
		s.lead("v0")
		time.Sleep(2 * time.Minute)
		if err := s.api.AddFaults(flytest.Fault{Status: 500}); err != nil {
			t.Fatal(err)
		}
		s.offer(2.6)
		time.Sleep(30 * time.Minute)
		if n := len(s.machines()); n != 1 {
			t.Fatalf("%d machines after an outage", n)
		}
		v, ok := s.voters[0].leader.View()
		if !ok || v.Verdicts[0].Reason.Code != "api_down" {
			t.Fatalf("verdict during the outage: %+v", v.Verdicts)
		}
		s.api.ClearFaults()
		s.await("a second machine after the outage", 5*time.Minute, func() bool { return len(s.started()) == 2 })
	})
}
