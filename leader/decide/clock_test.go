package decide_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"flymesh/leader/decide"
	"flymesh/leader/window"
	"flymesh/probes/report"
)

// voter is one machine's window with its own grid of ticks and its own losses.
type voter struct {
	w     *window.Window
	phase time.Duration
	loses func() bool
}

func newVoter(phase time.Duration, loss float64, seed uint64) *voter {
	r := rand.New(rand.NewPCG(seed, 1))
	return &voter{window.New(window.Config{Every: reportEvery}), phase, func() bool { return r.Float64() < loss }}
}

// breachAfter feeds every voter the same reports of three machines until the
// given second: quiet before second 300, overloaded from then on.
func breachAfter(from, until int, voters ...*voter) {
	for ms := from * 1000; ms < until*1000; ms += 100 {
		now := noon.Add(time.Duration(ms) * time.Millisecond)
		for m := range 3 {
			if (ms+m*1700)%5000 != 0 {
				continue
			}
			cpu := 0.5
			if ms >= 300_000 {
				cpu = 0.93
			}
			for _, v := range voters {
				if !v.loses() {
					v.w.Add(now, report.Report{Machine: fmt.Sprintf("m%d", m), Boot: "b", Seq: uint64(ms + 1), Service: "s",
						Readiness: report.Ready, CPU: report.Of(cpu)})
				}
			}
		}
		for _, v := range voters {
			if (ms-int(v.phase.Milliseconds()))%5000 == 0 {
				v.w.Tick(now)
			}
		}
	}
}

func (v *voter) plan(t *testing.T, second int) decide.Verdict {
	in := decide.Input{
		Now: noon.Add(time.Duration(second) * time.Second), Quorum: true,
		Policy: decide.Policy{ReportEvery: reportEvery, Services: []decide.Service{{
			Name: "s", Baseline: 3, Max: 9, Up: rules(t, []string{"cpu > 80% for 3m"}), ReadyGrace: time.Minute}}},
		History: map[string][]window.Sample{"s": v.w.Series("s")},
	}
	for m := range 3 {
		in.Machines = append(in.Machines, running(fmt.Sprintf("m%d", m), noon, m == 0))
	}
	return decide.Plan(in).Verdicts[0]
}

// A voter that becomes leader in the middle of a breach goes on with the clock
// of the old one: it tells the same beginning and acts at the same time, each
// within one report interval, although its ticks and its losses are its own. So
// does a voter that joined in the middle and copied the history.
func TestLeaderChangeDoesNotRestartTheClock(t *testing.T) {
	old, other := newVoter(0, 0.05, 1), newVoter(2400*time.Millisecond, 0.05, 2)
	breachAfter(0, 360, old, other)
	young := newVoter(3900*time.Millisecond, 0.05, 3)
	b, err := old.w.Export(noon.Add(360 * time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if err := young.w.Import(noon.Add(360*time.Second), b); err != nil {
		t.Fatal(err)
	}
	voters := map[string]*voter{"old": old, "other": other, "young": young}
	acts := map[string]int{}
	for second := 361; second < 520; second++ {
		breachAfter(second-1, second, old, other, young)
		want := old.plan(t, second).Rules[0].Since
		if want == nil {
			t.Fatalf("second %d: the old leader does not see the breach", second)
		}
		for name, v := range voters {
			got := v.plan(t, second)
			since := got.Rules[0].Since
			if since == nil {
				t.Fatalf("second %d: %s does not see the breach: %s", second, name, got.Reason.Text)
			}
			if d := since.Sub(*want).Abs(); d > reportEvery {
				t.Errorf("second %d: %s says since %s, the old leader %s", second, name, since, want)
			}
			if got.Verdict == decide.Up && acts[name] == 0 {
				acts[name] = second
			}
		}
	}
	for name, second := range acts {
		// The breach is in all reports from second 305 on; 3 minutes later is 485.
		if second < 475 || second > 490 || max(second, acts["old"])-min(second, acts["old"]) > 5 {
			t.Errorf("%s acts at second %d, the old leader at %d", name, second, acts["old"])
		}
	}
	if len(acts) != 3 {
		t.Errorf("only %v act", acts)
	}
}
