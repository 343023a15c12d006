package alert

import (
	"fmt"
	"math"
	"time"

	"flymesh/leader/burn"
	"flymesh/leader/decide"
	"flymesh/leader/window"
)

// reading is what one sample says of one rule.
type reading int

const (
	unknown reading = iota
	good
	bad
)

// verdict is what the history says of a rule.
type verdict struct {
	is    reading
	since time.Time // bad: since when each sample is; unknown: since when none says anything
	dip   time.Time // the newest good sample
	calm  bool      // good: and long enough to say that it is over
	value *float64
	text  string
}

// read judges a rule; false where there is nothing to judge it by.
func (in Input) read(r Rule) (verdict, bool) {
	if r.Burn != nil {
		return in.burning(*r.Burn, in.Uses[r.Key()]), true
	}
	if r.When.Metric == "" {
		f, ok := in.Facts[r.Key()]
		if !ok {
			return verdict{}, false
		}
		if f.Holds {
			return verdict{is: bad, since: in.Now, text: f.Text}, true
		}
		return verdict{is: good, calm: true, text: "it is so no more"}, true
	}
	return in.metric(r), true
}

// burning judges a burn rate. It has no duration of its own: its spans say how
// long. Where it is not known whether it holds, since is from when reports were
// heard, or from when they were not.
func (in Input) burning(r burn.Rule, u Uses) verdict {
	holds, known, past := r.Judge(u.Long, u.Short)
	rate := r.Rate(u.Long)
	v := verdict{is: good, since: in.Now, calm: past, value: &rate, text: fmt.Sprintf("%s uses up what its target allows %.3g times as fast over %s and %.3g times over %s",
		name(decide.Metric(r.Target)), rate, burn.Span(r.Long), r.Rate(u.Short), burn.Span(r.Short))}
	switch {
	case holds:
		v.is, v.text = bad, fmt.Sprintf("%s (rule: %s)", v.text, r)
	case !known:
		v.is, v.value = unknown, nil
		v.text = fmt.Sprintf("%.0f %% of the last %s are known", 100*u.Long.Covered, burn.Span(r.Long))
		if v.since = u.Long.First; in.Now.Sub(u.Long.Last) > freshPeriods*in.Every {
			v.since = u.Long.Last
		}
		if v.since.IsZero() {
			v.since, v.text = in.Now, "the service has not been heard yet"
		}
	}
	return v
}

func (in Input) metric(r Rule) verdict {
	samples := in.History[r.Service]
	if len(samples) == 0 {
		return verdict{since: in.Now, text: "the service has not been heard yet"}
	}
	last := &samples[len(samples)-1]
	is := judge(r.When, last)
	if in.Now.Sub(last.At) > freshPeriods*in.Every {
		is = unknown
	}
	v := verdict{is: is, since: last.At, calm: true}
	rest := min(calmFor, max(r.For, freshPeriods*in.Every))
	open := true // every sample so far says what the newest says
	for i := len(samples) - 1; i >= 0; i-- {
		s := &samples[i]
		say := judge(r.When, s)
		if open = open && say == is; open {
			v.since = s.At
		}
		if say == good && v.dip.IsZero() {
			v.dip = s.At
		}
		if say == bad && in.Now.Sub(s.At) < rest {
			v.calm = false
		}
	}
	if x := r.When.Metric.In(last); x.Value.OK && finite(x.Value.X) {
		v.value = &x.Value.X
		v.text = fmt.Sprintf("%s is %s", name(r.When.Metric), r.When.Metric.Text(x.Value.X))
	}
	switch is {
	case bad:
		v.text = fmt.Sprintf("%s (rule: %s)", v.text, r.When.Text)
	case good:
		if v.value == nil {
			v.text = "too few requests to tell of any trouble"
		}
	case unknown:
		v.text = fmt.Sprintf("%d of %d machines are heard and say nothing of %s", last.Heard, last.Expected, name(r.When.Metric))
		if last.Heard == 0 {
			v.text = fmt.Sprintf("none of %d machines is heard", last.Expected)
		}
	}
	return v
}

// judge holds one sample against a rule. What was heard counts; machines that
// are missing do not make a page go away. Too few requests to tell are no
// trouble and no missing data.
func judge(r decide.Rule, s *window.Sample) reading {
	x := r.Metric.In(s)
	if !x.Value.OK || !finite(x.Value.X) {
		few := s.Heard > 0 && finite(x.Worst) &&
			(r.Metric == decide.P95 || r.Metric == decide.ErrorRate && (s.Requests > 0 || x.Worst < 1))
		if few {
			return good
		}
		return unknown
	}
	if r.Op == ">" && x.Value.X > r.Value || r.Op == "<" && x.Value.X < r.Value {
		return bad
	}
	return good
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }

func name(m decide.Metric) string {
	switch m {
	case decide.CPU:
		return "CPU"
	case decide.ErrorRate:
		return "the error rate"
	case decide.Queue:
		return "the queue"
	}
	return string(m)
}
