package state

import (
	"testing"
	"time"
)

// jobState is a state in which locks are granted.
func jobState(t *testing.T) *State {
	s := New()
	apply(t, s, 1, elect(1, "m1"))
	apply(t, s, 2, Command{At: t0, Term: 1, By: "m1", Rebuilt: &Rebuilt{Epoch: 1, Proven: true}})
	apply(t, s, 3, Command{At: t0, Term: 1, By: "m1", Skip: &Skip{Job: "J", Tick: t0, Silent: true}})
	return s
}

func claimOf(tick time.Time) Command {
	return Command{At: t0, Term: 1, By: "m1", Claim: &Claim{Job: "J", Tick: tick, Holder: Holder{Machine: "m2", Boot: "b", Session: "J@" + stamp(tick)}}}
}

// TestTickIsClaimedOnce: whatever ends a run that has begun, its tick is never
// claimed again; one that never began may be.
func TestTickIsClaimedOnce(t *testing.T) {
	tick := t0.Add(time.Hour)
	for _, c := range []struct {
		name    string
		started bool
		free    bool // by proof that nothing runs, not by the run's end
		want    RunState
		again   bool
	}{
		{"done", true, false, RunDone, false},
		{"lost", true, true, RunLost, false},
		{"never began", false, true, RunReturned, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := jobState(t)
			r := apply(t, s, 4, claimOf(tick))
			if r.Rejection != "" || r.Token != "1-4" || s.Job("J").Running.State != RunClaimed {
				t.Fatalf("claim = %+v, job %+v", r, s.Job("J"))
			}
			if r := apply(t, s, 5, claimOf(tick.Add(time.Hour))); r.Rejection != Conflict {
				t.Errorf("claim beside a run = %+v, want a conflict", r)
			}
			mark := func(i uint64, to RunState) Result {
				return apply(t, s, i, Command{At: t0, Term: 1, By: "m1", Mark: &Mark{Job: "J", Token: "1-4", To: to}})
			}
			if c.started {
				if r := mark(6, RunStarted); r.Rejection != "" {
					t.Fatalf("start = %+v", r)
				}
				if r := mark(7, RunStarted); r.Rejection != Stale {
					t.Errorf("second start = %+v, want stale", r)
				}
			}
			if c.free {
				apply(t, s, 8, Command{At: t0, Term: 1, By: "m1", Free: &Free{Lock: JobLock("J"), Token: "1-4", Cause: Ended}})
			} else {
				mark(8, RunDone)
			}
			j := s.Job("J")
			if j.Running != nil || len(s.Locks) != 0 || j.Runs[len(j.Runs)-1].State != c.want {
				t.Fatalf("after the end: %+v, locks %v; want %s", j, s.Locks, c.want)
			}
			if r := mark(9, RunStarted); r.Rejection != Stale {
				t.Errorf("start after the end = %+v, want stale", r)
			}
			if r := apply(t, s, 10, claimOf(tick)); (r.Rejection == "") != c.again {
				t.Errorf("second claim of the tick = %+v, want granted %v", r, c.again)
			}
		})
	}
}

func TestOldTicksAndPauses(t *testing.T) {
	s := jobState(t)
	if r := apply(t, s, 4, claimOf(t0)); r.Rejection != Stale {
		t.Errorf("claim of the last tick = %+v, want stale", r)
	}
	apply(t, s, 5, Command{At: t0, By: "ann", PauseJob: &PauseJob{Job: "J", Until: t0.Add(2 * time.Hour), Reason: "slow"}})
	if r := apply(t, s, 6, claimOf(t0.Add(time.Hour))); r.Rejection != Conflict {
		t.Errorf("claim in a pause = %+v, want a conflict", r)
	}
	byHand := Command{At: t0, Term: 1, By: "m1", Claim: &Claim{Job: "J", By: "ann", Holder: Holder{Machine: "m2", Boot: "b", Session: "J#1"}}}
	if r := apply(t, s, 7, byHand); r.Rejection != "" {
		t.Errorf("a person's run in a pause = %+v", r)
	}
	if !s.Job("J").Last.Equal(t0) {
		t.Errorf("a person's run moved the last tick to %s", s.Job("J").Last)
	}
}

// TestRunGoesOnInTheNextEpoch: the lock of a run that is announced brings its
// tick along.
func TestRunGoesOnInTheNextEpoch(t *testing.T) {
	s := New()
	apply(t, s, 1, Command{At: t0, Term: 1, By: "m1", Elect: &Elect{Machine: "m1", Epoch: 2}})
	tick := t0.Add(time.Hour)
	l := Lock{Name: JobLock("J"), Token: "1-9", Policy: Fenced, Holder: Holder{Machine: "m2", Boot: "b", Session: "J@" + stamp(tick)}}
	apply(t, s, 2, Command{At: t0, Term: 1, By: "m1", Adopt: &Adopt{Lock: l}})
	apply(t, s, 3, Command{At: t0, Term: 1, By: "m1", Rebuilt: &Rebuilt{Epoch: 2, Proven: true}})
	if j := s.Job("J"); !j.Last.Equal(tick) || j.Running == nil || j.Running.State != RunStarted {
		t.Fatalf("job = %+v", j)
	}
	apply(t, s, 4, Command{At: t0, Term: 1, By: "m1", Mark: &Mark{Job: "J", Token: "1-9", To: RunDone}})
	if r := apply(t, s, 5, claimOf(tick)); r.Rejection != Stale {
		t.Errorf("claim of the tick that ran = %+v, want stale", r)
	}
}
