// Package burn says how fast services use up what their targets allow. PURE:
// now comes from the caller; safe for use from one goroutine.
//
// A target such as "at most 1 % of the requests fail" allows a number of bad
// requests. A service burns at a rate of 1 if it has exactly so many, at 14.4
// if it has 14.4 times as many. What a span of time is worth is known as far as
// reports were heard in it: a Use says how much of it that is.
package burn

import (
	"fmt"
	"time"

	"flymesh/probes/report"
)

// Target is what is counted. The set is closed.
type Target string

// The targets that requests can be counted against.
const (
	Errors  Target = "error_rate" // failed requests
	Latency Target = "p95"        // requests that take longer than the target
)

// SlowAllowed is the share of the requests that a target for the p95 allows to
// take longer.
const SlowAllowed = 0.05

// Goal is one target of one service.
type Goal struct {
	Service string
	Target  Target
	Allowed float64 // share of the requests that may be bad; over 0
	Slow    float64 // Latency: seconds over which a request is bad
	Least   float64 // requests in a rule's long span under which nothing is said
}

// Rule holds while a goal burns more than Factor times as fast as allowed, over
// the long span (so that it matters) and over the short one (so that it is not
// over already).
type Rule struct {
	Goal
	Factor      float64
	Long, Short time.Duration
}

// Rules are the usual three of a goal: two that call somebody, and a slow one.
// At 14.4 an hour takes 2 % of what 30 days allow, at 6 six hours take 5 %, at 1
// three days take 10 %.
func Rules(g Goal) []Rule {
	return []Rule{
		{g, 14.4, time.Hour, 5 * time.Minute},
		{g, 6, 6 * time.Hour, 30 * time.Minute},
		{g, 1, 3 * 24 * time.Hour, 6 * time.Hour},
	}
}

// String is the rule in words.
func (r Rule) String() string {
	return fmt.Sprintf("%s burns over %gx for %s and %s", r.Target, r.Factor, Span(r.Long), Span(r.Short))
}

// Span writes a span as people do: 3d, 6h, 30m.
func Span(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d >= day && d%day == 0:
		return fmt.Sprintf("%dd", d/day)
	case d >= time.Hour && d%time.Hour == 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dm", d/time.Minute)
}

// enough is the share of a span that must be known for its rate to be taken as
// the span's.
const enough = 0.8

// calm is the share of Factor under which a rule that held is over: a rate that
// swings about its line is one alert.
const calm = 0.9

// Use is what is known of one span.
type Use struct {
	Requests float64 // that were counted
	Share    float64 // of these that were bad; 0 if there were none
	Covered  float64 // share of the span in which reports were heard
	First    time.Time
	Last     time.Time // of what is known; zero: nothing is
}

// Rate is how many times as fast as allowed the goal burns, by what is known.
func (g Goal) Rate(u Use) float64 { return u.Share / g.Allowed }

// over holds a span against a factor. Where too little of it is known, it is
// over only if it would be even if all that is not known were good.
func (r Rule) over(u Use, factor float64) (over, known bool) {
	if u.Covered >= enough {
		return r.Rate(u) > factor, true
	}
	sure := u.Covered*r.Rate(u) > factor
	return sure, sure
}

// Judge says whether the rule holds, and whether that is known: one span under
// the line is enough to say that it does not. past says that a rule that held
// is over.
func (r Rule) Judge(long, short Use) (holds, known, past bool) {
	if long.Covered >= enough && long.Requests < r.Least {
		return false, true, true
	}
	l, lKnown := r.over(long, r.Factor)
	s, sKnown := r.over(short, r.Factor)
	for _, u := range []Use{long, short} {
		hot, ok := r.over(u, calm*r.Factor)
		past = past || ok && !hot
	}
	switch {
	case lKnown && !l, sKnown && !s:
		return false, true, past
	case lKnown && sKnown:
		return true, true, false
	}
	return false, false, false
}

// bad counts the requests of a report that the goal knows of, and those of them
// that are bad; ok is false if the report does not say.
func (g Goal) bad(r report.Report) (all, bad float64, ok bool) {
	switch {
	case r.Service != g.Service || !r.Requests.OK:
		return 0, 0, false
	case r.Requests.X == 0:
		return 0, 0, true
	case g.Target == Errors:
		return r.Requests.X, min(r.Errors.X, r.Requests.X), r.Errors.OK
	case r.Latency == nil:
		return 0, 0, false
	}
	return r.Latency.Count(), r.Latency.Over(g.Slow), true
}
