// Package alert says when people are to be told. PURE: Step holds rules
// against samples, facts and the alerts that the replicated state keeps, and
// answers with the changes to commit. It sends nothing and reads no clock.
//
// An alert is inactive, pending (its condition holds, not yet for long
// enough), firing, resolved, or without data. Missing data neither resets the
// clock of a pending alert nor runs it on, and never resolves a firing one.
package alert

import (
	"fmt"
	"time"

	"flymesh/leader/burn"
	"flymesh/leader/decide"
	"flymesh/leader/window"
	"flymesh/raftstore/state"
)

// The severities. The set is closed; metrics and receivers use it as a label.
const (
	Page = "page" // somebody gets up
	Warn = "warn" // somebody looks when there is time
)

// Rule is one thing to be told of: a metric over a line, a target that is used
// up too fast, or a fact of the mesh.
type Rule struct {
	Name     string // stable, also for Alertmanager and PagerDuty
	Service  string // empty: of the mesh itself
	Severity string
	When     decide.Rule   // of a metric rule; its Metric is empty for others
	Burn     *burn.Rule    // of a burn rate; nil for others
	For      time.Duration // how long it must hold
	Summary  string        // what it means, in one sentence
}

// Key names the rule's alert.
func (r Rule) Key() string { return state.AlertKey(r.Name, r.Service) }

// Fact is what the mesh says of a rule that is not about a metric.
type Fact struct {
	Holds bool
	Text  string // why, in one sentence; of one that holds
}

// Uses is what a burn rate is judged by: its long and its short span.
type Uses struct{ Long, Short burn.Use }

// Input is all that Step depends on.
type Input struct {
	Now         time.Time
	Every       time.Duration // between samples
	NoDataAfter time.Duration // without data for this long a rule is in no_data; 0: never
	Rules       []Rule
	History     map[string][]window.Sample // by service, oldest first
	Uses        map[string]Uses            // by Rule.Key, of burn rates
	Facts       map[string]Fact            // by Rule.Key; a rule without one is not judged
	Alerts      map[string]state.Alert     // as kept, by key
}

// Figures of the semantics.
const (
	freshPeriods = 3               // the newest sample speaks for this many intervals
	calmFor      = 2 * time.Minute // a firing alert is over when nothing was bad for so long, or for its rule's For
	keepResolved = time.Hour       // a resolved alert is shown this long
)

// Step returns the changes that this moment asks for, in the order of the
// rules, then those alerts whose rule exists no more, by key.
func Step(in Input) []state.SetAlert {
	var out []state.SetAlert
	known := map[string]bool{}
	for _, r := range in.Rules {
		key := r.Key()
		known[key] = true
		old, kept := in.Alerts[key]
		v, judged := in.read(r)
		if !judged {
			continue
		}
		next, keep := in.next(r, old, kept, v)
		if c := (state.SetAlert{Key: key, Was: old.Phase}); keep && (!kept || !same(old, next)) {
			c.Alert = &next
			out = append(out, c)
		} else if !keep && kept {
			out = append(out, c)
		}
	}
	return append(out, in.orphans(known)...)
}

// orphans are alerts whose rule mesh.toml has no more: what fired is over.
func (in Input) orphans(known map[string]bool) []state.SetAlert {
	st := state.State{Alerts: in.Alerts}
	var out []state.SetAlert
	for _, key := range st.AlertKeys() {
		a := in.Alerts[key]
		switch {
		case known[key]:
		case a.Phase == state.Firing:
			a.Phase, a.Resolved, a.Text = state.Resolved, in.Now, "the rule is no longer in mesh.toml"
			out = append(out, state.SetAlert{Key: key, Was: state.Firing, Alert: &a})
		case a.Phase != state.Resolved || in.over(a):
			out = append(out, state.SetAlert{Key: key, Was: a.Phase})
		}
	}
	return out
}

// same says whether a change is not worth an entry in the log: values and texts
// are as of the newest change of phase.
func same(a, b state.Alert) bool {
	return a.Phase == b.Phase && a.Since.Equal(b.Since) && a.Unknown.Equal(b.Unknown) && a.Severity == b.Severity
}

// over says whether a resolved alert may be forgotten: nobody who was told that
// it fires still has to be told that it is over, or they cannot be reached.
func (in Input) over(a state.Alert) bool {
	return in.Now.Sub(a.Resolved) > keepResolved
}

// owes says whether a receiver that knows of the firing does not know its end.
func owes(a state.Alert) bool {
	for _, p := range a.Told {
		if p == state.Firing {
			return true
		}
	}
	return false
}

func (in Input) next(r Rule, old state.Alert, kept bool, v verdict) (next state.Alert, keep bool) {
	now := in.Now
	next = old
	if !kept {
		next = state.Alert{Rule: r.Name, Service: r.Service}
	}
	next.Severity = r.Severity
	switch v.is {
	case unknown:
		return in.blind(r, next, v)
	case good:
		if !next.Unknown.IsZero() {
			next.Unknown = time.Time{}
		}
		switch old.Phase {
		case state.Firing:
			if v.calm {
				next.Phase, next.Resolved, next.Text, next.Value = state.Resolved, now, r.text("is over: "+v.text), v.value
			}
			return next, true
		case state.Resolved:
			return next, !in.over(old)
		}
		return next, false
	}

	// It holds.
	switch old.Phase {
	case state.Firing:
		next.Unknown = time.Time{}
		return next, true
	case state.Resolved:
		if owes(old) && !in.over(old) {
			return old, true // its end is told first; the history remembers since when
		}
		fallthrough
	case "", state.NoData:
		next = state.Alert{Rule: r.Name, Service: r.Service, Severity: r.Severity, Phase: state.Pending, Since: v.since}
	case state.Pending:
		if !old.Unknown.IsZero() { // the time without data does not count
			next.Since, next.Unknown = old.Since.Add(now.Sub(old.Unknown)), time.Time{}
		}
		if v.dip.After(next.Since) { // a good sample while nobody led
			next.Since = v.since
		}
	}
	next.Value, next.Text = v.value, r.text(v.text)
	if now.Sub(next.Since) >= r.For {
		next.Phase, next.Fired, next.Told = state.Firing, now, nil
	}
	return next, true
}

// blind is the step of a rule about which nothing is known.
func (in Input) blind(r Rule, next state.Alert, v verdict) (state.Alert, bool) {
	long := in.NoDataAfter > 0 && in.Now.Sub(v.since) >= in.NoDataAfter
	switch next.Phase {
	case state.Firing:
		if next.Unknown.IsZero() {
			next.Unknown = in.Now
		}
		return next, true
	case state.Resolved:
		return next, !in.over(next)
	case state.Pending:
		if next.Unknown.IsZero() {
			next.Unknown = in.Now
		}
		if in.NoDataAfter == 0 || in.Now.Sub(next.Unknown) < in.NoDataAfter {
			return next, true
		}
		v.since = next.Unknown
	case "":
		if !long {
			return next, false
		}
	case state.NoData:
		return next, true
	}
	return state.Alert{
		Rule: r.Name, Service: r.Service, Severity: r.Severity, Phase: state.NoData, Since: v.since, Unknown: v.since,
		Text: r.text("nothing is known: " + v.text),
	}, true
}

func (r Rule) text(s string) string {
	if r.Service == "" {
		return s
	}
	return fmt.Sprintf("%s: %s", r.Service, s)
}
