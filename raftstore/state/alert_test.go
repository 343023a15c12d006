package state

import (
	"bytes"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func alertAt(phase Phase) *Alert {
	v := 3.1
	a := &Alert{Rule: "p95_page", Service: "n8n", Severity: "page", Phase: phase, Since: t0, Value: &v, Text: "slow"}
	if phase != Pending {
		a.Fired = t0.Add(5 * time.Minute)
	}
	return a
}

func TestAlertMovesFromWhatItWas(t *testing.T) {
	s := New()
	apply(t, s, 1, elect(2, "m1"))
	set := func(index uint64, was Phase, a *Alert) Result {
		return apply(t, s, index, Command{At: t0, Term: 2, By: "m1", SetAlert: &SetAlert{Key: "p95_page/n8n", Was: was, Alert: a}})
	}
	if r := set(2, "", alertAt(Pending)); r.Rejection != "" {
		t.Fatalf("pending: %+v", r)
	}
	if r := set(3, "", alertAt(Firing)); r.Rejection != Stale {
		t.Errorf("a second leader's view = %+v, want stale", r)
	}
	if r := set(4, Pending, alertAt(Firing)); r.Rejection != "" {
		t.Errorf("firing: %+v", r)
	}
	if r := apply(t, s, 5, Command{At: t0, Term: 1, By: "m0", SetAlert: &SetAlert{Key: "p95_page/n8n", Was: Firing}}); r.Rejection != Stale {
		t.Errorf("forgotten by a deposed leader = %+v, want stale", r)
	}
	told := &TellAlert{Key: "p95_page/n8n", Receiver: "pagerduty", Phase: Firing, Fired: t0}
	if r := apply(t, s, 6, Command{At: t0, Term: 2, TellAlert: told}); r.Rejection != NoSuch {
		t.Errorf("told of another firing = %+v, want no_such", r)
	}
	before := s.Clone()
	told.Fired = t0.Add(5 * time.Minute)
	apply(t, s, 7, Command{At: t0, Term: 2, TellAlert: told})
	if got := s.Alerts["p95_page/n8n"].Told["pagerduty"]; got != Firing {
		t.Errorf("told = %q, want firing", got)
	}
	if before.Alerts["p95_page/n8n"].Told != nil {
		t.Error("a clone shares what was told")
	}
	if r := set(8, Firing, &Alert{Rule: "other"}); r.Rejection != BadEntry {
		t.Errorf("alert under another's key = %+v, want bad_entry", r)
	}
	set(9, Firing, nil)
	kinds := 0
	for _, e := range s.Events {
		if e.Kind == "alert" {
			kinds++
		}
	}
	if len(s.Alerts) != 0 || kinds != 1 {
		t.Errorf("%d alerts kept and %d told as events, want none and one", len(s.Alerts), kinds)
	}
}

func TestSilences(t *testing.T) {
	s := New()
	quiet := func(index uint64, at, until time.Time) Result {
		return apply(t, s, index, Command{At: at, By: "ann", Silence: &Silence{Rule: "p95_page", Until: until, Reason: "known"}})
	}
	if r := quiet(1, t0, t0); r.Rejection != NoSuch {
		t.Errorf("end of no silence = %+v, want no_such", r)
	}
	quiet(2, t0, t0.Add(time.Hour))
	if q, ok := s.SilencedAt(*alertAt(Firing), t0.Add(59*time.Minute)); !ok || q.By != "ann" {
		t.Errorf("within the hour: %+v %v", q, ok)
	}
	if _, ok := s.SilencedAt(*alertAt(Firing), t0.Add(time.Hour)); ok {
		t.Error("silenced after its end")
	}
	if _, ok := s.SilencedAt(Alert{Rule: "cpu_warn"}, t0); ok {
		t.Error("another rule is silenced")
	}
	if r := quiet(3, t0.Add(time.Minute), t0); r.Rejection != "" || len(s.Silences) != 0 {
		t.Errorf("ending it = %+v, %d kept", r, len(s.Silences))
	}
}

// TestAlertLogSameBytes holds that replicas agree on alerts, one of them
// restored from a snapshot at every index, and that what is kept is bounded.
func TestAlertLogSameBytes(t *testing.T) {
	phases := []Phase{"", Pending, Firing, Resolved, NoData}
	rapid.Check(t, func(t *rapid.T) {
		a, b := New(), New()
		for i := uint64(1); i <= 12; i++ {
			al := alertAt(rapid.SampledFrom(phases[1:]).Draw(t, "phase"))
			al.Service = rapid.SampledFrom([]string{"a", "b"}).Draw(t, "service")
			c := Command{At: t0.Add(time.Duration(i) * time.Minute), By: "m"}
			switch rapid.IntRange(0, 3).Draw(t, "kind") {
			case 0, 1:
				c.SetAlert = &SetAlert{Key: al.Key(), Was: rapid.SampledFrom(phases).Draw(t, "was"), Alert: al}
			case 2:
				c.TellAlert = &TellAlert{Key: al.Key(), Receiver: "r", Phase: al.Phase, Fired: al.Fired}
			case 3:
				c.Silence = &Silence{Rule: "p95_page", Until: t0.Add(time.Duration(rapid.IntRange(0, 60).Draw(t, "until")) * time.Minute)}
			}
			before, _ := a.Clone().Snapshot()
			ra, rb := apply(t, a, i, c), apply(t, b, i, c)
			sa, _ := a.Snapshot()
			var err error
			if b, err = Restore(sa); err != nil || ra != rb {
				t.Fatalf("entry %d: %+v and %+v, %v", i, ra, rb, err)
			}
			if ra.Rejection != "" {
				want, _ := Restore(before)
				want.Index = i
				sw, _ := want.Snapshot()
				if c.Silence == nil && !bytes.Equal(sa, sw) {
					t.Fatalf("a rejected entry changed the state")
				}
			}
		}
	})
}

// TestToldSteps: what a receiver knows of steps only grows, and is no clone's.
func TestToldSteps(t *testing.T) {
	s := New()
	apply(t, s, 1, elect(2, "m1"))
	told := func(index uint64, term uint64, upTo uint64) Rejection {
		return apply(t, s, index, Command{At: t0, Term: term, TellSteps: &TellSteps{Receiver: "pagerduty changes", Index: upTo}}).Rejection
	}
	if r := told(2, 2, 0); r != "" {
		t.Errorf("the first word: %s", r)
	}
	before := s.Clone()
	if r := told(3, 2, 7); r != "" || s.Told["pagerduty changes"] != 7 || before.Told["pagerduty changes"] != 0 {
		t.Errorf("%s; told %v, before %v", r, s.Told, before.Told)
	}
	for i, r := range []Rejection{told(4, 2, 7), told(5, 2, 6), told(6, 1, 9), told(7, 0, 9)} {
		if r == "" {
			t.Errorf("word %d is taken", i)
		}
	}
	b, _ := s.Snapshot()
	if back, err := Restore(b); err != nil || back.Told["pagerduty changes"] != 7 {
		t.Errorf("restored %v, %v", back.Told, err)
	}
}
