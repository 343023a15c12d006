package decide_test

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"flymesh/leader/decide"
	"flymesh/leader/window"
	"flymesh/probes/report"
)

// mayRun counts as plainly as can be: all that are not known to rest, and each
// open addition that is none of them.
func mayRun(in decide.Input, service string) int {
	n := 0
	running := map[string]bool{}
	for _, m := range in.Machines {
		if m.Service == service && !rests(&m) {
			running[m.ID] = true
			n++
		}
	}
	for _, o := range in.Ops {
		if o.Service == service && o.Kind == decide.Up && !running[o.Machine] {
			n++
		}
	}
	return n
}

// TestNeverOverTheCap: what may run, with what is unknown, is never more than
// the cap after a step, whoever asks for it.
func TestNeverOverTheCap(t *testing.T) {
	ups := 0
	rapid.Check(t, func(t *rapid.T) {
		in := inputs().Draw(t, "input")
		for i, v := range decide.Plan(in).Verdicts {
			s := in.Policy.Services[i]
			if v.Verdict != decide.Up {
				continue
			}
			ups++
			if n := mayRun(in, s.Name); n+1 > s.Max {
				t.Fatalf("%s: %d may run, the cap is %d, and yet: %s", s.Name, n, s.Max, v.Reason.Text)
			}
			if v.Action.To != v.Action.From+1 {
				t.Fatalf("%s: more than one step: %+v", s.Name, v.Action)
			}
		}
	})
	t.Logf("%d additions", ups)
	if ups < 30 {
		t.Errorf("only %d additions were seen: the property tested next to nothing", ups)
	}
}

// TestNeverRemovesWhatMustStay: the primary, a lock holder, a busy machine, the
// leader, the last ready one, one of the baseline, or any while a machine that
// runs is not heard.
func TestNeverRemovesWhatMustStay(t *testing.T) {
	downs := 0
	rapid.Check(t, func(t *rapid.T) {
		in := inputs().Draw(t, "input")
		for i, v := range decide.Plan(in).Verdicts {
			if v.Verdict != decide.Down {
				continue
			}
			downs++
			checkRemoval(t, in, in.Policy.Services[i], v)
		}
	})
	t.Logf("%d removals", downs)
	if downs < 10 {
		t.Errorf("only %d removals were seen: the property tested next to nothing", downs)
	}
}

func checkRemoval(t *rapid.T, in decide.Input, s decide.Service, v decide.Verdict) {
	left, ready, primary := 0, 0, false
	var victim *decide.Machine
	for i := range in.Machines {
		m := &in.Machines[i]
		if m.Service != s.Name {
			continue
		}
		primary = primary || m.Pinned
		if m.ID == v.Action.Machine {
			victim = m
			continue
		}
		if m.State == "started" && m.Heard && m.Readiness == report.Ready && !m.Cordoned {
			ready++
		}
		if !rests(m) && m.State != "stopping" {
			left++
		}
		if m.State == "started" && !m.Heard {
			t.Fatalf("%s: %s runs, is not heard, and yet: %s", s.Name, m.ID, v.Reason.Text)
		}
	}
	switch {
	case victim == nil:
		t.Fatalf("%s: removes %q, which is none of its machines", s.Name, v.Action.Machine)
	case victim.Pinned || victim.Locked || victim.Busy || victim.Leader:
		t.Fatalf("%s: removes what must stay: %+v", s.Name, *victim)
	case !victim.Heard || victim.State != "started":
		t.Fatalf("%s: removes what it does not know: %+v", s.Name, *victim)
	case ready == 0:
		t.Fatalf("%s: no ready machine would be left", s.Name)
	case left < s.Baseline:
		t.Fatalf("%s: %d would be left of a baseline of %d", s.Name, left, s.Baseline)
	case s.Pinned && !primary:
		t.Fatalf("%s: removes %s while the primary is not known", s.Name, victim.ID)
	}
}

