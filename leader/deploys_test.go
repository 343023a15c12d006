package leader_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	fly "github.com/superfly/fly-go"

	"flymesh/leader/decide"
	"flymesh/leader/flyapi/flytest"
	"flymesh/raftstore/state"
)

// deploy runs a deploy and returns its error on the channel.
func (s *stand) deploy(d flytest.Deploy) <-chan error {
	done := make(chan error, 1)
	go func() { done <- s.api.Deploy(context.Background(), appName, d) }()
	return done
}

// TestDeployFreezes runs a deploy of each kind over two machines while the load
// asks for a third: nothing is done meanwhile and why says why; afterwards
// scaling goes on, nothing counts as a failure, and the service has a primary.
func TestDeployFreezes(t *testing.T) {
	for _, strategy := range []string{"rolling", "bluegreen", "immediate", "canary"} {
		t.Run(strategy, func(t *testing.T) {
			bubble(t, flytest.FlyTiming(), func(s *stand) {
				s.seed("more", 1, true)
				s.lead("v0")
				s.offer(2.6)
				time.Sleep(2*time.Minute + 40*time.Second) // the rule is about to hold
				before := len(s.api.Requests())
				done := s.deploy(flytest.Deploy{Strategy: strategy})
				froze := s.await("the deploy in why", 30*time.Second, func() bool { return s.blocked(decide.CodeDeploy) != "" })
				t.Logf("frozen after %s: %s", froze, s.blocked(decide.CodeDeploy))
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				for _, r := range s.api.Requests()[before:] {
					switch r.Action {
					case "create", "start", "stop", "destroy", "cordon", "suspend":
						if strings.HasPrefix(r.UserAgent, "flymesh") {
							t.Errorf("%s of %s during the deploy\n%s", r.Action, r.Machine, s.story())
						}
					}
				}
				s.await("a third machine after it", 20*time.Minute, func() bool { return len(s.started()) == 3 && len(s.raft.state().Ops) == 0 })
				s.noFailure()
				if p := s.mem().Primary; !s.runs(p) {
					t.Errorf("the primary %s does not run\n%s", p, s.story())
				}
			}, func(s *stand) { s.timing.Update = 15 * time.Second })
		})
	}
}

// TestDeployAmidOperation begins a deploy at every step of an addition and of
// a removal: the operation waits, goes on afterwards, and nothing is counted
// as a failure, whatever became of its machine.
func TestDeployAmidOperation(t *testing.T) {
	steps := map[state.OpKind][]state.Step{
		state.OpUp:   {state.StepIntent, state.StepCreating, state.StepBooting, state.StepWarming},
		state.OpDown: {state.StepIntent, state.StepCordon, state.StepDrain, state.StepStopping},
	}
	for _, kind := range []state.OpKind{state.OpUp, state.OpDown} {
		for _, step := range steps[kind] {
			for _, strategy := range []string{"rolling", "bluegreen"} {
				t.Run(string(kind)+"/"+string(step)+"/"+strategy, func(t *testing.T) {
					bubble(t, flytest.FlyTiming(), func(s *stand) {
						have, want := 1, 2
						if kind == state.OpDown {
							have, want = 2, 1
							s.seed("more", 1, true)
						}
						s.offer(0.5 * float64(want))
						s.lead("v0")
						s.await("a primary", time.Minute, func() bool { return s.mem().Primary != "" })
						begun := make(chan (<-chan error), 1)
						var once atomic.Bool
						s.raft.also(func(c state.Command) {
							if reaches(c, step) && once.CompareAndSwap(false, true) {
								begun <- s.deploy(flytest.Deploy{Strategy: strategy})
							}
						})
						s.slow(kind == state.OpUp) // what boots becomes ready after the deploy
						s.scale(want)
						s.await("the deploy to begin", 2*time.Minute, func() bool { return len(begun) == 1 })
						if err := <-<-begun; err != nil && have == 1 {
							t.Logf("the deploy itself: %v", err)
						}
						s.slow(false)
						s.await("the wanted machines", 30*time.Minute, func() bool {
							return len(s.started()) == want && len(s.raft.state().Ops) == 0 && s.mem().Manual == nil
						})
						s.noFailure()
						for _, m := range s.machines() {
							if m.State == "started" && m.Cordoned {
								t.Errorf("machine %s runs and is cordoned\n%s", m.ID, s.story())
							}
						}
					})
				})
			}
		}
	}
}

