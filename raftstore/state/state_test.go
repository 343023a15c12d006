package state

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func apply(t interface{ Fatalf(string, ...any) }, s *State, index uint64, c Command) Result {
	b, err := c.Encode()
	if err != nil {
		t.Fatalf("encode: %v", err)
	}
	return s.Apply(index, b)
}

func elect(term uint64, m string) Command {
	return Command{At: t0, Term: term, By: m, Elect: &Elect{Machine: m, Epoch: 1}}
}

func TestOperationLifecycle(t *testing.T) {
	s := New()
	apply(t, s, 1, elect(3, "m1"))
	r := apply(t, s, 2, Command{At: t0, Term: 3, By: "m1", Begin: &Begin{Service: "n8n", Kind: OpUp, From: 1, To: 2, Reason: "cpu", Trigger: &Addition{At: t0, Metric: "cpu", Value: 0.9}}})
	if r.Op != "1-3-2" || r.Rejection != "" {
		t.Fatalf("begin = %+v, want operation 1-3-2", r)
	}
	if got := s.Ops[r.Op].Name; got != "flymesh-n8n-1-3-2" {
		t.Errorf("name = %q", got)
	}
	if r := apply(t, s, 3, Command{At: t0, Term: 3, By: "m1", Begin: &Begin{Service: "n8n", Kind: OpUp}}); r.Rejection != Conflict {
		t.Errorf("second begin = %+v, want a conflict", r)
	}
	if r := apply(t, s, 4, Command{At: t0, Term: 3, By: "m1", Advance: &Advance{Op: "1-3-2", From: StepBooting, To: StepWarming}}); r.Rejection != Stale {
		t.Errorf("advance from the wrong step = %+v, want stale", r)
	}
	apply(t, s, 5, elect(4, "m2"))
	if r := apply(t, s, 6, Command{At: t0, Term: 3, By: "m1", Advance: &Advance{Op: "1-3-2", From: StepIntent, To: StepCreating}}); r.Rejection != Stale {
		t.Errorf("advance by the deposed leader = %+v, want stale", r)
	}
	if got := s.Ops["1-3-2"].Crossed; got != 1 {
		t.Errorf("crossed = %d, want 1", got)
	}
	apply(t, s, 7, Command{At: t0, Term: 4, By: "m2", Finish: &Finish{Op: "1-3-2", Outcome: Done, To: 2, CooldownUntil: t0.Add(time.Minute)}})
	if len(s.Ops) != 0 || !s.Service("n8n").CooldownUntil.Equal(t0.Add(time.Minute)) {
		t.Errorf("after finish: ops %v, cooldown %v", s.Ops, s.Service("n8n").CooldownUntil)
	}
	var kinds []string
	for _, e := range s.Events {
		kinds = append(kinds, e.Kind)
	}
	if want := []string{"leader", "up", "leader", "up_done"}; !slices.Equal(kinds, want) {
		t.Errorf("events = %v, want %v", kinds, want)
	}
}

func TestRejectionsChangeNothing(t *testing.T) {
	base := func() *State {
		s := New()
		apply(t, s, 1, elect(5, "m1"))
		apply(t, s, 2, Command{At: t0, Term: 5, By: "m1", Pin: &Pin{Service: "n8n", Machine: "p"}})
		apply(t, s, 3, Command{At: t0, Term: 5, By: "m1", Begin: &Begin{Service: "emb", Kind: OpDown, Machine: "e2"}})
		return s
	}
	for name, c := range map[string]Command{
		"old term":            {At: t0, Term: 4, By: "m0", Begin: &Begin{Service: "n8n", Kind: OpUp}},
		"same term, other":    {At: t0, Term: 5, By: "m9", Elect: &Elect{Machine: "m9"}},
		"down of the primary": {At: t0, Term: 5, By: "m1", Begin: &Begin{Service: "n8n", Kind: OpDown, Machine: "p"}},
		"down of nobody":      {At: t0, Term: 5, By: "m1", Begin: &Begin{Service: "n8n", Kind: OpDown}},
		"second operation":    {At: t0, Term: 5, By: "m1", Begin: &Begin{Service: "emb", Kind: OpUp}},
		"unknown operation":   {At: t0, Term: 5, By: "m1", Finish: &Finish{Op: "x", Outcome: Done}},
		"pin of a removal":    {At: t0, Term: 5, By: "m1", Pin: &Pin{Service: "emb", Machine: "e2"}},
		"pause into the past": {At: t0, By: "ann", Pause: &Pause{Service: "n8n", Until: t0}},
		"resume of nothing":   {At: t0, By: "ann", Resume: &Resume{Service: "n8n"}},
		"no body":             {At: t0, By: "ann"},
	} {
		t.Run(name, func(t *testing.T) {
			s, want := base(), base()
			if r := apply(t, s, 4, c); r.Rejection == "" || r.Err() == nil {
				t.Fatalf("result = %+v, want a rejection", r)
			}
			want.Index = 4
			if d := cmp.Diff(want, s); d != "" {
				t.Errorf("state changed (-want +got):\n%s", d)
			}
		})
	}
	s := base()
	for _, junk := range []string{"", "{", `{"v":99}`, `{"v":1,"nonsense":true}`} {
		if r := s.Apply(9, []byte(junk)); r.Rejection != BadEntry {
			t.Errorf("Apply(%q) = %+v, want bad_entry", junk, r)
		}
	}
}

