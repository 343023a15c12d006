package alert

import (
	"math"
	"strings"
	"testing"
	"time"

	"flymesh/leader/burn"
	"flymesh/leader/decide"
	"flymesh/leader/window"
	"flymesh/probes/report"
	"flymesh/raftstore/state"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const every = 5 * time.Second

func rule(t *testing.T, text string) Rule {
	t.Helper()
	r, err := decide.ParseRule(text)
	if err != nil {
		t.Fatal(err)
	}
	return Metrics("n8n", Page, []decide.Rule{r})[0]
}

// world is a history that grows, and the alerts as the state would keep them.
type world struct {
	t    *testing.T
	rule Rule
	now  time.Time
	in   Input
	log  []string
}

func newWorld(t *testing.T, text string) *world {
	r := rule(t, text)
	return &world{t: t, rule: r, now: t0, in: Input{Every: every, NoDataAfter: 5 * time.Minute, Rules: []Rule{r},
		History: map[string][]window.Sample{}, Alerts: map[string]state.Alert{}}}
}

// tick lets time pass with one value in each sample; NaN: nothing is heard.
func (w *world) tick(d time.Duration, value float64) {
	for end := w.now.Add(d); w.now.Before(end); {
		w.now = w.now.Add(every)
		s := window.Sample{At: w.now, Expected: 1, Heard: 1, Requests: 100, P95Count: 100}
		v := report.Of(value)
		if math.IsNaN(value) {
			s.Heard, v = 0, report.Value{}
		}
		s.P95 = window.Interval{Best: 0, Worst: math.Inf(1), Value: v}
		h := append(w.in.History["n8n"], s)
		w.in.History["n8n"] = h[max(0, len(h)-180):] // 15 minutes
		w.step()
	}
}

func (w *world) step() {
	w.in.Now = w.now
	for _, c := range Step(w.in) {
		if c.Alert == nil {
			delete(w.in.Alerts, c.Key)
			w.log = append(w.log, "forgotten")
			continue
		}
		w.in.Alerts[c.Key] = *c.Alert
		w.log = append(w.log, string(c.Alert.Phase))
	}
}

func (w *world) alert() state.Alert { return w.in.Alerts[w.rule.Key()] }

func (w *world) want(phase state.Phase) {
	w.t.Helper()
	if got := w.alert().Phase; got != phase {
		w.t.Fatalf("at %s: phase = %q, want %q (%v)", w.now.Sub(t0), got, phase, w.log)
	}
}

const slow, quick = 3.0, 0.4

var nothing = math.NaN()

func TestForIsHeldOut(t *testing.T) {
	w := newWorld(t, "p95 > 2.5s for 5m")
	w.tick(time.Minute, quick)
	w.want("")
	w.tick(4*time.Minute+55*time.Second, slow)
	w.want(state.Pending)
	w.tick(every, quick) // one good sample starts it anew
	w.want("")
	w.tick(5*time.Minute, slow)
	w.want(state.Pending)
	w.tick(every, slow)
	w.want(state.Firing)
	w.tick(90*time.Second, quick)
	w.want(state.Firing) // not calm for long enough yet
	w.tick(every, slow)
	w.tick(115*time.Second, quick)
	w.want(state.Firing)
	w.tick(10*time.Second, quick)
	w.want(state.Resolved)
	w.tick(time.Hour+time.Minute, quick)
	w.want("")
	if len(w.log) > 8 {
		t.Errorf("%d entries for two breaches: %v", len(w.log), w.log)
	}
}

func TestMissingDataHoldTheClock(t *testing.T) {
	w := newWorld(t, "p95 > 2.5s for 5m")
	w.tick(3*time.Minute, slow)
	w.tick(4*time.Minute, nothing)
	w.want(state.Pending)
	w.tick(time.Minute+50*time.Second, slow)
	w.want(state.Pending) // 4m50s with data
	w.tick(20*time.Second, slow)
	w.want(state.Firing)
	w.tick(30*time.Minute, nothing)
	w.want(state.Firing)
	if w.alert().Unknown.IsZero() {
		t.Error("a page without data does not say so")
	}
	w.tick(3*time.Minute, quick)
	w.want(state.Resolved)
}

func TestNoDataIsAThirdState(t *testing.T) {
	w := newWorld(t, "p95 > 2.5s for 5m")
	w.tick(time.Minute, quick)
	w.tick(4*time.Minute, nothing)
	w.want("")
	w.tick(2*time.Minute, nothing)
	w.want(state.NoData)
	w.tick(every, quick)
	w.want("")
	w.tick(time.Minute, slow)
	w.tick(6*time.Minute, nothing)
	w.want(state.NoData) // was pending
	w.tick(5*time.Minute, slow)
	w.want(state.Pending)
	w.tick(2*every, slow)
	w.want(state.Firing)
}

// TestANewLeaderSeesTheDip holds that a good sample while nobody judged counts.
func TestANewLeaderSeesTheDip(t *testing.T) {
	w := newWorld(t, "p95 > 2.5s for 5m")
	w.tick(3*time.Minute, slow)
	kept := w.in.Alerts[w.rule.Key()]
	w.in.Alerts = map[string]state.Alert{}
	w.in.Rules = nil // nobody leads
	w.tick(every, quick)
	w.tick(2*time.Minute, slow)
	w.in.Rules, w.in.Alerts = []Rule{w.rule}, map[string]state.Alert{kept.Key(): kept}
	w.tick(every, slow)
	w.want(state.Pending)
	if got := w.now.Sub(w.alert().Since); got > 2*time.Minute+10*time.Second {
		t.Errorf("pending since %s, want since the dip", got)
	}
}

func TestFewRequestsAreNoMissingData(t *testing.T) {
	r := rule(t, "p95 > 2.5s for 5m")
	few := window.Sample{At: t0, Heard: 1, Expected: 1, P95: window.Interval{Worst: 4}, P95Count: 3}
	if got := judge(r.When, &few); got != good {
		t.Errorf("three requests = %v, want good", got)
	}
	none := window.Sample{At: t0, Heard: 1, Expected: 1, P95: window.Interval{Worst: math.Inf(1)}}
	if got := judge(r.When, &none); got != unknown {
		t.Errorf("a machine that says nothing = %v, want unknown", got)
	}
}

// TestAnEndThatIsOwedComesFirst holds that an alert that breaks out again
// before a receiver heard of its end does not leave that receiver behind.
func TestAnEndThatIsOwedComesFirst(t *testing.T) {
	w := newWorld(t, "p95 > 2.5s for 1m")
	w.tick(70*time.Second, slow)
	w.want(state.Firing)
	a := w.alert()
	a.Told = map[string]state.Phase{"box": state.Firing}
	w.in.Alerts[a.Key()] = a
	w.tick(2*time.Minute, quick)
	w.want(state.Resolved)
	w.tick(3*time.Minute, slow)
	w.want(state.Resolved)
	a = w.alert()
	a.Told = map[string]state.Phase{"box": state.Resolved}
	w.in.Alerts[a.Key()] = a
	w.tick(every, slow)
	w.want(state.Firing) // the history says since when
	if len(w.alert().Told) != 0 {
		t.Error("a new firing counts as told")
	}
}

func TestFactsAndOrphans(t *testing.T) {
	in := Input{Now: t0, Every: every, Rules: OfMesh(), Facts: map[string]Fact{QuorumRule: {Holds: true, Text: "2 of 3"}}, Alerts: map[string]state.Alert{
		"gone/n8n": {Rule: "gone", Service: "n8n", Phase: state.Firing, Fired: t0, Told: map[string]state.Phase{"box": state.Firing}},
	}}
	got := Step(in)
	if len(got) != 2 || got[0].Alert.Phase != state.Pending || got[1].Alert.Phase != state.Resolved {
		t.Fatalf("step = %+v, want the quorum pending and the orphan resolved", got)
	}
	in.Alerts = map[string]state.Alert{QuorumRule: *got[0].Alert}
	in.Now = t0.Add(time.Minute)
	if got = Step(in); len(got) != 1 || got[0].Alert.Phase != state.Firing || got[0].Alert.Text != "2 of 3" {
		t.Errorf("a minute later = %+v, want firing", got)
	}
}

// TestBurnRate takes one rule through its phases: it fires at once, its spans
// say how long; what is not known resolves nothing; a rate about its line is one
// alert; a mesh that has not watched for long enough has no data.
func TestBurnRate(t *testing.T) {
	r := Burns(burn.Goal{Service: "n8n", Target: burn.Errors, Allowed: 0.01})[0]
	if r.Key() != "error_rate_burn_1h/n8n" || r.Severity != Page || Burns(r.Burn.Goal)[2].Severity != Warn {
		t.Errorf("rule %+v", r)
	}
	w := &world{t: t, rule: r, now: t0, in: Input{Every: every, NoDataAfter: 5 * time.Minute, Rules: []Rule{r}, Alerts: map[string]state.Alert{}}}
	look := func(d time.Duration, long, short, covered float64) {
		t.Helper()
		w.now = w.now.Add(d)
		use := func(rate, covered float64) burn.Use {
			return burn.Use{Requests: 1e4, Share: rate / 100, Covered: covered, First: t0, Last: w.now}
		}
		w.in.Uses = map[string]Uses{r.Key(): {use(long, covered), use(short, covered)}}
		w.step()
	}
	look(time.Minute, 0, 0, 0.02)
	w.want("")
	look(4*time.Minute, 0, 0, 0.1)
	w.want(state.NoData)
	if got := w.alert().Text; !strings.Contains(got, "10 % of the last 1h are known") {
		t.Errorf("text = %q", got)
	}
	look(time.Hour, 0, 0, 1)
	w.want("")
	look(time.Minute, 14.5, 30, 1)
	w.want(state.Firing)
	if got, want := w.alert().Text, "n8n: the error rate uses up what its target allows 14.5 times as fast over 1h and 30 times over 5m (rule: error_rate burns over 14.4x for 1h and 5m)"; got != want {
		t.Errorf("text = %q, want %q", got, want)
	}
	look(time.Minute, 14.3, 30, 1) // hardly under the line
	w.want(state.Firing)
	look(20*time.Minute, 1, 1, 0.1) // hardly anything is known
	w.want(state.Firing)
	if w.alert().Unknown.IsZero() {
		t.Error("an alert about which nothing is known does not say so")
	}
	look(time.Minute, 20, 0, 1)
	w.want(state.Resolved)
	if n := len(w.log); n != 5 {
		t.Errorf("%d entries of the log: %v", n, w.log)
	}
}