// TestHalfDeployFreezesForAWhile: a deploy that died between two machines does
// not freeze the service for ever, and a new leader gives it its full time.
func TestHalfDeployFreezesForAWhile(t *testing.T) {
	bubble(t, flytest.FlyTiming(), func(s *stand) {
		s.seed("more", 1, true)
		s.lead("v0")
		time.Sleep(time.Minute)
		next := s.config()
		next.Metadata["fly_release_version"] = "8"
		if _, err := s.api.Seed(flytest.Spec{App: appName, Name: "green", Config: next, Start: true}); err != nil {
			t.Fatal(err)
		}
		s.await("the freeze", 20*time.Second, func() bool { return strings.Contains(s.blocked(decide.CodeDeploy), "releases 7, 8") })
		time.Sleep(4 * time.Minute)
		if s.blocked(decide.CodeDeploy) == "" {
			t.Error("thawed within 5 m")
		}
		s.lead("v1")
		time.Sleep(4 * time.Minute)
		if s.blocked(decide.CodeDeploy) == "" {
			t.Error("a new leader thawed it within 5 m of its first look")
		}
		s.await("the end of the freeze", 2*time.Minute, func() bool { return s.blocked(decide.CodeDeploy) == "" })
		s.offer(0.2)
		s.await("a removal", 30*time.Minute, func() bool { return len(s.started()) == 2 })
	})
}

// TestForeignLeaseHoldsOperation: an answer that only a deploy gives freezes
// the app at once, without waiting for the next listing.
func TestForeignLeaseHoldsOperation(t *testing.T) {
	bubble(t, flytest.FlyTiming(), func(s *stand) {
		s.seed("pool", 1, false)
		s.lead("v0")
		time.Sleep(time.Minute)
		s.fault(flytest.Fault{Action: "start", Status: 412, Body: `{"error":"failed_precondition: machine getting replaced, refusing to start"}`, Count: 1})
		s.scale(2)
		s.await("the wait", time.Minute, func() bool { return s.happened("wait") == 1 })
		s.await("it shows in why", 10*time.Second, func() bool {
			return strings.Contains(s.blocked(decide.CodeDeploy), "being replaced") && strings.Contains(s.blocked(decide.CodeOpInFlight), "a deploy is in progress")
		})
		s.await("a second machine", 3*time.Minute, func() bool { return len(s.started()) == 2 && len(s.raft.state().Ops) == 0 })
		s.noFailure()
	})
}

// TestOwnershipIsTold: with Fly Proxy's autostop on, the mesh refuses to fight.
func TestOwnershipIsTold(t *testing.T) {
	bubble(t, flytest.FlyTiming(), func(s *stand) {
		cfg := s.config()
		stop, start := fly.MachineAutostopStop, true
		cfg.Services = []fly.MachineService{{Protocol: "tcp", InternalPort: 8080, Autostop: &stop, Autostart: &start}}
		if _, err := s.api.Seed(flytest.Spec{App: appName, Name: "proxied", Config: cfg, Start: true}); err != nil {
			t.Fatal(err)
		}
		s.lead("v0")
		s.offer(2.6)
		time.Sleep(30 * time.Minute)
		if why := s.blocked(decide.CodeOwner); !strings.Contains(why, "autostop or autostart is on") {
			t.Errorf("owner guard: %q", why)
		}
		if n := len(s.machines()); n != 2 {
			t.Errorf("%d machines: the mesh fought\n%s", n, s.story())
		}
	})
}

// slow keeps machines that boot from becoming ready, until it is taken back.
func (s *stand) slow(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dud = on
	for _, a := range s.agents {
		a.notReady = a.notReady && on
	}
}

// noFailure holds that nothing was counted against a machine or the service.
func (s *stand) noFailure() {
	s.t.Helper()
	st := s.raft.state()
	m := st.Service("n8n")
	if m.Failures != 0 || !m.BreakerUntil.IsZero() || len(st.Avoid) != 0 || s.happened("up_failed")+s.happened("down_failed") != 0 {
		s.t.Errorf("a deploy was counted as a failure: %d failures, breaker %s %q, avoided %v\n%s",
			m.Failures, m.BreakerUntil, m.BreakerReason, st.Avoid, s.story())
	}
}

func (s *stand) runs(id string) bool {
	for _, m := range s.started() {
		if m == id {
			return true
		}
	}
	return false
}
