// Package gate turns what probes and the leader say into one readiness, with
// hysteresis: booting -> warming -> loaded -> ready -> draining. PURE: now
// comes from the caller; for use from one goroutine.
//
// Ready is reached by way of warm-up alone, and on a gated machine only after
// the leader's admission, or without a leader after a grace. An admitted
// machine stays ready without a leader.
package gate

import (
	"fmt"
	"time"

	"flymesh/probes/report"
)

// Options of New. Zero fields have defaults.
type Options struct {
	Gated         bool          // loaded waits for the leader's admission
	FailAfter     int           // failed steps in a row that end ready; default 3
	OKAfter       int           // good steps in a row that end booting; default 2
	NoLeaderGrace time.Duration // a loaded machine admits itself after this long without a leader; default 2 min
}

// Input is what is true at one step.
type Input struct {
	AppUp       bool
	ProbesOK    bool   // every probe that readiness needs succeeds
	Reason      string // why not
	WarmedUp    bool   // a real request was answered
	Admitted    bool   // by the leader, for this boot
	LeaderKnown bool
	Draining    bool
}

// Gate is the readiness of one machine.
type Gate struct {
	o     Options
	state report.Readiness
	since time.Time

	good, bad  int       // steps in a row
	leaderless time.Time // since when no leader is known; zero: one is
	confirmed  bool      // ready by admission, not by grace
}

// New returns a gate that is booting.
func New(o Options) *Gate {
	if o.FailAfter <= 0 {
		o.FailAfter = 3
	}
	if o.OKAfter <= 0 {
		o.OKAfter = 2
	}
	if o.NoLeaderGrace <= 0 {
		o.NoLeaderGrace = 2 * time.Minute
	}
	return &Gate{o: o}
}

// Step judges once and returns the state, the reason for it, and since when it holds.
func (g *Gate) Step(now time.Time, in Input) (r report.Readiness, reason string, since time.Time) {
	if g.since.IsZero() {
		g.since = now
	}
	if in.AppUp && in.ProbesOK {
		g.good, g.bad = g.good+1, 0
	} else {
		g.good, g.bad = 0, g.bad+1
	}
	switch {
	case in.LeaderKnown:
		g.leaderless = time.Time{}
	case g.leaderless.IsZero():
		g.leaderless = now
	}
	next, reason := g.next(now, in)
	if next != g.state {
		g.state, g.since = next, now
	}
	return g.state, reason, g.since
}

func (g *Gate) next(now time.Time, in Input) (report.Readiness, string) {
	switch {
	case in.Draining:
		return report.Draining, "draining"
	case !in.AppUp:
		return report.Booting, "the app does not run"
	case g.bad > 0 && g.state == report.Ready && g.bad < g.o.FailAfter:
		return report.Ready, fmt.Sprintf("a probe failed %d times of %d: %s", g.bad, g.o.FailAfter, in.Reason)
	case g.bad > 0:
		return report.Booting, in.Reason
	case g.good < g.o.OKAfter && g.state == report.Booting:
		return report.Booting, "a probe succeeded; one more to be sure"
	case !in.WarmedUp:
		return report.Warming, "warm-up is under way"
	case !g.o.Gated:
		return report.Ready, ""
	case in.Admitted:
		g.confirmed = true
		return report.Ready, ""
	case g.state == report.Ready && !g.confirmed && !in.LeaderKnown:
		return report.Ready, "unconfirmed: admitted itself without a leader"
	case g.state == report.Ready && !g.confirmed:
		// A leader is back; it will confirm, and until then nothing flips.
		return report.Ready, "unconfirmed: the leader has not admitted it yet"
	case !g.leaderless.IsZero() && now.Sub(g.leaderless) >= g.o.NoLeaderGrace:
		return report.Ready, "unconfirmed: admitted itself without a leader"
	}
	return report.Loaded, "waits for the leader's admission"
}
