package leader_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"flymesh/leader/decide"
	"flymesh/leader/flyapi/flytest"
	"flymesh/raftstore/state"
)

// TestMachineHours spends a day's budget: near it the rule must hold twice as
// long, at its end nothing more is added, over a leader change too; a person
// passes it, and the next day begins anew.
func TestMachineHours(t *testing.T) {
	bubble(t, flytest.FlyTiming(), func(s *stand) {
		time.Sleep(20 * time.Hour) // nobody leads, nothing is booked
		before := s.api.Usage()[appName].MachineSeconds
		s.lead("v0")
		time.Sleep(2 * time.Hour) // of 2.25: near
		s.offer(1.9)
		took := s.await("a second machine", 15*time.Minute, func() bool { return len(s.started()) == 2 })
		if took < 6*time.Minute || took > 8*time.Minute {
			t.Errorf("second machine after %s near the budget, want 6 to 7 m", took)
		}
		s.offer(6)
		s.await("the end of the budget", 15*time.Minute, func() bool { return s.blocked(decide.CodeBudget) != "" })
		s.lead("v1")
		time.Sleep(30 * time.Minute)
		if n := len(s.started()); n != 2 {
			t.Fatalf("%d machines run over the budget\n%s", n, s.story())
		}
		v := s.verdict()
		if v.Reason.Code != decide.CodeBudget || v.Page == "" || !strings.Contains(v.Reason.Text, "of 2.25 machine-hours of this day (UTC) are spent") {
			t.Errorf("verdict: %+v, page %q", v.Reason, v.Page)
		}
		used, real := s.mem().Budget.Until(time.Now()).Spent.Seconds(), s.api.Usage()[appName].MachineSeconds-before
		t.Logf("booked %.0f machine-seconds, the emulator's account says %.0f", used, real)
		if d := used - real; d < -60 || d > 60 {
			t.Errorf("booked %.0f machine-seconds, the emulator's account says %.0f", used, real)
		}
		s.scale(3)
		s.await("a third machine for a person", 5*time.Minute, func() bool { return len(s.started()) == 3 && s.mem().Manual == nil })
		s.scale(1)
		s.offer(0.5)
		s.await("one machine again", 10*time.Minute, func() bool { return len(s.started()) == 1 && s.mem().Manual == nil })
		s.offer(1.9)
		time.Sleep(time.Until(time.Now().UTC().Truncate(24 * time.Hour).Add(24*time.Hour - time.Second)))
		if n := len(s.started()); n != 1 {
			t.Errorf("%d machines before midnight", n)
		}
		s.await("a second machine on the next day", 5*time.Minute, func() bool { return len(s.started()) == 2 })
	}, func(s *stand) { s.policy.Services[0].BudgetHours = 2.25 })
}

// TestFlapBudget turns the load around whenever the mesh has followed it: no
// hour has more reversals than allowed, whoever leads.
func TestFlapBudget(t *testing.T) {
	worst := func(limit int) (most int) {
		bubble(t, flytest.FlyTiming(), func(s *stand) {
			s.lead("v0")
			var turns []time.Time
			last := ""
			s.raft.also(func(c state.Command) {
				if b := c.Begin; b != nil {
					if last != "" && last != string(b.Kind) {
						turns = append(turns, time.Now())
					}
					last = string(b.Kind)
				}
			})
			leaders := 0
			for end := time.Now().Add(3 * time.Hour); time.Now().Before(end); time.Sleep(10 * time.Second) {
				if len(s.started()) > 1 {
					s.offer(0.2)
				} else {
					s.offer(0.95)
				}
				if leaders++; leaders%200 == 0 {
					s.lead(fmt.Sprintf("v%d", leaders/200%3))
				}
			}
			s.raft.hooks.Lock() // no hook runs while turns is read
			defer s.raft.hooks.Unlock()
			for i := range turns {
				n := 0
				for _, u := range turns[i:] {
					if u.Sub(turns[i]) < time.Hour {
						n++
					}
				}
				most = max(most, n)
			}
		}, func(s *stand) {
			s.policy.Services[0].FlapPerHour = limit
			s.policy.Services[0].Cooldown = time.Minute
		})
		return most
	}
	free, held := worst(0), worst(4)
	t.Logf("most reversals in an hour: %d without a budget, %d with one of 4", free, held)
	if free <= 4 || held > 4 || held < 2 {
		t.Errorf("most reversals in an hour: %d without a budget, %d with one of 4", free, held)
	}
}

// forgetful takes away the cookie by which the API shows a client its own
// writes: every answer may come from another host.
func forgetful(next http.RoundTripper) http.RoundTripper {
	return roundTrip(func(r *http.Request) (*http.Response, error) {
		r = r.Clone(r.Context())
		r.Header.Del("Cookie")
		return next.RoundTrip(r)
	})
}

