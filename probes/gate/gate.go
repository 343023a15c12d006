// Package gate decides whether a machine may take traffic: booting, warming,
// loaded, ready, draining. PURE: the caller steps it with what it sees, at
// each probe and at each change, from one goroutine.
//
// A machine is never Ready before its probes succeeded OKAfter times in a row
// and its warm-up is done, and, if it is gated, before the leader admitted this
// boot. An admission outlives the leader. Without a leader for NoLeaderGrace a
// loaded machine admits itself and says so in its reason; a new leader has the
// same time to confirm it.
package gate

import (
	"fmt"
	"time"

	"flymesh/probes/report"
)

// Options are fixed for the life of a Gate.
type Options struct {
	Gated         bool          // the leader's admission is needed
	FailAfter     int           // failures in a row that end Ready; at least 1
	OKAfter       int           // successes in a row that begin it; at least 1
	NoLeaderGrace time.Duration // see the package comment
}

// Input is what the machine and the mesh look like at one step.
type Input struct {
	AppUp       bool   // the app's process runs
	ProbesOK    bool   // every probe that readiness needs succeeds
	Reason      string // why they do not
	Same        bool   // no probe answered since the last look: nothing new to count
	WarmedUp    bool   // the warm-up of this life of the app is done
	Admitted    bool   // the replicated state holds the admission of this boot
	Revoked     bool   // the leader took the admission of this boot back
	LeaderKnown bool
	Draining    bool
}

// Gate is the state of one machine.
type Gate struct {
	options Options

	state  report.Readiness
	reason string
	since  time.Time // of state

	fails, oks int  // probes in a row, no further than the thresholds
	healthy    bool // by hysteresis
	resumed    bool // ready by an earlier judge's word; see Resume

	admission   admission
	leaderAt    time.Time // when a leader was last known; zero: never
	loadedAt    time.Time // since when it could be ready; zero: it could not
	uncertainAt time.Time // since when a leader is known that does not confirm; zero: not so
}

type admission uint8

const (
	none        admission = iota
	unconfirmed           // by itself, without a leader
	confirmed             // by a leader
)

// New returns the gate of a machine that has just booted.
func New(o Options) *Gate {
	o.FailAfter, o.OKAfter = max(o.FailAfter, 1), max(o.OKAfter, 1)
	return &Gate{options: o, reason: "not looked yet"}
}

// Resume begins Ready, where an earlier judge of the same life of the app left
// off: the agent was restarted beside an app that was ready and has run on.
// What the probes say ends that as it would have before; a gated machine has
// the time of the grace to be confirmed again.
func (g *Gate) Resume(now time.Time) {
	g.state, g.since, g.reason = report.Ready, now, ""
	g.healthy, g.oks, g.resumed = true, g.options.OKAfter, true
	if g.options.Gated {
		g.admission = unconfirmed
	}
}

// Step takes one look and returns the state, why it is not Ready (or what is
// doubtful about it), and since when it holds. now must not go back.
func (g *Gate) Step(now time.Time, in Input) (state report.Readiness, reason string, since time.Time) {
	g.count(in)
	g.resumed = g.resumed && g.healthy && !in.WarmedUp && !in.Draining
	g.admit(now, in)
	state, reason = g.decide(in)
	// An unconfirmed admission needs a machine that stays loaded meanwhile.
	if state >= report.Loaded && state != report.Draining {
		if g.loadedAt.IsZero() {
			g.loadedAt = now
		}
	} else {
		g.loadedAt = time.Time{}
	}
	if state != g.state || g.since.IsZero() {
		g.state, g.since = state, now
	}
	g.reason = reason
	return g.state, g.reason, g.since
}

// count applies the hysteresis. The end of the app needs none.
func (g *Gate) count(in Input) {
	switch {
	case !in.AppUp:
		g.fails, g.oks, g.healthy = 0, 0, false
	case in.Same:
	case in.ProbesOK:
		g.fails, g.oks = 0, min(g.oks+1, g.options.OKAfter)
		g.healthy = g.healthy || g.oks >= g.options.OKAfter
	default:
		g.oks, g.fails = 0, min(g.fails+1, g.options.FailAfter)
		g.healthy = g.healthy && g.fails < g.options.FailAfter
	}
}

// admit follows what the leader says about this boot.
func (g *Gate) admit(now time.Time, in Input) {
	if in.LeaderKnown || g.leaderAt.IsZero() {
		g.leaderAt = now // a machine that never had a leader waits from its start
	}
	if in.Admitted || g.admission == none || !in.LeaderKnown {
		g.uncertainAt = time.Time{}
	}
	switch {
	case in.Revoked:
		g.admission = none
	case in.Admitted:
		g.admission = confirmed
	case g.admission == none:
		if !in.LeaderKnown && !g.loadedAt.IsZero() &&
			now.Sub(g.loadedAt) >= g.options.NoLeaderGrace && now.Sub(g.leaderAt) >= g.options.NoLeaderGrace {
			g.admission = unconfirmed
		}
	case in.LeaderKnown:
		// A leader that does not know the admission: it may have lost the
		// state, or have refused. It has the time of the grace to confirm.
		if g.uncertainAt.IsZero() {
			g.uncertainAt = now
		}
		if now.Sub(g.uncertainAt) >= g.options.NoLeaderGrace {
			g.admission, g.uncertainAt = none, time.Time{}
		}
	}
}

func (g *Gate) decide(in Input) (report.Readiness, string) {
	switch {
	case in.Draining:
		return report.Draining, "draining"
	case !in.AppUp:
		return report.Booting, "the app is not running"
	case !g.healthy && in.ProbesOK:
		return report.Booting, fmt.Sprintf("probes succeeded %d of %d times", g.oks, g.options.OKAfter)
	case !g.healthy:
		return report.Booting, "probe fails: " + in.Reason
	case !in.WarmedUp && !g.resumed:
		return report.Warming, "warm-up is not done"
	case g.options.Gated && g.admission == none && in.LeaderKnown:
		return report.Loaded, "waiting for the leader's admission"
	case g.options.Gated && g.admission == none:
		return report.Loaded, "no leader to admit this machine"
	case !in.ProbesOK && g.state != report.Ready:
		return report.Loaded, "probe fails: " + in.Reason // tolerated in Ready, no way into it
	case g.options.Gated && g.admission == unconfirmed:
		return report.Ready, fmt.Sprintf("unconfirmed: no leader for %v", g.options.NoLeaderGrace)
	case !in.ProbesOK:
		return report.Ready, fmt.Sprintf("probe fails, %d of %d times: %s", g.fails, g.options.FailAfter, in.Reason)
	}
	return report.Ready, ""
}
