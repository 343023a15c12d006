package leader_test

import (
	"strings"
	"testing"
	"time"

	"flymesh/leader/decide"
	"flymesh/leader/flyapi"
	"flymesh/leader/flyapi/flytest"
	"flymesh/raftstore/state"
)

// TestListingLacksMachines: what listings lack for minutes still counts against
// the cap and is not replaced, also for a leader that never saw it listed.
func TestListingLacksMachines(t *testing.T) {
	for _, heir := range []string{"v0", "v1"} {
		bubble(t, flytest.DefaultTiming(), func(s *stand) {
			s.offer(2)
			s.seed("more", 2, true)
			s.lead("v0")
			s.await("a primary", time.Minute, func() bool { return s.mem().Primary != "" })
			hidden := s.started()[1:]
			for _, id := range hidden {
				if err := s.api.Hide(id, 30*time.Minute); err != nil {
					t.Fatal(err)
				}
			}
			mute := func(is bool) {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.agents[hidden[1]].mute = is
			}
			mute(true)
			time.Sleep(time.Minute) // its last words are old by now
			s.lead(heir)
			time.Sleep(time.Minute)
			s.offer(8) // every rule asks for more
			over := s.watchCap(3)
			time.Sleep(10 * time.Minute)
			mute(false)
			time.Sleep(10 * time.Minute)
			if found := over(); found != "" || s.calls("create") > 0 {
				t.Errorf("%s; %d creates\n%s", found, s.calls("create"), s.story())
			}
			if s.blocked(decide.CodeCap) == "" {
				t.Errorf("the cap is not what holds it back: %+v", s.verdict().Guards)
			}
			// One of them really goes: that is found out, and made up for.
			p := s.somebody()
			defer p.Close()
			if err := p.Stop(s.t.Context(), appName, hidden[0], 0); err != nil {
				t.Fatal(err)
			}
			s.await("a machine in its place", 10*time.Minute, func() bool { return len(s.started()) == 3 })
		})
	}
}

// TestListingLacksThePrimary: it keeps its place, also when its agent is not
// heard and the leader is new, until the API itself does not know it.
func TestListingLacksThePrimary(t *testing.T) {
	bubble(t, flytest.DefaultTiming(), func(s *stand) {
		s.seed("more", 1, true)
		s.lead("v0")
		s.await("a primary", time.Minute, func() bool { return s.mem().Primary != "" })
		primary := s.mem().Primary
		if err := s.api.Hide(primary, 30*time.Minute); err != nil {
			t.Fatal(err)
		}
		s.mu.Lock()
		s.agents[primary].mute = true
		s.mu.Unlock()
		time.Sleep(time.Minute) // its last words are old by now
		s.lead("v1")
		time.Sleep(10 * time.Minute)
		if got := s.mem().Primary; got != primary {
			t.Errorf("the primary has moved from %s to %s\n%s", primary, got, s.story())
		}
		p := s.somebody()
		defer p.Close()
		if err := p.Stop(s.t.Context(), appName, primary, 0); err != nil {
			t.Fatal(err)
		}
		if err := s.api.Await(s.t.Context(), primary, "stopped"); err != nil {
			t.Fatal(err)
		}
		if err := p.Destroy(s.t.Context(), appName, primary); err != nil {
			t.Fatal(err)
		}
		s.await("another primary", 5*time.Minute, func() bool { return s.mem().Primary != primary })
	})
}

// TestOneMachineForOneOperation: the machine that an operation has made is
// stopped, and its host is full then. The operation ends, for under its name it
// would find the same machine over and over; the next one makes another.
func TestOneMachineForOneOperation(t *testing.T) {
	bubble(t, flytest.DefaultTiming(), func(s *stand) {
		s.lead("v0")
		s.await("a primary", time.Minute, func() bool { return s.mem().Primary != "" })
		p := s.somebody()
		defer p.Close()
		made := ""
		s.raft.also(func(c state.Command) {
			if made != "" || !reaches(c, state.StepBooting) {
				return
			}
			made = c.Advance.Machine
			s.fault(flytest.Fault{Action: "start", Machine: made, Status: 409, Body: fullHost})
			go func() {
				_ = s.api.Await(s.t.Context(), made, "started")
				_ = p.Stop(s.t.Context(), appName, made, 0) // the end shows that it was
			}()
		})
		s.scale(2)
		s.await("two machines", 10*time.Minute, func() bool { return len(s.started()) == 2 && len(s.raft.state().Ops) == 0 })
		adopted := 0
		for _, e := range s.raft.state().Events {
			if strings.Contains(e.Reason, "adopted") {
				adopted++
			}
		}
		if n := s.happened("up_failed"); n != 1 || adopted > 0 || len(s.machines()) != 3 {
			t.Errorf("%d operations failed, want the first; %d adoptions; %d machines, want 3\n%s", n, adopted, len(s.machines()), s.story())
		}
	})
}

