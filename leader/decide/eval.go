package decide

import (
	"fmt"
	"strings"
	"time"

	"flymesh/leader/window"
)

// defaultEvery is the report interval that is assumed when the policy has none.
const defaultEvery = 5 * time.Second

// freshPeriods is the age in report intervals up to which the newest sample
// speaks for now.
const freshPeriods = 3

// test is a question to one sample about one rule.
type test int

const (
	surely   test = iota // the rule is satisfied whatever the missing data are
	possibly             // it may be
	never                // it is not, whatever they are
)

// ask answers t for one interval. Missing data make the interval wide, so that
// neither "surely" nor "never" is true then.
func (r *Rule) ask(t test, i window.Interval) bool {
	low, high := i.Best, i.Worst
	if r.Op == "<" {
		low, high = -i.Worst, -i.Best
	} else if r.Op != ">" {
		return t == never
	}
	line := r.Value
	if r.Op == "<" {
		line = -line
	}
	switch t {
	case surely:
		return low > line && finite(low)
	case possibly:
		return high > line || high != high
	}
	return high <= line
}

// run is a stretch of samples that ends at the newest one, of which every one
// answers a test with yes.
type run struct {
	since   time.Time // of its oldest sample; zero: the newest says no
	samples int
	long    bool // it is as long as the rule asks
	covers  bool // and four fifths of the span's samples are there
}

// eval is one rule held against a history.
type eval struct {
	rule     *Rule
	fresh    bool // there is a newest sample and it is not too old
	newest   window.Interval
	missing  []string
	sure     run
	maybe    bool // the rule may hold: only data that are missing say otherwise
	calm     bool // for the rule's whole span it was never even possible
	expected int  // samples that the span should have
	coverage float64
}

func (e *eval) holds() bool { return e.sure.covers }

// value is what the metric stands at: as observed, else what it is at best.
func (e *eval) value() float64 {
	if e.newest.Value.OK && finite(e.newest.Value.X) {
		return e.newest.Value.X
	}
	return e.newest.Best
}

// evaluate holds a rule against samples, oldest first, none after now.
func evaluate(r *Rule, samples []window.Sample, now time.Time, every time.Duration) eval {
	e := eval{rule: r, expected: int(max(1, (r.For+every/2)/every))}
	there := 0
	for i := len(samples) - 1; i >= 0 && now.Sub(samples[i].At) < r.For; i-- {
		there++
	}
	e.coverage = min(1, float64(there)/float64(e.expected))
	if len(samples) == 0 {
		return e
	}
	last := &samples[len(samples)-1]
	e.newest, e.missing = r.Metric.of(last), last.Missing
	e.fresh = fresh(last, now, every)
	e.sure = e.stretch(surely, samples, now, every)
	if !e.sure.covers {
		e.maybe = e.stretch(possibly, samples, now, every).covers
		e.calm = e.stretch(never, samples, now, every).covers
	}
	return e
}

func fresh(last *window.Sample, now time.Time, every time.Duration) bool {
	return now.Sub(last.At) <= freshPeriods*every
}

// stretch follows the samples back from the newest one for as long as they
// answer t with yes. A sample speaks for the interval before it, so a run
// covers the rule's span when its oldest one is For less one interval old. A
// hole of more than a fifth of the span ends the run, so its length is never
// made of silence.
func (e *eval) stretch(t test, samples []window.Sample, now time.Time, every time.Duration) run {
	var out run
	hole := max(freshPeriods*every, e.rule.For/5+every)
	inSpan := 0
	for i := len(samples) - 1; i >= 0; i-- {
		s := &samples[i]
		if !e.rule.ask(t, e.rule.Metric.of(s)) {
			break
		}
		if i+1 < len(samples) {
			if gap := samples[i+1].At.Sub(s.At); gap < 0 || gap > hole {
				break
			}
		}
		out.since = s.At
		out.samples++
		if age := now.Sub(s.At); age < e.rule.For+every/2 {
			inSpan++
		} else if t != surely {
			break // only how long it is "surely" so is told
		}
	}
	out.long = e.fresh && out.samples > 0 && now.Sub(out.since) >= e.rule.For-every
	out.covers = out.long && 5*inSpan >= 4*e.expected
	return out
}

// public is the eval as `why` shows it.
func (e *eval) public(direction string) RuleEval {
	p := RuleEval{
		Rule: e.rule.Text, For: direction, Holds: e.holds(), Coverage: e.coverage,
		Missing: e.missing,
	}
	if e.missing == nil {
		p.Missing = []string{}
	}
	if e.fresh {
		p.Best, p.Worst = bounded(e.newest.Best), bounded(e.newest.Worst)
		if e.newest.Value.OK {
			p.Value = bounded(e.newest.Value.X)
		}
	}
	if e.fresh && e.sure.samples > 0 {
		since := e.sure.since
		p.Since = &since
	}
	return p
}

// stands says what the metric is, e.g. "p95 2.31 s" or "p95 unknown".
func (e *eval) stands() string {
	m, i := e.rule.Metric, e.newest
	switch {
	case !e.fresh:
	case i.Value.OK && finite(i.Value.X):
		return fmt.Sprintf("%s %s", m, m.format(i.Value.X))
	case m != P95 && m != ErrorRate || len(e.missing) > 0:
	case i.Worst == 0:
		return string(m) + " of no requests"
	case finite(i.Worst) && (m == P95 || i.Worst < 1):
		return fmt.Sprintf("%s at most %s (few requests)", m, m.format(i.Worst))
	}
	return string(m) + " unknown"
}

// line is the other side of the rule, e.g. "> 1.5 s".
func (e *eval) line() string { return e.rule.Op + " " + e.rule.Metric.format(e.rule.Value) }

// says is the sentence of a rule that holds.
func (e *eval) says(now time.Time) string {
	s := e.stands()
	if e.rule.Op == ">" && len(e.missing) > 0 {
		s += fmt.Sprintf(" (at least %s without %s)", e.rule.Metric.format(e.newest.Best), strings.Join(e.missing, ", "))
	}
	return s + " " + e.line() + e.lasts(now)
}

// lasts says for how long the rule has been satisfied.
func (e *eval) lasts(now time.Time) string {
	return fmt.Sprintf(" for %s (since %s, %d of %d samples)", brief(now.Sub(e.sure.since)), clock(e.sure.since), e.sure.samples, e.expected)
}

// lacks says whether only missing data keep the rule from holding: samples that
// are not there, or machines and metrics that are not in them. A service that
// had too few requests to tell lacks nothing.
func (e *eval) lacks() bool {
	return e.sure.long && !e.sure.covers || e.maybe && (len(e.missing) > 0 || !finite(e.newest.Worst))
}

// doubt is the sentence of a rule that lacks data.
func (e *eval) doubt() string {
	i := e.newest
	if e.sure.long {
		return fmt.Sprintf("%s %s since %s, but only %s of the samples are there", e.stands(), e.line(),
			clock(e.sure.since), CPU.format(e.coverage))
	}
	between := fmt.Sprintf("between %s and %s", e.rule.Metric.format(i.Best), e.rule.Metric.format(i.Worst))
	if !finite(i.Worst) {
		between = fmt.Sprintf("at least %s and unbounded above", e.rule.Metric.format(i.Best))
	}
	return fmt.Sprintf("%s is %s, so whether it is %s is not known", e.rule.Metric, between, e.line())
}

// present drops the samples after now, which only a step of the clock makes.
func present(samples []window.Sample, now time.Time, every time.Duration) []window.Sample {
	n := len(samples)
	for n > 0 && samples[n-1].At.Sub(now) > every {
		n--
	}
	return samples[:n]
}
