package burn

import (
	"math"
	"testing"
	"time"

	"flymesh/probes/report"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const every = 5 * time.Second

var goal = Goal{Service: "n8n", Target: Errors, Allowed: 0.01, Least: 20}

// world lets time pass with one machine that answers 600 requests a minute.
type world struct {
	s   *Store
	now time.Time
}

func (w *world) pass(d time.Duration, failed float64, step time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); {
		w.now = w.now.Add(step)
		if failed < 0 { // nothing is heard
			continue
		}
		for range step / every { // coarser steps count as many looks at once
			w.s.Add(w.now, []report.Report{
				{Machine: "m1", Service: "n8n", Requests: report.Of(600), Errors: report.Of(600 * failed)},
				{Machine: "m2", Service: "other", Requests: report.Of(1e6), Errors: report.Of(1e6)},
			})
		}
	}
}

func (w *world) judge(r Rule) (holds, known, past bool) {
	return r.Judge(w.s.Over(w.now, r.Service, r.Target, r.Long), w.s.Over(w.now, r.Service, r.Target, r.Short))
}

// TestBurn lets services fail in ways whose rates follow from arithmetic. Each
// row says which of the three rules hold, are known not to, or are not known.
func TestBurn(t *testing.T) {
	type span struct {
		lasts  time.Duration
		failed float64 // share of the requests; -1: nothing is heard
	}
	const day = 24 * time.Hour
	for _, c := range []struct {
		name string
		past []span
		want [3]string // 14.4, 6, 1
	}{
		{"nothing was ever heard", nil, [3]string{"?", "?", "?"}},
		{"all is well for three days", []span{{3 * day, 0}}, [3]string{"no", "no", "no"}},
		{"all is well for an hour", []span{{time.Hour, 0}}, [3]string{"no", "no", "?"}},
		{"all is well for ten minutes", []span{{10 * time.Minute, 0}}, [3]string{"no", "?", "?"}},
		{"exactly what is allowed", []span{{3 * day, 0.01}}, [3]string{"no", "no", "no"}},
		{"14 % fail for an hour: just under", []span{{3 * day, 0}, {time.Hour, 0.14}}, [3]string{"no", "no", "no"}},
		{"15 % fail for an hour: 2.5 over six hours", []span{{3 * day, 0}, {61 * time.Minute, 0.15}}, [3]string{"yes", "no", "no"}},
		{"half fail for 20 minutes: 16.4 over an hour, 2.8 over six", []span{{3 * day, 0}, {20 * time.Minute, 0.5}}, [3]string{"yes", "no", "no"}},
		{"half fail for 16 minutes: 13.1 over an hour", []span{{3 * day, 0}, {16 * time.Minute, 0.5}}, [3]string{"no", "no", "no"}},
		{"half failed for 20 minutes, and it is over for ten", []span{{3 * day, 0}, {20 * time.Minute, 0.5}, {10 * time.Minute, 0}}, [3]string{"no", "no", "no"}},
		{"7 % fail for six hours", []span{{3 * day, 0}, {361 * time.Minute, 0.07}}, [3]string{"no", "yes", "no"}},
		{"1.2 % fail for three days", []span{{3*day + time.Hour, 0.012}}, [3]string{"no", "no", "yes"}},
		{"1.2 % failed for three days, and none for six hours", []span{{3 * day, 0.012}, {7 * time.Hour, 0}}, [3]string{"no", "no", "no"}},
		// What is not known is not taken for bad, nor for good.
		{"half fail from the start on, for 16 minutes: 13.3 at best", []span{{16 * time.Minute, 0.5}}, [3]string{"?", "?", "?"}},
		{"half fail from the start on, for 20 minutes: 16.7 at best", []span{{20 * time.Minute, 0.5}}, [3]string{"yes", "?", "?"}},
		{"all fail from the start on, for 50 minutes: 0.69 h of 72 are 1.16 at best", []span{{50 * time.Minute, 1}}, [3]string{"yes", "yes", "yes"}},
		{"all is well for two days, then nothing is heard for an hour", []span{{2 * day, 0}, {time.Hour, -1}}, [3]string{"?", "no", "no"}},
		{"all is well for two days, then nothing is heard for two hours", []span{{2 * day, 0}, {2 * time.Hour, -1}}, [3]string{"?", "?", "?"}},
		{"15 % fail for an hour, then nothing is heard for three minutes", []span{{3 * day, 0}, {65 * time.Minute, 0.15}, {3 * time.Minute, -1}}, [3]string{"?", "no", "no"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &world{New(every, goal), t0}
			for _, p := range c.past {
				step := every
				if p.lasts > 12*time.Hour {
					step = time.Minute
				}
				w.pass(p.lasts, p.failed, step)
			}
			for i, r := range Rules(goal) {
				got := "?"
				if holds, known, _ := w.judge(r); holds {
					got = "yes"
				} else if known {
					got = "no"
				}
				if got != c.want[i] {
					t.Errorf("%s: %s, want %s (long %+v, short %+v)", r, got, c.want[i],
						w.s.Over(w.now, r.Service, r.Target, r.Long), w.s.Over(w.now, r.Service, r.Target, r.Short))
				}
			}
		})
	}
}

