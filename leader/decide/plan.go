package decide

import (
	"fmt"
	"strings"
	"time"

	"flymesh/leader/window"
)

// Plan decides one round: for each service of the policy one verdict, with at
// most one step. It is total and deterministic; the order of in.Machines does
// not matter, and in is not changed.
func Plan(in Input) Result {
	every := in.Policy.ReportEvery
	if every <= 0 {
		every = defaultEvery
	}
	machines := newRoster(&in)
	out := Result{Verdicts: make([]Verdict, 0, len(in.Policy.Services))}
	for i := range in.Policy.Services {
		s := &in.Policy.Services[i]
		r := round{
			in: &in, every: every, service: s, state: in.Services[s.Name], facts: in.Facts[s.Name],
			samples: present(in.History[s.Name], in.Now, every),
			fleet:   machines.count(&in, s),
		}
		out.Verdicts = append(out.Verdicts, r.decide())
	}
	return out
}

// round is the decision about one service.
type round struct {
	in      *Input
	every   time.Duration
	service *Service
	state   ServiceState
	facts   Facts
	samples []window.Sample
	fleet   fleet

	mode Mode
	ups  []eval
	down []eval
	want want
	out  victim // of a removal
}

// want is what should happen if no guard objects.
type want struct {
	kind    string // Up, Down or Hold
	code    Code
	text    string
	trigger *eval // the rule that asks for an addition
}

func (r *round) decide() Verdict {
	r.mode = r.service.Mode
	if r.state.Mode != "" {
		r.mode = r.state.Mode
	}
	if r.mode == "" {
		r.mode = Auto
	}
	// At the end of a budget a rule may hold as early as ever: it is then told
	// what holds it, and a person is called.
	r.ups = r.evaluate(tightened(r.service.Up, r.hoursNear() && !r.hoursSpent()))
	r.down = r.evaluate(tightened(r.service.Down, r.turnsNear() && !r.turnsSpent()))
	r.want = r.wanted()
	if r.want.kind == Down {
		r.out = r.choose()
	}
	v := Verdict{
		Service: r.service.Name, At: r.in.Now, Verdict: Hold,
		Reason:  Reason{r.want.code, r.want.text},
		Rules:   make([]RuleEval, 0, len(r.ups)+len(r.down)),
		Guards:  r.guards(),
		Counted: r.fleet.list,
	}
	for i := range r.ups {
		v.Rules = append(v.Rules, r.ups[i].public(Up))
	}
	for i := range r.down {
		v.Rules = append(v.Rules, r.down[i].public(Down))
	}
	v.Recovered = r.recovered()
	v.ManualReached, v.ManualImpossible = r.manualOver()
	for _, g := range v.Guards {
		if g.Blocks {
			v.Reason = Reason{g.Code, g.Detail}
			if r.want.kind != Hold {
				v.Reason.Text += "; otherwise: " + r.want.text
			} else if r.mode != Off {
				v.Reason.Text += "; " + r.want.text
			}
			v.Page = r.page(g)
			return v
		}
	}
	if r.want.kind != Hold {
		r.act(&v)
	}
	return v
}

// act turns the verdict into the step that is wanted.
func (r *round) act(v *Verdict) {
	a := &Action{Kind: r.want.kind, Manual: r.want.code == CodeManual, Dry: r.mode == Shadow}
	verb := ""
	if r.want.kind == Up {
		a.From, a.To = r.fleet.counted, r.fleet.counted+1
		verb = fmt.Sprintf("adding 1: %d -> %d of at most %d", a.From, a.To, r.service.Max)
		if t := r.want.trigger; t != nil {
			a.Trigger = &Addition{At: r.in.Now, Metric: t.rule.Metric, Value: t.value()}
		}
	} else {
		a.From, a.To, a.Machine = r.fleet.staying, r.fleet.staying-1, r.out.machine.ID
		verb = fmt.Sprintf("removing %s (%s): %d -> %d, baseline %d", a.Machine, r.out.why, a.From, a.To, r.service.Baseline)
	}
	if a.Dry {
		verb = "shadow mode, so not " + verb
	}
	v.Verdict, v.Action = r.want.kind, a
	v.Reason.Text = r.want.text + "; " + verb
}

func (r *round) evaluate(rules []Rule) []eval {
	out := make([]eval, 0, len(rules))
	for i := range rules {
		out = append(out, evaluate(&rules[i], r.samples, r.in.Now, r.every))
	}
	return out
}

// fresh says whether the newest sample speaks for now.
func (r *round) fresh() bool {
	return len(r.samples) > 0 && fresh(&r.samples[len(r.samples)-1], r.in.Now, r.every)
}

// wanted says what should happen if no guard objected: what a person asked
// for, else the baseline, else the rules (any up rule, or all down rules).
func (r *round) wanted() want {
	if r.mode == Off {
		return want{kind: Hold, code: CodeOff, text: "the service is off: nothing is decided"}
	}
	if m := r.state.Manual; m != nil {
		return r.asked(m)
	}
	if r.fleet.counted < r.service.Baseline {
		return want{kind: Up, code: CodeBelowBaseline,
			text: fmt.Sprintf("%s or may run, fewer than the baseline of %d", machines(r.fleet.counted, "runs", "run"), r.service.Baseline)}
	}
	for i := range r.ups {
		if e := &r.ups[i]; e.holds() {
			return want{kind: Up, code: CodeRuleUp, text: e.says(r.in.Now), trigger: e}
		}
	}
	if len(r.down) > 0 && all(r.down, (*eval).holds) {
		return want{kind: Down, code: CodeRuleDown, text: r.idle()}
	}
	return r.nothing()
}