// TestBudgetsHold: when a budget is spent the rules take no step that it binds,
// and no baseline machine is replaced on a listing that may lag; a person and
// the baseline pass the budget.
func TestBudgetsHold(t *testing.T) {
	held, passed := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		in := inputs().Draw(t, "input")
		for i, v := range decide.Plan(in).Verdicts {
			s := in.Policy.Services[i]
			f := in.Facts[s.Name]
			spent := s.BudgetHours > 0 && f.Hours >= s.BudgetHours
			flaps := s.FlapPerHour > 0 && f.Turned == decide.Up && f.Turns+2 > s.FlapPerHour
			code := v.Reason.Code
			switch {
			case v.Verdict == decide.Up && code == decide.CodeRuleUp && spent, v.Verdict == decide.Down && code == decide.CodeRuleDown && flaps:
				t.Fatalf("%s: steps over its budget (%+v): %s", s.Name, f, v.Reason.Text)
			case v.Verdict == decide.Up && code == decide.CodeBelowBaseline && in.Now.Sub(f.ShortSince) < 30*time.Second:
				t.Fatalf("%s: replaced on a listing that may lag: %s", s.Name, v.Reason.Text)
			case slices.ContainsFunc(v.Guards, func(g decide.GuardEval) bool { return g.Code == decide.CodeBudget && g.Blocks }):
				held++
			case v.Verdict == decide.Up && spent:
				passed++
			}
		}
	})
	t.Logf("held by a budget %d times, passed by a person or for the baseline %d times", held, passed)
	if held < 3 || passed < 3 {
		t.Errorf("held %d, passed %d: the property tested next to nothing", held, passed)
	}
}

// TestNeverDownOnMissingData: a removal by rule happens only if for the whole
// span of every down rule the worst case permits it, with four fifths of the
// samples there and nothing missing now.
func TestNeverDownOnMissingData(t *testing.T) {
	downs := 0
	rapid.Check(t, func(t *rapid.T) {
		in := inputs().Draw(t, "input")
		for i, v := range decide.Plan(in).Verdicts {
			if v.Verdict != decide.Down || v.Reason.Code == decide.CodeManual {
				continue
			}
			downs++
			s := in.Policy.Services[i]
			history := in.History[s.Name]
			if last := history[len(history)-1]; len(last.Missing) > 0 {
				t.Fatalf("%s: %v are missing, and yet: %s", s.Name, last.Missing, v.Reason.Text)
			}
			for _, r := range s.Down {
				n := 0
				for _, x := range history {
					if in.Now.Sub(x.At) > r.For-reportEvery {
						continue
					}
					n++
					worst := map[decide.Metric]float64{decide.CPU: x.CPU.Worst, decide.P95: x.P95.Worst, decide.Queue: x.Queue.Worst}[r.Metric]
					if !(worst < r.Value) {
						t.Fatalf("%s: at %s %s was %v at worst, and yet: %s", s.Name, x.At, r.Metric, worst, v.Reason.Text)
					}
				}
				if float64(n) < 0.79*float64(r.For/reportEvery) {
					t.Fatalf("%s: %d samples for %s, and yet: %s", s.Name, n, r.Text, v.Reason.Text)
				}
			}
		}
	})
	t.Logf("%d removals by rule", downs)
	if downs < 5 {
		t.Errorf("only %d removals by rule were seen: the property tested next to nothing", downs)
	}
}

// TestOrderOfMachinesDoesNotMatter also shows that the input is not changed.
func TestOrderOfMachinesDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := inputs().Draw(t, "input")
		want, err := json.Marshal(decide.Plan(in))
		if err != nil {
			t.Fatal(err)
		}
		other := in
		other.Machines = rapid.Permutation(in.Machines).Draw(t, "order")
		kept := slices.Clone(other.Machines)
		if got, _ := json.Marshal(decide.Plan(other)); string(got) != string(want) {
			t.Fatalf("another order gives another plan:\n%s", cmp.Diff(string(want), string(got)))
		}
		if diff := cmp.Diff(kept, other.Machines); diff != "" {
			t.Fatalf("the input was changed:\n%s", diff)
		}
	})
}