func TestRepeatedRequestIsAnsweredOnce(t *testing.T) {
	s := New()
	c := Command{ID: "r1", At: t0, By: "ann", Scale: &Scale{Service: "n8n", Target: 2}}
	first := apply(t, s, 1, c)
	again := apply(t, s, 2, c)
	if first != again || len(s.Events) != 1 {
		t.Errorf("repeat = %+v after %+v, %d events; want the same result and one event", again, first, len(s.Events))
	}
}

// command draws any command, sensible or not, over a small world.
func command(t *rapid.T) Command {
	svc := rapid.SampledFrom([]string{"a", "b", ""}).Draw(t, "svc")
	m := rapid.SampledFrom([]string{"m1", "m2", "m3", ""}).Draw(t, "machine")
	c := Command{
		At: t0.Add(time.Duration(rapid.IntRange(0, 1000).Draw(t, "at")) * time.Second), By: m,
		Term: rapid.Uint64Range(0, 4).Draw(t, "term"),
		ID:   rapid.SampledFrom([]string{"", "", "", "r1", "r2"}).Draw(t, "id"),
	}
	op := fmt.Sprintf("1-%d-%d", rapid.IntRange(1, 4).Draw(t, "op term"), rapid.IntRange(1, 40).Draw(t, "op index"))
	steps := []Step{StepIntent, StepStarting, StepCreating, StepBooting, StepWarming, StepCordon, StepDrain, StepStopping, StepUndo}
	switch rapid.IntRange(0, 12).Draw(t, "kind") {
	case 11:
		c.Wait = &Wait{Op: op, Reason: rapid.SampledFrom([]string{"", "a deploy"}).Draw(t, "waits")}
	case 12:
		c.Meter = &Meter{Service: svc, Running: rapid.IntRange(-1, 3).Draw(t, "running")}
	case 0:
		c.Elect = &Elect{Machine: m, Epoch: 1}
	case 1, 2:
		c.Begin = &Begin{Service: svc, Kind: rapid.SampledFrom([]OpKind{OpUp, OpDown, "odd"}).Draw(t, "opkind"), Machine: m, Trigger: &Addition{At: c.At}}
	case 3, 4:
		c.Advance = &Advance{Op: op, From: rapid.SampledFrom(steps).Draw(t, "from"), To: rapid.SampledFrom(steps).Draw(t, "to"), Machine: m}
	case 5:
		c.Finish = &Finish{Op: op, Outcome: rapid.SampledFrom([]Outcome{Done, Failed, Abandoned}).Draw(t, "outcome"), CooldownUntil: c.At.Add(time.Minute), Avoid: &Avoid{Until: c.At.Add(time.Minute)}}
	case 6:
		c.Pause = &Pause{Service: svc, Until: t0.Add(500 * time.Second)}
	case 7:
		c.Pin = &Pin{Service: svc, Machine: m}
	case 8:
		c.Admit = &Admit{Service: svc, Machine: m, Boot: "b"}
	case 9:
		c.Settle = &Settle{Service: svc, Manual: true, Additions: true}
	case 10:
		c.Scale = &Scale{Service: svc, Target: rapid.IntRange(-1, 3).Draw(t, "target")}
	}
	return c
}

// TestSameLogSameBytes holds that the log alone decides: two replicas, one of
// them restored from a snapshot at every index, have the same bytes; and that
// the promises of the operations table never break.
func TestSameLogSameBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := New(), New()
		for i := uint64(1); i <= 40; i++ {
			c := command(t)
			before := a.Clone()
			ra := apply(t, a, i, c)
			rb := apply(t, b, i, c)
			if ra != rb {
				t.Fatalf("entry %d: %+v and %+v", i, ra, rb)
			}
			sa, err := a.Snapshot()
			if err != nil {
				t.Fatalf("snapshot: %v", err)
			}
			if b, err = Restore(sa); err != nil {
				t.Fatalf("restore: %v", err)
			}
			sb, err := b.Snapshot()
			if err != nil || !bytes.Equal(sa, sb) {
				t.Fatalf("entry %d: bytes differ (%v)\n%s\n%s", i, err, sa, sb)
			}
			sc, _ := a.Clone().Snapshot()
			if !bytes.Equal(sa, sc) {
				t.Fatalf("clone differs")
			}
			holds(t, before, a)
		}
	})
}

// holds is the naive model: what must be true after every entry.
func holds(t *rapid.T, before, s *State) {
	open := map[string]int{}
	for _, o := range s.Ops {
		open[o.Service]++
		if o.Kind == OpDown && o.Step == StepIntent && s.Service(o.Service).Primary == o.Machine {
			t.Fatalf("operation %s removes the primary", o.ID)
		}
	}
	for svc, n := range open {
		if n > 1 {
			t.Fatalf("%d open operations of %s", n, svc)
		}
	}
	if s.Term < before.Term {
		t.Fatalf("term went back from %d to %d", before.Term, s.Term)
	}
	if len(s.Events) > MaxEvents || len(s.Seen) > maxSeen {
		t.Fatalf("%d events, %d requests kept", len(s.Events), len(s.Seen))
	}
	for i := 1; i < len(s.Events); i++ {
		if s.Events[i].Index < s.Events[i-1].Index {
			t.Fatalf("events out of order")
		}
	}
}

func TestRestoreIsAllOrNothing(t *testing.T) {
	for _, junk := range []string{"", "null", "{}", `{"services":{}}`, "[]"} {
		if s, err := Restore([]byte(junk)); err == nil || s != nil {
			t.Errorf("Restore(%q) = %v, %v; want no state and an error", junk, s, err)
		}
	}
}