// TestCreateAcrossADeploy: the answer to a create is lost, and before anybody
// looks a deploy puts another machine in the new one's place. The operation
// does not create again; what is there is counted anew.
func TestCreateAcrossADeploy(t *testing.T) {
	bubble(t, flytest.FlyTiming(), func(s *stand) {
		s.lead("v0")
		s.await("a primary", time.Minute, func() bool { return s.mem().Primary != "" })
		s.armAt(state.StepCreating, flytest.Fault{Action: "create", Drop: "after", Count: 1})
		began := false
		var over <-chan error
		s.raft.also(func(c state.Command) {
			if !began && reaches(c, state.StepCreating) {
				began = true
				go func() {
					for s.calls("create") == 0 {
						time.Sleep(10 * time.Millisecond)
					}
					s.fault(flytest.Fault{Action: "list", Status: 500}) // nobody can look for a moment
					time.Sleep(9 * time.Second)
					over = s.deploy(flytest.Deploy{Strategy: "bluegreen"})
					time.Sleep(4 * time.Second)
					s.api.ClearFaults()
				}()
			}
		})
		s.scale(2)
		s.await("two machines", 20*time.Minute, func() bool {
			return len(s.started()) == 2 && len(s.raft.state().Ops) == 0 && s.mem().Manual == nil
		})
		if over == nil {
			t.Fatal("there was no deploy")
		}
		made := map[string]int{}
		for _, r := range s.api.Requests() {
			if r.Action == "create" && r.UserAgent != "flyctl (emulated)" {
				if made[r.Name]++; made[r.Name] > 1 {
					t.Errorf("%s was asked for %d times\n%s", r.Name, made[r.Name], s.story())
				}
			}
		}
		time.Sleep(5 * time.Minute)
		if n := len(s.started()); n != 2 {
			t.Errorf("%d machines run in the end, want 2\n%s", n, s.story())
		}
	})
}

// TestNameIsTaken: a machine that somebody else made has the name that an
// operation wants. It is left alone, and the next operation makes its own.
func TestNameIsTaken(t *testing.T) {
	bubble(t, flytest.DefaultTiming(), func(s *stand) {
		s.lead("v0")
		s.await("a primary", time.Minute, func() bool { return s.mem().Primary != "" })
		taken := ""
		s.raft.also(func(c state.Command) {
			if taken != "" || !reaches(c, state.StepCreating) {
				return
			}
			taken = s.raft.state().Ops[c.Advance.Op].Name
			if _, err := s.api.Seed(flytest.Spec{App: appName, Name: taken, Group: "worker", Config: s.config()}); err != nil {
				s.t.Error(err)
			}
		})
		s.scale(2)
		s.await("two machines", 10*time.Minute, func() bool { return len(s.started()) == 2 && len(s.raft.state().Ops) == 0 })
		if n := s.happened("up_failed"); n != 1 {
			t.Errorf("%d operations failed, want the one whose name was taken\n%s", n, s.story())
		}
		for _, m := range s.machines() {
			if m.Name == taken && m.State != "stopped" {
				t.Errorf("the machine with the name is %s\n%s", m.State, s.story())
			}
		}
	})
}

// TestDeposedInTheMiddle: a leader that has not heard of its successor sends
// nothing more, although it was in the middle of a step: between the calls of
// the step it asks again.
func TestDeposedInTheMiddle(t *testing.T) {
	for _, act := range []flyapi.Action{flyapi.ActSetMetadata, flyapi.ActGet} {
		bubble(t, flytest.DefaultTiming(), func(s *stand) {
			s.seed("more", 1, act == flyapi.ActSetMetadata)
			s.lead("v0")
			s.await("a primary", time.Minute, func() bool { return s.mem().Primary != "" })
			step, want := state.StepCordon, 1
			if act == flyapi.ActGet { // of the stopped machine that is about to be started
				step, want = state.StepStarting, 2
			}
			s.armAt(step, flytest.Fault{Action: string(act), AnswerDelay: flytest.Delay(8 * time.Second), Count: 1})
			var deposed time.Time
			s.raft.also(func(c state.Command) {
				if deposed.IsZero() && reaches(c, step) {
					deposed = time.Now().Add(2 * time.Second)
					go func() {
						time.Sleep(2 * time.Second)
						wake := s.raft.unaware()
						s.lead("v1")
						time.Sleep(time.Minute)
						wake()
					}()
				}
			})
			s.scale(want)
			s.await("what was asked", 10*time.Minute, func() bool { return len(s.started()) == want && len(s.raft.state().Ops) == 0 })
			for _, r := range s.api.Requests() {
				if r.UserAgent == "flymesh-v0" && r.Method != "GET" && r.At.After(deposed) {
					t.Errorf("%s of %s by the deposed leader, %s after its end", r.Action, r.Machine, r.At.Sub(deposed))
				}
			}
		})
	}
}