// TestConverges acts out the plans of a service under a constant load: after a
// bounded number of steps, all in one direction, nothing happens any more.
func TestConverges(t *testing.T) {
	most := 0
	rapid.Check(t, func(t *rapid.T) {
		baseline := rapid.IntRange(1, 3).Draw(t, "baseline")
		s := decide.Service{
			Name: "s", Baseline: baseline, Max: 3 * baseline, Cooldown: 5 * time.Minute, MinSamples: 20, ReadyGrace: 90 * time.Second,
			Up:   drawRules(t, "up", "cpu > 80% for 3m", "p95 > 1.5s for 3m", "queue > 10 for 3m"),
			Down: drawRules(t, "down", "cpu < 40% for 10m", "p95 < 800ms for 10m", "queue < 10 for 10m"),
			Mode: decide.Auto, Pinned: true, NoGainAfter: rapid.SampledFrom([]int{0, 2}).Draw(t, "no gain after"),
		}
		load := rapid.Float64Range(0, float64(4*baseline)).Draw(t, "load")
		in := decide.Input{Now: noon, Quorum: true, Policy: decide.Policy{ReportEvery: reportEvery, Services: []decide.Service{s}}}
		for i := range rapid.IntRange(baseline, s.Max).Draw(t, "machines") {
			in.Machines = append(in.Machines, running(fmt.Sprintf("m%d", i), in.Now, i == 0))
		}
		var kinds []string
		lastAct := in.Now
		state, history := decide.ServiceState{}, []window.Sample{}
		for in.Now = noon; in.Now.Before(noon.Add(2 * time.Hour)); in.Now = in.Now.Add(time.Minute) {
			for d := 55 * time.Second; d >= 0; d -= reportEvery {
				history = append(history, sampleAt(in.Now.Add(-d), load/float64(len(in.Machines))))
			}
			in.History = map[string][]window.Sample{"s": history[max(0, len(history)-180):]}
			in.Services = map[string]decide.ServiceState{"s": state}
			v := decide.Plan(in).Verdicts[0]
			if v.Recovered {
				state.Additions = nil
			}
			if v.Action == nil {
				continue
			}
			kinds, lastAct = append(kinds, v.Verdict), in.Now
			state.CooldownUntil = in.Now.Add(s.Cooldown)
			if v.Verdict == decide.Up {
				state.Additions = append(state.Additions, *v.Action.Trigger)
				in.Machines = append(slices.Clone(in.Machines), running(fmt.Sprintf("n%d", len(kinds)), in.Now, false))
				continue
			}
			in.Machines = slices.DeleteFunc(slices.Clone(in.Machines), func(m decide.Machine) bool { return m.ID == v.Action.Machine })
		}
		most = max(most, len(kinds))
		slices.Sort(kinds)
		if kinds = slices.Compact(kinds); len(kinds) > 1 {
			t.Fatalf("load %v: both directions under a constant load", load)
		}
		if limit := noon.Add(time.Duration(2*baseline+1) * 16 * time.Minute); lastAct.After(limit) {
			t.Fatalf("load %v: still acting at %s", load, lastAct.Sub(noon))
		}
		if n := len(in.Machines); n < s.Baseline || n > s.Max {
			t.Fatalf("load %v: ended with %d machines", load, n)
		}
	})
	t.Logf("at most %d steps", most)
	if most < 2 {
		t.Errorf("never more than %d steps: the property tested next to nothing", most)
	}
}

func running(id string, now time.Time, pinned bool) decide.Machine {
	return decide.Machine{ID: id, Service: "s", State: "started", HostOK: true, Created: now, Started: now, Pinned: pinned,
		Voter: pinned, Heard: true, Readiness: report.Ready}
}

