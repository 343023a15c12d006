package state

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestBudgetOverMidnight(t *testing.T) {
	s := New()
	at := time.Date(2026, 3, 1, 22, 0, 0, 0, time.UTC)
	meter := func(index uint64, d time.Duration, n int) {
		apply(t, s, index, Command{At: at.Add(d), By: "m1", Meter: &Meter{Service: "n8n", Running: n}})
	}
	meter(1, 0, 2)
	meter(2, time.Hour, 3)
	if got := s.Service("n8n").Budget.Until(at.Add(90 * time.Minute)).Spent; got != 2*time.Hour+90*time.Minute {
		t.Errorf("spent = %s, want 2 machines for 1h and 3 for 30m", got)
	}
	if got := s.Service("n8n").Budget.Until(at.Add(3 * time.Hour)).Spent; got != 3*time.Hour {
		t.Errorf("spent one hour after midnight = %s, want 3 machines for 1h", got)
	}
	meter(3, 51*time.Hour, 1) // no leader for two days
	if got := s.Service("n8n").Budget; got.Spent != 3*time.Hour || got.Day.Day() != 4 {
		t.Errorf("spent on the third day = %s of %s, want 3 machines for 1h", got.Spent, got.Day)
	}
	meter(4, 50*time.Hour, 2) // a leader whose clock is behind
	if got := s.Service("n8n").Budget.Spent; got != 3*time.Hour {
		t.Errorf("spent by a clock that went back = %s, want nothing more than 3h", got)
	}
}

func TestReversals(t *testing.T) {
	s := New()
	apply(t, s, 1, elect(1, "m1"))
	index, now := uint64(1), t0
	step := func(kind OpKind, rule, manual bool, how Outcome) int {
		now = now.Add(5 * time.Minute)
		index++
		r := apply(t, s, index, Command{At: now, Term: 1, By: "m1", Begin: &Begin{Service: "n8n", Kind: kind, Machine: "m2", Rule: rule, Manual: manual}})
		index++
		apply(t, s, index, Command{At: now, Term: 1, By: "m1", Finish: &Finish{Op: r.Op, Outcome: how}})
		n, _ := s.Service("n8n").Budget.Turns(now)
		return n
	}
	for i, c := range []struct {
		kind         OpKind
		rule, manual bool
		how          Outcome
		want         int
	}{
		{OpUp, true, false, Done, 0},
		{OpDown, true, false, Done, 1},
		{OpUp, false, false, Done, 1}, // a lost machine is replaced
		{OpUp, true, false, Failed, 1},
		{OpUp, true, false, Done, 2},
		{OpDown, false, true, Done, 2}, // a person
		{OpUp, true, false, Done, 2},
		{OpDown, true, false, Done, 3},
	} {
		if got := step(c.kind, c.rule, c.manual, c.how); got != c.want {
			t.Errorf("step %d: %d reversals, want %d", i, got, c.want)
		}
	}
	n, until := s.Service("n8n").Budget.Turns(t0.Add(65 * time.Minute))
	if n != 3 || !until.Equal(t0.Add(70*time.Minute)) {
		t.Errorf("%d reversals, the oldest until %s", n, until)
	}
	if n, _ := s.Service("n8n").Budget.Turns(t0.Add(70 * time.Minute)); n != 2 {
		t.Errorf("%d reversals when the oldest is an hour old", n)
	}
}

// TestBudgetAddsUp holds the account against a sum over each second.
func TestBudgetAddsUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		at := time.Date(2026, 3, 1, 20, 0, 0, 0, time.UTC)
		var b Budget
		var want time.Duration
		for range rapid.IntRange(1, 12).Draw(t, "entries") {
			gap := time.Duration(rapid.IntRange(0, 7200).Draw(t, "seconds")) * time.Second
			for range gap / time.Second {
				if day := at.Truncate(24 * time.Hour); at.Equal(day) {
					want = 0
				}
				want += time.Second * time.Duration(b.Running)
				at = at.Add(time.Second)
			}
			if at.Equal(at.Truncate(24 * time.Hour)) {
				want = 0
			}
			b = b.Until(at)
			if b.Spent != want {
				t.Fatalf("at %s: spent %s, want %s", at, b.Spent, want)
			}
			b.Running = rapid.IntRange(0, 5).Draw(t, "running")
		}
	})
}

func TestWaitRestartsTheClock(t *testing.T) {
	s := New()
	apply(t, s, 1, elect(1, "m1"))
	r := apply(t, s, 2, Command{At: t0, Term: 1, By: "m1", Begin: &Begin{Service: "n8n", Kind: OpUp}})
	wait := func(index uint64, d time.Duration, why string) {
		apply(t, s, index, Command{At: t0.Add(d), Term: 1, By: "m1", Wait: &Wait{Op: r.Op, Reason: why}})
	}
	wait(3, time.Minute, "a deploy")
	wait(4, 2*time.Minute, "the deploy, still")
	wait(5, 9*time.Minute, "")
	wait(6, 10*time.Minute, "")
	o := s.Ops[r.Op]
	if !o.StepAt.Equal(t0.Add(9*time.Minute)) || o.Waited != 1 || o.Waits != "" {
		t.Errorf("after the wait: %+v", o)
	}
}

// TestTouched keeps the machines of operations that ended, for some time.
func TestTouched(t *testing.T) {
	s := New()
	apply(t, s, 1, elect(1, "m1"))
	end := func(index uint64, d time.Duration, machine string) {
		r := apply(t, s, index, Command{At: t0.Add(d), Term: 1, By: "m1", Begin: &Begin{Service: "n8n", Kind: OpDown, Machine: machine}})
		apply(t, s, index+1, Command{At: t0.Add(d), Term: 1, By: "m1", Finish: &Finish{Op: r.Op, Outcome: Done}})
	}
	end(2, 0, "a")
	end(4, time.Minute, "b")
	end(6, 90*time.Second, "a")
	if len(s.Touched) != 2 || s.Touched[1].Machine != "a" {
		t.Errorf("touched = %+v, want b and then a", s.Touched)
	}
	end(8, 10*time.Minute, "c")
	if len(s.Touched) != 1 || s.Touched[0].Machine != "c" {
		t.Errorf("touched = %+v, want c alone", s.Touched)
	}
}
