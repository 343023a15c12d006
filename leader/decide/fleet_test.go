package decide_test

import (
	"fmt"
	"math"
	"time"

	"pgregory.net/rapid"

	"flymesh/leader/decide"
	"flymesh/leader/window"
	"flymesh/probes/report"
)

var noon = time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC)

// fleetsPerCheck services with their own fleets are in each drawn input, so
// that the 100 checks of a property see a thousand fleets.
const fleetsPerCheck = 10

var restingStates = map[string]bool{"stopped": true, "suspended": true, "destroying": true, "destroyed": true, "failed": true}

// rests says whether a machine surely does not run: what the API says of it
// and what the mesh hears agree.
func rests(m *decide.Machine) bool {
	return restingStates[m.State] && (m.State != "failed" || !m.Heard) || m.State == "created" && noon.Sub(m.Created) > 10*time.Minute
}

func ages(limit time.Duration) *rapid.Generator[time.Duration] {
	return rapid.Custom(func(t *rapid.T) time.Duration {
		return time.Duration(rapid.IntRange(0, int(limit/time.Second)).Draw(t, "seconds")) * time.Second
	})
}

// likely draws true in one of n or less.
func likely(t *rapid.T, name string, n int) bool { return rapid.IntRange(1, n).Draw(t, name) == n }