// TestARateThatSwingsAboutItsLineIsNotPast: what holds is over under nine tenths
// of the line.
func TestARateThatSwingsAboutItsLineIsNotPast(t *testing.T) {
	r := Rules(goal)[0]
	at := func(rate float64) Use { return Use{Requests: 1e4, Share: rate * goal.Allowed, Covered: 1} }
	for _, c := range []struct {
		long, short float64
		holds, past bool
	}{{15, 15, true, false}, {15, 14.3, false, false}, {14.3, 20, false, false}, {15, 12.9, false, true}, {12.9, 20, false, true}} {
		if holds, known, past := r.Judge(at(c.long), at(c.short)); holds != c.holds || !known || past != c.past {
			t.Errorf("rates %g and %g: holds %t, known %t, past %t; want %t, true, %t", c.long, c.short, holds, known, past, c.holds, c.past)
		}
	}
}

// TestFewRequestsSayNothing: one failure among five requests of an hour is no
// outage.
func TestFewRequestsSayNothing(t *testing.T) {
	r := Rules(goal)[0]
	few := Use{Requests: 5, Share: 0.2, Covered: 1}
	if holds, known, _ := r.Judge(few, few); holds || !known {
		t.Errorf("holds %t, known %t", holds, known)
	}
	s := New(every, goal)
	for i := range 720 { // an hour without a single request
		s.Add(t0.Add(time.Duration(i)*every), []report.Report{{Machine: "m", Service: "n8n", Requests: report.Of(0)}})
	}
	u := s.Over(t0.Add(time.Hour), "n8n", Errors, time.Hour)
	if u.Covered < 0.99 || u.Share != 0 || u.Requests != 0 {
		t.Errorf("an idle hour = %+v, want known and without requests", u)
	}
}

// TestSlowRequests counts by the sketch: 30 % of the requests are over 1.5 s,
// six times what a p95 allows.
func TestSlowRequests(t *testing.T) {
	g := Goal{Service: "n8n", Target: Latency, Allowed: SlowAllowed, Slow: 1.5}
	s := New(every, g)
	sketch := report.NewSketch()
	for i := range 100 {
		sketch.Add(map[bool]float64{true: 2, false: 0.1}[i < 30])
	}
	for i := range 13 {
		s.Add(t0.Add(time.Duration(i)*every), []report.Report{{Machine: "m", Service: "n8n", Requests: report.Of(100), Latency: sketch}})
	}
	u := s.Over(t0.Add(time.Minute), "n8n", Latency, 5*time.Minute)
	if rate := g.Rate(u); math.Abs(rate-6) > 1e-9 || math.Abs(u.Requests-100*13/12.) > 1e-9 {
		t.Errorf("rate %g of %+v, want 6", rate, u)
	}
	blind := New(every, g)
	blind.Add(t0, []report.Report{{Machine: "m", Service: "n8n", Requests: report.Of(100)}})
	if u := blind.Over(t0, "n8n", Latency, time.Hour); u.Covered != 0 {
		t.Errorf("a machine that does not say how long requests took covers %g", u.Covered)
	}
}

// TestACopyGoesOn: a new voter that copies another's past judges as that does,
// and keeps what it has heard more of.
func TestACopyGoesOn(t *testing.T) {
	old := &world{New(every, goal), t0}
	old.pass(3*24*time.Hour, 0, time.Minute)
	old.pass(20*time.Minute, 0.5, every)
	fresh := &world{New(every, goal, Goal{Service: "web", Target: Errors, Allowed: 1}), old.now.Add(-2 * time.Minute)}
	fresh.pass(2*time.Minute, 0.5, every)
	b, err := old.s.Export()
	if err != nil {
		t.Fatal(err)
	}
	if err := fresh.s.Import(b); err != nil {
		t.Fatal(err)
	}
	for i, r := range Rules(goal) {
		h1, k1, p1 := old.judge(r)
		h2, k2, p2 := fresh.judge(r)
		if h1 != h2 || k1 != k2 || p1 != p2 || h1 != (i == 0) {
			t.Errorf("%s: the old voter says %t %t %t, the new one %t %t %t", r, h1, k1, p1, h2, k2, p2)
		}
		if a, b := old.s.Over(old.now, r.Service, r.Target, r.Long), fresh.s.Over(fresh.now, r.Service, r.Target, r.Long); a != b {
			t.Errorf("over %s the old voter knows %+v, the new one %+v", r.Long, a, b)
		}
	}
	again, _ := fresh.s.Export()
	if err := old.s.Import(again); err != nil || len(again) < len(b) {
		t.Errorf("back: %v", err)
	}
	for _, bad := range []string{"", "{}", `{"v":1,"every":1,"goals":[]}`, `{"v":2,"every":5000000000}`} {
		if err := New(every, goal).Import([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	t.Logf("%d bytes a goal, %d of a full copy", New(every, goal).Bytes(), len(b))
}

func FuzzImport(f *testing.F) {
	w := &world{New(every, goal), t0}
	w.pass(time.Minute, 0.5, every)
	b, _ := w.s.Export()
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		s := New(every, goal)
		_ = s.Import(b)
		u := s.Over(t0, "n8n", Errors, time.Hour)
		if u.Share < 0 || u.Share > 1 || math.IsNaN(u.Share) || u.Covered < 0 || u.Covered > 1 {
			t.Errorf("%+v", u)
		}
	})
}
