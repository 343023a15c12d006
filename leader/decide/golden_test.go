package decide_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"flymesh/leader/decide"
	"flymesh/leader/window"
	"flymesh/probes/report"
)

var update = flag.Bool("update", false, "write testdata/*/plan.json anew")

// situation is the human form of an Input for one service: durations are ages
// seen from now, and the history is a list of runs of equal samples.
type situation struct {
	Note string // what this is about
	Want struct {
		Verdict string
		Code    decide.Code
	}
	Now      string // time of day
	NoQuorum bool
	Service  serviceForm
	Machines []machineForm
	Ops      []decide.Op
	State    stateForm
	Facts    decide.Facts
	ShortFor dur       // since when fewer than the baseline are listed
	TurnsFor dur       // how long the oldest reversal still counts
	History  []runForm // oldest first; the newest sample is 2 s old, or Ends
	Ends     dur
}

type serviceForm struct {
	Baseline, Max     int
	Up, Down          []string
	Cooldown          dur
	Mode              decide.Mode
	Pinned            bool
	ReadyGrace        dur
	NoGainAfter, Over int
	BudgetHours       float64
	FlapPerHour       int
}

type machineForm struct {
	ID       string
	State    string
	Age      dur    // since it was created and started
	Started  dur    // since it was started, if later
	Ready    string // a readiness, or "silent"
	InFlight report.Value
	HostDown, Cordoned, Pinned, Locked,
	Leader, Voter, Busy bool
	Avoid string
}

type stateForm struct {
	Mode        decide.Mode
	PausedFor   dur
	PauseReason string
	CooldownFor dur
	Manual      *decide.Manual
	Additions   []struct {
		Ago    dur
		Metric decide.Metric
		Value  float64
	}
}

type runForm struct {
	For        dur
	Every      dur // one sample each Every instead of each 5 s: the others are lost
	Jitter     dur // every second sample comes this much late
	Hole       bool
	Missing    []string
	Heard      int
	CPU        interval
	Memory     interval
	P95        interval
	Queue      interval
	ErrorRate  interval
	QueueTotal bool
}

// interval is a number, [best, worst] without a value, or [best, worst, value];
// null as worst is unbounded. Left out it is unknown.
type interval struct {
	set bool
	i   window.Interval
}

func (v *interval) UnmarshalJSON(b []byte) error {
	v.set = true
	var x float64
	if json.Unmarshal(b, &x) == nil {
		v.i = window.Interval{Best: x, Worst: x, Value: report.Of(x)}
		return nil
	}
	var list []report.Value
	if err := json.Unmarshal(b, &list); err != nil {
		return err
	}
	if len(list) < 2 || len(list) > 3 {
		return errors.New("an interval is a number or [best, worst, value]")
	}
	v.i = window.Interval{Best: list[0].X, Worst: list[1].X}
	if !list[1].OK {
		v.i.Worst = math.Inf(1)
	}
	if len(list) == 3 {
		v.i.Value = list[2]
	}
	return nil
}

func (v interval) or(unknown float64) window.Interval {
	if v.set {
		return v.i
	}
	return window.Interval{Worst: unknown}
}

// dur is a duration written "3m".
type dur time.Duration

func (d *dur) UnmarshalText(b []byte) error {
	x, err := time.ParseDuration(string(b))
	*d = dur(x)
	return err
}

const reportEvery = 5 * time.Second

// strategy is the service that a situation changes: the defaults of mesh.toml.
func strategy() serviceForm {
	return serviceForm{
		Baseline: 1, Max: 3,
		Up:       []string{"cpu > 80% for 3m", "p95 > 1.5s for 3m", "queue > 10 for 3m"},
		Down:     []string{"cpu < 40% for 10m", "p95 < 800ms for 10m", "queue < 10 for 10m"},
		Cooldown: dur(5 * time.Minute), Mode: decide.Auto, Pinned: true,
		ReadyGrace: dur(90 * time.Second), NoGainAfter: 2,
	}
}