// idle is the sentence of all down rules, with the run of the youngest.
func (r *round) idle() string {
	youngest := &r.down[0]
	texts := make([]string, len(r.down))
	for i := range r.down {
		e := &r.down[i]
		texts[i] = e.stands() + " " + e.line()
		if e.sure.since.After(youngest.sure.since) {
			youngest = e
		}
	}
	n := len(texts) - 1
	if n > 0 {
		texts[n-1] += " and " + texts[n]
		texts = texts[:n]
	}
	return strings.Join(texts, ", ") + youngest.lasts(r.in.Now)
}

// asked is the step toward the size that a person asked for.
func (r *round) asked(m *Manual) want {
	w := want{kind: Hold, code: CodeManual, text: fmt.Sprintf("%s asked for %d", or(m.By, "a person"), m.Target)}
	if m.Reason != "" {
		w.text += " (" + m.Reason + ")"
	}
	switch f := &r.fleet; {
	case m.Target > r.service.Max || m.Target > f.counted:
		w.kind = Up
	case m.Target < r.service.Baseline || m.Target < f.staying:
		w.kind = Down
	case f.counted > f.staying && m.Target != f.counted:
		w.text += fmt.Sprintf("; waiting for %s to stop", f.named(asStopping, asDraining))
	default:
		w.text += "; that is what runs"
	}
	return w
}

// manualOver says whether the size that a person asked for is reached, or why
// it never can be.
func (r *round) manualOver() (reached bool, impossible string) {
	m := r.state.Manual
	switch {
	case m == nil:
		return false, ""
	case m.Target > r.service.Max:
		return false, fmt.Sprintf("%d is over the cap of %d", m.Target, r.service.Max)
	case m.Target < r.service.Baseline:
		return false, fmt.Sprintf("%d is under the baseline of %d", m.Target, r.service.Baseline)
	}
	return m.Target == r.fleet.counted && m.Target == r.fleet.staying && r.openOp() == nil, ""
}

// nothing is the reason for wanting nothing: rules that missing data keep from
// being decided, else that no rule holds.
func (r *round) nothing() want {
	w := want{kind: Hold, code: CodeDataMissing}
	rules := len(r.ups) + len(r.down)
	if !r.fresh() {
		if rules > 0 {
			w.text = "there are no samples yet"
			if n := len(r.samples); n > 0 {
				w.text = fmt.Sprintf("the newest sample is %s old", brief(r.in.Now.Sub(r.samples[n-1].At)))
			}
			return w
		}
		return want{kind: Hold, code: CodeSteady, text: "no rules are set"}
	}
	last := &r.samples[len(r.samples)-1]
	if last.Heard == 0 && rules > 0 {
		w.text = "no machine of the service is heard" + among(last.Missing)
		return w
	}
	for i := range r.ups {
		if e := &r.ups[i]; e.lacks() {
			w.text = e.doubt() + among(e.missing)
			return w
		}
	}
	if len(r.down) > 0 && all(r.down, func(e *eval) bool { return e.holds() || e.lacks() }) {
		for i := range r.down {
			if e := &r.down[i]; !e.holds() {
				w.text = e.doubt() + among(e.missing)
				return w
			}
		}
	}
	return want{kind: Hold, code: CodeSteady, text: r.steady()}
}

func among(missing []string) string {
	if len(missing) == 0 {
		return ""
	}
	return " (missing: " + strings.Join(missing, ", ") + ")"
}

// steady says where the metrics stand when no rule holds.
func (r *round) steady() string {
	var b strings.Builder
	b.WriteString("no rule holds")
	sep := ": "
	for _, e := range r.ups {
		b.WriteString(sep)
		sep = ", "
		if e.sure.samples == 0 {
			b.WriteString(e.stands())
			continue
		}
		fmt.Fprintf(&b, "%s %s for %s of %s", e.stands(), e.line(), brief(max(0, r.in.Now.Sub(e.sure.since))), brief(e.rule.For))
	}
	return b.String()
}

// recovered says that the breach which the additions answer is over: no up
// rule holds, and no sample in the span of any rule on the metrics of the
// additions could have been one.
func (r *round) recovered() bool {
	if !r.fresh() {
		return false
	}
	for i := range r.ups {
		e := &r.ups[i]
		if e.holds() {
			return false
		}
		for _, a := range r.state.Additions {
			if a.Metric == e.rule.Metric && !e.calm {
				return false
			}
		}
	}
	return true
}

// page is what a person is called for.
func (r *round) page(g GuardEval) string {
	if r.want.code != CodeRuleUp || g.Code != CodeNoImprovement && g.Code != CodeCap && g.Code != CodeBudget {
		return ""
	}
	return r.service.Name + ": " + g.Detail + "; " + r.want.text
}

func (r *round) openOp() *Op {
	for i := range r.in.Ops {
		if r.in.Ops[i].Service == r.service.Name {
			return &r.in.Ops[i]
		}
	}
	return nil
}

func all(es []eval, yes func(*eval) bool) bool {
	for i := range es {
		if !yes(&es[i]) {
			return false
		}
	}
	return true
}

// machines writes "1 machine runs" or "2 machines run".
func machines(n int, verb, verbs string) string {
	if n == 1 {
		return "1 machine " + verb
	}
	return fmt.Sprintf("%d machines %s", n, verbs)
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