// TestCapOverLaggingList kills the leader right after an operation is done
// while listings are 8 s old: the next one must not take the place for free.
func TestCapOverLaggingList(t *testing.T) {
	lag := func(s *stand) { s.timing.ListLag, s.reach = 8*time.Second, forgetful }
	two := func(s *stand) { s.policy.Services[0].Max = 2 }
	for name, pool := range map[string]int{"created": 0, "started": 1} {
		t.Run(name, func(t *testing.T) {
			bubble(t, flytest.DefaultTiming(), func(s *stand) {
				s.seed("pool", pool, false)
				s.lead("v0")
				s.await("a primary", time.Minute, func() bool { return s.mem().Primary != "" })
				kills := s.leadAfterDone()
				over := s.watchCap(2)
				s.scale(2) // the next leader finds the wish still open
				s.await("the wish done", 10*time.Minute, func() bool { return s.mem().Manual == nil && len(s.raft.state().Ops) == 0 })
				time.Sleep(5 * time.Minute)
				if worst := over(); worst != "" || len(s.started()) != 2 || s.api.Usage()[appName].Peak["app"] != 2 {
					t.Errorf("%s; %d run, peak %v\n%s", worst, len(s.started()), s.api.Usage()[appName].Peak, s.story())
				}
				if n := kills.Load(); s.happened("up") != 1 || n != 1 {
					t.Errorf("%d additions for one wish, %d kills\n%s", s.happened("up"), n, s.story())
				}
			}, lag, two)
		})
	}
}

// leadAfterDone makes v1 the leader as soon as an operation is done, once.
func (s *stand) leadAfterDone() *atomic.Int32 {
	kills := new(atomic.Int32)
	s.raft.also(func(c state.Command) {
		if c.Finish != nil && c.Finish.Outcome == state.Done && kills.CompareAndSwap(0, 1) {
			go s.lead("v1")
		}
	})
	return kills
}

func (s *stand) agentOf(id string, f func(*machineAgent)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.agents[id]; a != nil {
		f(a)
	}
}

// TestBaselineOverLaggingList: the first listing of a new leader lacks a
// machine of the baseline that is there; nothing is replaced.
func TestBaselineOverLaggingList(t *testing.T) {
	e := &edit{}
	bubble(t, flytest.FlyTiming(), func(s *stand) {
		s.seed("more", 1, true)
		s.lead("v0")
		time.Sleep(2 * time.Minute)
		for _, id := range s.started() {
			if id != s.mem().Primary {
				e.set(id, "stopped") // an old listing
				s.agentOf(id, func(a *machineAgent) { a.mute = true })
			}
		}
		time.Sleep(20 * time.Second)
		s.lead("v1")
		time.Sleep(25 * time.Second)
		if why := s.blocked(decide.CodeDataMissing); !strings.Contains(why, "a listing may lag") {
			t.Errorf("data_missing: %q, %+v", why, s.verdict().Reason)
		}
		if s.happened("up") != 0 {
			t.Fatalf("a machine was replaced on listings of 25 s\n%s", s.story())
		}
		s.await("it is replaced after all", time.Minute, func() bool { return s.happened("up") == 1 })
	}, func(s *stand) { s.policy.Services[0].Baseline, s.reach = 2, e.through })
}

// TestStoryOverTwoLeaders reads the events of an addition whose leader died
// after the create call: they tell every step, who took it, and why.
func TestStoryOverTwoLeaders(t *testing.T) {
	bubble(t, flytest.FlyTiming(), func(s *stand) {
		s.lead("v0")
		s.await("a primary", time.Minute, func() bool { return s.mem().Primary != "" })
		s.fault(flytest.Fault{Action: "create", Drop: "after", Count: 1})
		s.dieAtCall(stage{state.StepCreating, "create"}, "after the answer", func() { go s.lead("v1") })
		s.scale(2)
		s.await("two machines", 5*time.Minute, func() bool { return len(s.started()) == 2 && s.mem().Manual == nil })
		var op string
		var got []string
		for _, e := range s.raft.state().Events {
			if e.Op != "" {
				op = e.Op
				got = append(got, fmt.Sprintf("%s %s %d->%d %s", e.By, e.Kind, e.From, e.To, e.Reason))
			}
		}
		text := strings.Join(got, "\n")
		t.Logf("the story of %s:\n%s", op, text)
		at := 0
		for _, want := range []string{
			"v0 up 1->2 ann asked for 2", "v0 step 1->2 creating: creates flymesh-n8n-" + op,
			"v1 step 1->2 booting: adopted flymesh-n8n-" + op, "v1 step 1->2 warming", "v1 up_done 1->2 ready",
		} {
			i := strings.Index(text[at:], want)
			if i < 0 {
				t.Fatalf("%q is missing, or not in its place, in:\n%s", want, text)
			}
			at += i
		}
		if leaders := s.happened("leader"); leaders != 2 {
			t.Errorf("%d leaders in the events", leaders)
		}
	})
}