func load(t *testing.T, path string) (situation, decide.Input) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := situation{Now: "14:05:22", Service: strategy(), Ends: dur(2 * time.Second), ShortFor: dur(time.Minute)}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return s, s.input(t)
}

func rules(t testing.TB, texts []string) []decide.Rule {
	t.Helper()
	var out []decide.Rule
	for _, x := range texts {
		r, err := decide.ParseRule(x)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

func (s situation) input(t *testing.T) decide.Input {
	t.Helper()
	now, err := time.Parse("2006-01-02 15:04:05", "2026-01-05 "+s.Now)
	if err != nil {
		t.Fatal(err)
	}
	ago := func(d dur) time.Time { return now.Add(-time.Duration(d)) }
	const name = "n8n"
	in := decide.Input{
		Now: now, Term: 3, Quorum: !s.NoQuorum,
		Policy: decide.Policy{ReportEvery: reportEvery, Services: []decide.Service{{
			Name: name, Baseline: s.Service.Baseline, Max: s.Service.Max,
			Up: rules(t, s.Service.Up), Down: rules(t, s.Service.Down),
			Cooldown: time.Duration(s.Service.Cooldown), Mode: s.Service.Mode, Pinned: s.Service.Pinned,
			MinSamples: 20, ReadyGrace: time.Duration(s.Service.ReadyGrace), NoGainAfter: s.Service.NoGainAfter,
			BudgetHours: s.Service.BudgetHours, FlapPerHour: s.Service.FlapPerHour,
		}}},
		Ops:     s.Ops,
		History: map[string][]window.Sample{name: s.samples(now)},
	}
	for i := range in.Ops {
		in.Ops[i].Service = name
	}
	if s.ShortFor != 0 {
		s.Facts.ShortSince = ago(s.ShortFor)
	}
	if s.TurnsFor != 0 {
		s.Facts.TurnsUntil = now.Add(time.Duration(s.TurnsFor))
	}
	in.Facts = map[string]decide.Facts{name: s.Facts}
	for _, m := range s.Machines {
		x := decide.Machine{
			ID: m.ID, Service: name, State: m.State, HostOK: !m.HostDown, Created: ago(m.Age), Started: ago(m.Age),
			Cordoned: m.Cordoned, Pinned: m.Pinned, Locked: m.Locked, Leader: m.Leader, Voter: m.Voter, Busy: m.Busy, Avoid: m.Avoid,
			Heard: m.Ready != "silent", ReportAge: time.Second, InFlight: m.InFlight,
		}
		if m.Started != 0 {
			x.Started = ago(m.Started)
		}
		if x.State == "" {
			x.State = "started"
		}
		x.Readiness = readiness(t, m.Ready)
		in.Machines = append(in.Machines, x)
	}
	st := decide.ServiceState{Mode: s.State.Mode, PauseReason: s.State.PauseReason, Manual: s.State.Manual}
	if s.State.PausedFor != 0 {
		st.PausedUntil = now.Add(time.Duration(s.State.PausedFor))
	}
	if s.State.CooldownFor != 0 {
		st.CooldownUntil = now.Add(time.Duration(s.State.CooldownFor))
	}
	for _, a := range s.State.Additions {
		st.Additions = append(st.Additions, decide.Addition{At: ago(a.Ago), Metric: a.Metric, Value: a.Value})
	}
	in.Services = map[string]decide.ServiceState{name: st}
	return in
}

func readiness(t *testing.T, name string) report.Readiness {
	switch name {
	case "", "silent":
		return report.Ready
	}
	for r := report.Booting; r <= report.Draining; r++ {
		if r.String() == name {
			return r
		}
	}
	t.Fatalf("no readiness %q", name)
	return 0
}

// samples lays the runs end to end, the last one ending Ends before now.
func (s situation) samples(now time.Time) []window.Sample {
	at := now.Add(-time.Duration(s.Ends))
	for _, r := range s.History {
		at = at.Add(-time.Duration(r.For))
	}
	var out []window.Sample
	for _, r := range s.History {
		step := reportEvery
		if r.Every != 0 {
			step = time.Duration(r.Every)
		}
		end := at.Add(time.Duration(r.For))
		for i := 0; !r.Hole && at.Before(end); i++ {
			at = at.Add(step)
			x := window.Sample{
				At: at, Heard: max(r.Heard, 1), Missing: r.Missing, CPU: r.CPU.or(1), Memory: r.Memory.or(1),
				P95: r.P95.or(math.Inf(1)), Queue: r.Queue.or(math.Inf(1)), ErrorRate: r.ErrorRate.or(1), QueueTotal: r.QueueTotal,
			}
			if r.Heard < 0 {
				x.Heard = 0
			}
			if i%2 == 1 {
				x.At = at.Add(time.Duration(r.Jitter))
			}
			x.Expected = x.Heard + len(x.Missing)
			out = append(out, x)
		}
		at = end
	}
	return out
}

// Each directory of testdata is one situation: input.json says what is and
// which verdict and code must come of it, plan.json is the whole verdict.
func TestSituations(t *testing.T) {
	dirs, err := filepath.Glob("testdata/*/input.json")
	if err != nil {
		t.Fatal(err)
	}
	if len(dirs) < 36 {
		t.Fatalf("only %d situations", len(dirs))
	}
	seen := map[decide.Code]bool{}
	for _, path := range dirs {
		dir := filepath.Dir(path)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			s, in := load(t, path)
			got := decide.Plan(in).Verdicts[0]
			seen[got.Reason.Code] = true
			for _, g := range got.Guards {
				seen[g.Code] = seen[g.Code] || g.Blocks
			}
			if got.Verdict != s.Want.Verdict || got.Reason.Code != s.Want.Code {
				t.Errorf("%s\n got %s (%s: %s)\nwant %s (%s)", s.Note,
					got.Verdict, got.Reason.Code, got.Reason.Text, s.Want.Verdict, s.Want.Code)
			}
			var text bytes.Buffer
			e := json.NewEncoder(&text)
			e.SetEscapeHTML(false)
			e.SetIndent("", "  ")
			if err := e.Encode(got); err != nil {
				t.Fatal(err)
			}
			b := text.Bytes()
			golden := filepath.Join(dir, "plan.json")
			if *update {
				if err := os.WriteFile(golden, b, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(b)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", golden, diff)
			}
		})
	}
	for _, c := range codes {
		if !seen[c] {
			t.Errorf("no situation shows code %s", c)
		}
	}
}

// codes is every reason code, guards in their order first.
var codes = []decide.Code{
	decide.CodeOff, decide.CodePaused, decide.CodeNoQuorum, decide.CodeAPIDown, decide.CodeOwner, decide.CodeDeploy,
	decide.CodeDataMissing, decide.CodeOpInFlight, decide.CodeBreaker, decide.CodeCooldown, decide.CodeNoImprovement,
	decide.CodeCap, decide.CodeBudget, decide.CodeMode, decide.CodeBaseline, decide.CodePinned, decide.CodeLastReady,
	decide.CodeProjected, decide.CodeNoVictim,
	decide.CodeRuleUp, decide.CodeRuleDown, decide.CodeManual, decide.CodeBelowBaseline, decide.CodeSteady,
}

func TestGuardsComeInOrder(t *testing.T) {
	in := decide.Input{Policy: decide.Policy{Services: []decide.Service{{Name: "a"}}}}
	v := decide.Plan(in).Verdicts[0]
	var got []decide.Code
	for _, g := range v.Guards {
		if g.Detail == "" {
			t.Errorf("guard %s has no detail", g.Code)
		}
		got = append(got, g.Code)
	}
	if diff := cmp.Diff(codes[:19], got); diff != "" {
		t.Errorf("guards (-want +got):\n%s", diff)
	}
}