func drawRules(t *rapid.T, name string, texts ...string) []decide.Rule {
	var out []decide.Rule
	for i, text := range texts {
		if i > 0 && likely(t, name, 2) {
			continue
		}
		r, err := decide.ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

// inputs draws whole rounds that could happen: more often than not nothing
// stands in the way, so that steps are taken.
func inputs() *rapid.Generator[decide.Input] {
	return rapid.Custom(func(t *rapid.T) decide.Input {
		in := decide.Input{
			Now: noon, Term: 7, Quorum: !likely(t, "no quorum", 30),
			Policy:   decide.Policy{ReportEvery: reportEvery},
			Services: map[string]decide.ServiceState{}, Facts: map[string]decide.Facts{}, History: map[string][]window.Sample{},
		}
		for i := range fleetsPerCheck {
			drawService(t, &in, fmt.Sprintf("s%d", i))
		}
		return in
	})
}

func drawService(t *rapid.T, in *decide.Input, name string) {
	baseline := rapid.IntRange(1, 3).Draw(t, "baseline")
	s := decide.Service{
		Name: name, Baseline: baseline, Max: baseline * rapid.IntRange(1, 3).Draw(t, "factor"),
		Up:       drawRules(t, "up", "cpu > 80% for 3m", "p95 > 1.5s for 3m", "queue > 10 for 3m"),
		Down:     drawRules(t, "down", "cpu < 40% for 10m", "p95 < 800ms for 10m", "queue < 10 for 10m"),
		Cooldown: 5 * time.Minute, Pinned: rapid.Bool().Draw(t, "pinned service"), MinSamples: 20,
		Mode:       rapid.SampledFrom([]decide.Mode{decide.Auto, decide.Auto, decide.Auto, decide.UpOnly, decide.Shadow, decide.Off}).Draw(t, "mode"),
		ReadyGrace: 90 * time.Second, NoGainAfter: 2,
	}
	in.Policy.Services = append(in.Policy.Services, s)
	n := s.Max + rapid.IntRange(-s.Max, 2).Draw(t, "machines")
	trouble := rapid.Bool().Draw(t, "trouble")
	for i := range n {
		in.Machines = append(in.Machines, drawMachine(t, name, i, trouble && likely(t, "odd", 3)))
	}
	if s.Pinned && n > 0 {
		in.Machines[len(in.Machines)-1-rapid.IntRange(0, n-1).Draw(t, "primary")].Pinned = true
	}
	if likely(t, "op", 6) {
		o := decide.Op{ID: "1-7-" + name, Service: name, Kind: rapid.SampledFrom([]string{decide.Up, decide.Down}).Draw(t, "kind"), Step: "booting"}
		if n > 0 && rapid.Bool().Draw(t, "op has machine") {
			o.Machine = fmt.Sprintf("%s-m%d", name, rapid.IntRange(0, n).Draw(t, "op machine"))
		}
		in.Ops = append(in.Ops, o)
	}
	in.Services[name] = drawState(t, s)
	f := decide.Facts{ShortSince: noon.Add(-time.Minute)}
	if likely(t, "facts", 8) {
		*rapid.SampledFrom([]*string{&f.APIError, &f.Deploy, &f.Owner, &f.Breaker}).Draw(t, "fact") = "so it is"
	}
	if likely(t, "budgets", 2) {
		p := &in.Policy.Services[len(in.Policy.Services)-1]
		p.BudgetHours, p.FlapPerHour = 10, 4
		f.Hours = rapid.Float64Range(7, 13).Draw(t, "hours")
		f.Turns = rapid.IntRange(1, 5).Draw(t, "turns")
		f.Turned = rapid.SampledFrom([]string{"", decide.Up, decide.Down}).Draw(t, "turned")
	}
	if likely(t, "just short", 8) {
		f.ShortSince = noon.Add(-rapid.SampledFrom([]time.Duration{0, 10 * time.Second, 29 * time.Second}).Draw(t, "short for"))
	}
	in.Facts[name] = f
	in.History[name] = drawHistory(t, name, n)
}

func drawMachine(t *rapid.T, service string, i int, odd bool) decide.Machine {
	m := decide.Machine{
		ID: fmt.Sprintf("%s-m%d", service, i), Service: service, State: "started", HostOK: true, Heard: true, Readiness: report.Ready,
		Created: noon.Add(-ages(time.Hour).Draw(t, "age")), InFlight: report.Of(float64(rapid.IntRange(0, 9).Draw(t, "in flight"))),
		Voter: rapid.Bool().Draw(t, "voter"),
	}
	m.Started = m.Created
	if !odd {
		return m
	}
	m.State = rapid.SampledFrom([]string{"started", "started", "created", "starting", "stopping", "stopped", "suspended",
		"destroying", "destroyed", "failed", "updating", "replacing", ""}).Draw(t, "state")
	m.Heard = rapid.Bool().Draw(t, "heard")
	m.HostOK = !likely(t, "host down", 5)
	m.Readiness = report.Readiness(rapid.IntRange(0, 5).Draw(t, "readiness"))
	for _, b := range []*bool{&m.Cordoned, &m.Locked, &m.Leader, &m.Busy} {
		*b = likely(t, "flag", 4)
	}
	return m
}

func drawState(t *rapid.T, s decide.Service) decide.ServiceState {
	var st decide.ServiceState
	if likely(t, "pause", 10) {
		st.PausedUntil = noon.Add(time.Minute - ages(2*time.Minute).Draw(t, "pause"))
	}
	if likely(t, "cooldown", 4) {
		st.CooldownUntil = noon.Add(5*time.Minute - ages(10*time.Minute).Draw(t, "cooldown"))
	}
	if likely(t, "manual", 3) {
		st.Manual = &decide.Manual{Target: rapid.IntRange(-1, s.Max+2).Draw(t, "target"), By: "ops"}
	}
	for range rapid.IntRange(0, 3).Draw(t, "additions") {
		st.Additions = append(st.Additions, decide.Addition{
			At: noon.Add(-20 * time.Minute), Metric: rapid.SampledFrom([]decide.Metric{decide.CPU, decide.P95}).Draw(t, "metric"),
			Value: rapid.Float64Range(0.5, 4).Draw(t, "value"),
		})
	}
	return st
}

// drawHistory is 12 minutes of a service that is hot, calm or idle, perhaps
// with machines missing or samples lost.
func drawHistory(t *rapid.T, service string, machines int) []window.Sample {
	level := rapid.SampledFrom([]float64{0.1, 0.2, 0.5, 0.95, 0.98}).Draw(t, "level")
	missing, heardAgain := 0, 0
	if likely(t, "missing", 4) {
		missing = rapid.IntRange(0, machines).Draw(t, "missing machines")
		heardAgain = 144 - rapid.IntRange(0, 140).Draw(t, "heard again")
	}
	lost := 0
	if likely(t, "lost", 4) {
		lost = rapid.IntRange(1, 8).Draw(t, "lost")
	}
	turn := rapid.IntRange(0, 160).Draw(t, "turn") // how long ago the level was reached
	var out []window.Sample
	for i := range 144 {
		if lost > 0 && i%(lost+1) == 0 {
			continue
		}
		x := level
		if i < turn-20 {
			x = 0.5
		}
		s := sampleAt(noon.Add(-time.Duration(143-i)*reportEvery), x)
		s.Heard, s.Expected = machines, machines
		if i < heardAgain && missing > 0 {
			s.Heard -= missing
			for j := range missing {
				s.Missing = append(s.Missing, fmt.Sprintf("%s-m%d", service, j))
			}
			for _, v := range []*window.Interval{&s.CPU, &s.P95, &s.Queue} {
				v.Best, v.Worst = v.Best/2, math.Inf(1)
			}
		}
		out = append(out, s)
	}
	return out
}

// sampleAt is a sample of a service whose machines are loaded to the share x.
func sampleAt(at time.Time, x float64) window.Sample {
	known := func(v float64) window.Interval { return window.Interval{Best: v, Worst: v, Value: report.Of(v)} }
	return window.Sample{
		At: at, Expected: 1, Heard: 1, CPU: known(min(1, x)), Memory: known(0.4), P95: known(0.2 + x*x*2), P95Count: 500,
		Queue: known(max(0, x-0.7) * 60), ErrorRate: known(0), Requests: 500,
	}
}