// TestTotal gives Plan what cannot be: it answers for every service, and the
// answer can be written as JSON.
func TestTotal(t *testing.T) {
	wild := rapid.SampledFrom([]float64{0, 0.5, 1, 99, -1, math.NaN(), math.Inf(1), math.Inf(-1), math.MaxFloat64, -math.MaxFloat64})
	text := rapid.SampledFrom([]string{"", "s0", "s1", "m0", "m1", "up", "down", "started", "stopped", "cpu", "p95", "<", ">", "auto", "shadow", "off", "?"})
	num := rapid.SampledFrom([]int{0, 1, 2, 3, -1, math.MaxInt, math.MinInt})
	span := rapid.SampledFrom([]time.Duration{0, 1, time.Second, time.Minute, time.Hour, -time.Minute, math.MaxInt64, math.MinInt64})
	when := rapid.Custom(func(t *rapid.T) time.Time {
		if rapid.Bool().Draw(t, "never") {
			return time.Time{}
		}
		return rapid.SampledFrom([]time.Time{noon, noon.Add(-time.Minute), noon.Add(5 * time.Hour), time.Unix(1<<37, 0)}).Draw(t, "base").
			Add(span.Draw(t, "offset"))
	})
	interval := rapid.Custom(func(t *rapid.T) window.Interval {
		return window.Interval{Best: wild.Draw(t, "best"), Worst: wild.Draw(t, "worst"),
			Value: report.Value{X: wild.Draw(t, "value"), OK: rapid.Bool().Draw(t, "known")}}
	})
	rule := rapid.Custom(func(t *rapid.T) decide.Rule {
		return decide.Rule{Metric: decide.Metric(text.Draw(t, "metric")), Op: text.Draw(t, "op"), Value: wild.Draw(t, "value"), For: span.Draw(t, "for")}
	})
	few := func(t *rapid.T, name string) int { return rapid.IntRange(0, 3).Draw(t, name) }
	rapid.Check(t, func(t *rapid.T) {
		in := decide.Input{Now: when.Draw(t, "now"), Quorum: rapid.Bool().Draw(t, "quorum"), Policy: decide.Policy{ReportEvery: span.Draw(t, "every")},
			Services: map[string]decide.ServiceState{}, History: map[string][]window.Sample{}}
		for range fleetsPerCheck {
			in.Policy.Services = append(in.Policy.Services, decide.Service{
				Name: text.Draw(t, "name"), Baseline: num.Draw(t, "baseline"), Max: num.Draw(t, "max"),
				Up: rapid.SliceOfN(rule, 0, 2).Draw(t, "up"), Down: rapid.SliceOfN(rule, 0, 2).Draw(t, "down"),
				Cooldown: span.Draw(t, "cooldown"), Mode: decide.Mode(text.Draw(t, "mode")), Pinned: rapid.Bool().Draw(t, "pinned"),
				ReadyGrace: span.Draw(t, "grace"), NoGainAfter: num.Draw(t, "no gain"),
			})
		}
		for range few(t, "machines") {
			in.Machines = append(in.Machines, decide.Machine{
				ID: text.Draw(t, "id"), Service: text.Draw(t, "service"), State: text.Draw(t, "state"), Created: when.Draw(t, "created"),
				Started: when.Draw(t, "started"), HostOK: rapid.Bool().Draw(t, "host"), Heard: rapid.Bool().Draw(t, "heard"),
				Readiness: report.Readiness(rapid.IntRange(0, 255).Draw(t, "readiness")), InFlight: report.Value{X: wild.Draw(t, "in flight"), OK: true},
			})
		}
		for range few(t, "ops") {
			in.Ops = append(in.Ops, decide.Op{ID: "o", Service: text.Draw(t, "service"), Kind: text.Draw(t, "kind"), Machine: text.Draw(t, "machine")})
		}
		for range few(t, "states") {
			st := decide.ServiceState{Mode: decide.Mode(text.Draw(t, "mode")), PausedUntil: when.Draw(t, "pause"), CooldownUntil: when.Draw(t, "cooldown")}
			if rapid.Bool().Draw(t, "manual") {
				st.Manual = &decide.Manual{Target: num.Draw(t, "target")}
			}
			for range few(t, "additions") {
				st.Additions = append(st.Additions, decide.Addition{Metric: decide.Metric(text.Draw(t, "metric")), Value: wild.Draw(t, "value")})
			}
			in.Services[text.Draw(t, "service")] = st
		}
		for range few(t, "histories") {
			var h []window.Sample
			for range few(t, "samples") {
				h = append(h, window.Sample{At: when.Draw(t, "at"), Heard: num.Draw(t, "heard"), CPU: interval.Draw(t, "cpu"), P95: interval.Draw(t, "p95")})
			}
			in.History[text.Draw(t, "service")] = h
		}
		got := decide.Plan(in)
		if len(got.Verdicts) != len(in.Policy.Services) {
			t.Fatalf("%d verdicts for %d services", len(got.Verdicts), len(in.Policy.Services))
		}
		for _, v := range got.Verdicts {
			b, err := json.Marshal(v)
			if err != nil {
				t.Fatalf("verdict %+v: %v", v, err)
			}
			if v.Reason.Text == "" || v.Reason.Code == "" || !slices.Contains([]string{decide.Hold, decide.Up, decide.Down}, v.Verdict) {
				t.Fatalf("no reason: %s", b)
			}
			if v.Rules == nil || v.Guards == nil || v.Counted == nil {
				t.Fatalf("a list is null: %s", b)
			}
		}
	})
}
