package decide

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"flymesh/leader/window"
	"flymesh/probes/report"
)

// MaxFor is the longest duration that a rule may ask for.
const MaxFor = 6 * time.Hour

// ErrRule is wrapped by every error of ParseRule.
var ErrRule = errors.New("rule not understood")

const ruleForm = "a rule is METRIC > VALUE for DURATION or METRIC < VALUE for DURATION; " +
	"metrics: cpu, memory, error_rate (80%), p95 (1.5s or 800ms), queue (10)"

// ParseRule reads a rule such as "cpu > 80% for 3m", "p95 < 800ms for 10m" or
// "queue > 10 for 3m". The error says what would be right.
func ParseRule(text string) (Rule, error) {
	text = strings.Join(strings.Fields(text), " ")
	fail := func(format string, args ...any) (Rule, error) {
		return Rule{}, fmt.Errorf("parse rule %q: %w: %s (%s)", text, ErrRule, fmt.Sprintf(format, args...), ruleForm)
	}
	at := strings.IndexAny(text, "<>=")
	if at < 0 {
		return fail("there is no > or <")
	}
	r := Rule{Metric: Metric(strings.TrimSpace(text[:at])), Op: text[at : at+1], Text: text}
	if r.Op == "=" || strings.HasPrefix(text[at+1:], "=") {
		return fail("only > and < are known")
	}
	if !r.Metric.known() {
		return fail("there is no metric %q", string(r.Metric))
	}
	words := strings.Fields(text[at+1:])
	switch {
	case len(words) == 0 || words[0] == "for":
		return fail("there is no value after %s", r.Op)
	case len(words) == 1:
		return fail("how long it must hold is missing: add \"for 3m\"")
	case len(words) != 3 || words[1] != "for":
		return fail("after the value comes \"for\" and a duration such as 3m")
	}
	value, err := r.Metric.parse(words[0])
	if err != nil {
		return fail("%v", err)
	}
	r.Value = value
	r.For, err = time.ParseDuration(words[2])
	if err != nil {
		return fail("%q is no duration: write 90s, 3m or 1h", words[2])
	}
	if r.For < time.Second || r.For > MaxFor {
		return fail("the duration must be between 1s and %s, not %s", brief(MaxFor), words[2])
	}
	return r, nil
}

func (m Metric) known() bool {
	switch m {
	case CPU, Memory, P95, Queue, ErrorRate:
		return true
	}
	return false
}

// parse reads a value in the metric's unit.
func (m Metric) parse(s string) (float64, error) {
	switch m {
	case P95:
		d, err := time.ParseDuration(s)
		if err != nil || d <= 0 {
			return 0, fmt.Errorf("%q is no duration over zero: write 1.5s or 800ms", s)
		}
		return d.Seconds(), nil
	case Queue:
		x, err := strconv.ParseFloat(s, 64)
		if err != nil || !(x >= 0 && x <= 1e9) {
			return 0, fmt.Errorf("%q is no count: write 10", s)
		}
		return x, nil
	}
	number, percent := strings.CutSuffix(s, "%")
	x, err := strconv.ParseFloat(number, 64)
	if err != nil || !percent || !(x >= 0 && x <= 100) {
		return 0, fmt.Errorf("%q is no percentage from 0%% to 100%%: write 80%%", s)
	}
	return x / 100, nil
}

// format writes a value of the metric for people.
func (m Metric) format(x float64) string {
	switch {
	case math.IsNaN(x) || math.IsInf(x, 0):
		return "unbounded"
	case m == Queue || !m.known():
		return number(x)
	case m != P95:
		return number(x*100) + " %"
	case math.Abs(x) < 1:
		return number(x*1000) + " ms"
	}
	return number(x) + " s"
}

// number writes about three significant digits, and never an exponent.
func number(x float64) string {
	places := 2
	if math.Abs(x) >= 99.95 {
		places = 0
	} else if math.Abs(x) >= 9.995 {
		places = 1
	}
	s := strconv.FormatFloat(x, 'f', places, 64)
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	if s == "-0" {
		return "0"
	}
	return s
}

// brief writes a duration to the second, without zero parts at its end.
func brief(d time.Duration) string {
	if d > -time.Second && d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	s := d.Round(time.Second).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// clock writes a time of day in UTC.
func clock(t time.Time) string { return t.UTC().Format("15:04:05") }

// of picks the metric out of a sample.
func (m Metric) of(s *window.Sample) window.Interval {
	switch m {
	case CPU:
		return s.CPU
	case Memory:
		return s.Memory
	case P95:
		return s.P95
	case Queue:
		return s.Queue
	case ErrorRate:
		return s.ErrorRate
	}
	return window.Interval{Best: math.Inf(-1), Worst: math.Inf(1)}
}

// bounded returns a value that JSON can carry: not finite means unknown.
func bounded(x float64) report.Value {
	if !finite(x) {
		return report.Value{}
	}
	return report.Of(x)
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }
