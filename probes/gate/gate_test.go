package gate

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"flymesh/probes/report"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// up is a machine that could be ready.
func up(change ...func(*Input)) Input {
	in := Input{AppUp: true, ProbesOK: true, WarmedUp: true, LeaderKnown: true}
	for _, f := range change {
		f(&in)
	}
	return in
}

func down(in *Input)     { in.AppUp = false }
func failing(in *Input)  { in.ProbesOK, in.Reason = false, "refused" }
func cold(in *Input)     { in.WarmedUp = false }
func admitted(in *Input) { in.Admitted = true }
func revoked(in *Input)  { in.Revoked = true }
func alone(in *Input)    { in.LeaderKnown = false }
func draining(in *Input) { in.Draining = true }

type step struct {
	after time.Duration
	in    Input
	want  report.Readiness
	why   string // part of the reason
}

func TestSteps(t *testing.T) {
	plain := Options{FailAfter: 3, OKAfter: 2, NoLeaderGrace: 30 * time.Second}
	gated := plain
	gated.Gated = true
	const s = time.Second
	for _, c := range []struct {
		name    string
		options Options
		steps   []step
	}{
		{"a plain machine passes all states", plain, []step{
			{0, up(down), report.Booting, "not running"},
			{s, up(failing), report.Booting, "probe fails: refused"},
			{s, up(cold), report.Booting, "1 of 2"},
			{s, up(cold), report.Warming, "warm-up"},
			{s, up(), report.Ready, ""},
			{s, up(draining), report.Draining, "draining"},
		}},
		{"failures need to repeat, the app's end does not", plain, []step{
			{0, up(), report.Booting, "1 of 2"},
			{s, up(), report.Ready, ""},
			{s, up(failing), report.Ready, "1 of 3 times: refused"},
			{s, up(failing), report.Ready, "2 of 3 times: refused"},
			{s, up(), report.Ready, ""},
			{s, up(failing), report.Ready, "1 of 3"},
			{s, up(failing), report.Ready, "2 of 3"},
			{s, up(failing), report.Booting, "refused"},
			{s, up(), report.Booting, "1 of 2"},
			{s, up(failing), report.Booting, "refused"},
			{s, up(), report.Booting, "1 of 2"},
			{s, up(), report.Ready, ""},
			{s, up(down), report.Booting, "not running"},
			{s, up(), report.Booting, "1 of 2"},
		}},
		{"an app that began anew warms up anew", plain, []step{
			{0, up(), report.Booting, ""},
			{s, up(), report.Ready, ""},
			{s, up(cold), report.Warming, "warm-up"},
			{s, up(), report.Ready, ""},
		}},
		{"a tolerated failure is no way into ready", gated, []step{
			{0, up(), report.Booting, ""},
			{s, up(), report.Loaded, "admission"},
			{s, up(failing, admitted), report.Loaded, "probe fails: refused"},
			{s, up(admitted), report.Ready, ""},
		}},
		{"a gated machine waits for the leader", gated, []step{
			{0, up(), report.Booting, ""},
			{s, up(), report.Loaded, "waiting for the leader"},
			{time.Hour, up(), report.Loaded, "waiting for the leader"},
			{s, up(admitted), report.Ready, ""},
			{s, up(alone), report.Ready, ""},
			{time.Hour, up(alone), report.Ready, ""},
			{s, up(admitted), report.Ready, ""},
			{s, up(revoked), report.Loaded, "waiting for the leader"},
			{s, up(admitted), report.Ready, ""},
		}},
		{"an admission before the probes does not open", gated, []step{
			{0, up(failing, admitted), report.Booting, "refused"},
			{s, up(cold, admitted), report.Booting, "1 of 2"},
			{s, up(cold, admitted), report.Warming, ""},
			{s, up(admitted), report.Ready, ""},
		}},
		{"without a leader it admits itself after the grace", gated, []step{
			{0, up(alone), report.Booting, ""},
			{s, up(alone), report.Loaded, "no leader"},
			{29 * s, up(alone), report.Loaded, "no leader"},
			{s, up(alone), report.Ready, "unconfirmed: no leader for 30s"},
			{s, up(), report.Ready, "unconfirmed"},
			{20 * s, up(admitted), report.Ready, ""},
			{time.Hour, up(admitted), report.Ready, ""},
		}},
		{"a leader that was there restarts the grace", gated, []step{
			{0, up(alone), report.Booting, ""},
			{s, up(alone), report.Loaded, ""},
			{25 * s, up(), report.Loaded, ""},
			{10 * s, up(alone), report.Loaded, "no leader"},
			{19 * s, up(alone), report.Loaded, "no leader"},
			{s, up(alone), report.Ready, "unconfirmed"},
		}},
		{"a machine that did not stay loaded waits anew", gated, []step{
			{0, up(alone), report.Booting, ""},
			{s, up(alone), report.Loaded, ""},
			{25 * s, up(alone, down), report.Booting, ""},
			{s, up(alone), report.Booting, ""},
			{s, up(alone), report.Loaded, ""},
			{20 * s, up(alone), report.Loaded, ""},
			{10 * s, up(alone), report.Ready, "unconfirmed"},
		}},
		{"a new leader that does not confirm closes after the grace", gated, []step{
			{0, up(), report.Booting, ""},
			{s, up(admitted), report.Ready, ""},
			{s, up(alone), report.Ready, ""},
			{s, up(), report.Ready, ""}, // lost the state
			{29 * s, up(), report.Ready, ""},
			{s, up(), report.Loaded, "waiting for the leader"},
			{s, up(admitted), report.Ready, ""},
		}},
		{"leaders that come and go do not add up", gated, []step{
			{0, up(), report.Booting, ""},
			{s, up(admitted), report.Ready, ""},
			{s, up(), report.Ready, ""},
			{20 * s, up(alone), report.Ready, ""},
			{s, up(), report.Ready, ""},
			{20 * s, up(), report.Ready, ""},
			{s, up(admitted), report.Ready, ""},
		}},
		{"thresholds of zero are one", Options{}, []step{
			{0, up(alone), report.Ready, ""},
			{s, up(alone, failing), report.Booting, "refused"},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, now := New(c.options), start
			var state report.Readiness
			since := start
			for i, st := range c.steps {
				now = now.Add(st.after)
				got, reason, at := g.Step(now, st.in)
				if i == 0 || got != state {
					state, since = got, now
				}
				if got != st.want || !strings.Contains(reason, st.why) || st.why == "" && got == report.Ready && reason != "" {
					t.Fatalf("step %d: %v %q, want %v %q", i, got, reason, st.want, st.why)
				}
				if !at.Equal(since) {
					t.Fatalf("step %d: since %v, want %v", i, at, since)
				}
			}
		})
	}
}

// inputs draws any look at the machine.
func inputs() *rapid.Generator[Input] {
	return rapid.Custom(func(t *rapid.T) Input {
		often := func(name string) bool { return rapid.IntRange(0, 9).Draw(t, name) > 1 }
		in := Input{AppUp: often("app_up"), ProbesOK: often("probes_ok"), WarmedUp: often("warmed_up"), LeaderKnown: rapid.Bool().Draw(t, "leader"),
			Revoked: !often("not_revoked"), Draining: !often("not_draining")}
		in.Admitted = !in.Revoked && rapid.Bool().Draw(t, "admitted")
		if !in.ProbesOK {
			in.Reason = "refused"
		}
		return in
	})
}

// Whatever happens in whatever order: Ready has its evidence.
func TestNeverReadyWithoutEvidence(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := Options{Gated: rapid.Bool().Draw(t, "gated"), FailAfter: rapid.IntRange(1, 4).Draw(t, "fail_after"),
			OKAfter: rapid.IntRange(1, 4).Draw(t, "ok_after"), NoLeaderGrace: 10 * time.Second}
		g, now := New(o), start
		var (
			oks, fails  int       // in a row
			everOK      bool      // OKAfter in a row since the app came up and no FailAfter since
			noLeader    = start   // since when no leader is known
			hadAdmitted bool      // an admission that was not revoked
			alone       time.Time // since when Loaded without a leader, at least
			last        = report.Booting
		)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 8000).Draw(t, "after_ms")) * time.Millisecond)
			in := inputs().Draw(t, "in")
			state, reason, since := g.Step(now, in)

			switch {
			case !in.AppUp:
				oks, fails, everOK = 0, 0, false
			case in.ProbesOK:
				oks, fails = oks+1, 0
				everOK = everOK || oks >= o.OKAfter
			default:
				oks, fails = 0, fails+1
				everOK = everOK && fails < o.FailAfter
			}
			if in.LeaderKnown {
				noLeader = now
			}
			if in.Admitted {
				hadAdmitted = true
			}
			if in.Revoked {
				hadAdmitted = false
			}

			if since.After(now) || state != last && !since.Equal(now) {
				t.Fatalf("since %v at %v", since, now)
			}
			if state == report.Ready {
				if !in.AppUp || !in.WarmedUp || in.Draining || !everOK {
					t.Fatalf("ready with %+v, probes ok %v", in, everOK)
				}
				if last != report.Ready && !in.ProbesOK {
					t.Fatal("became ready while a probe fails")
				}
				if o.Gated && in.Revoked {
					t.Fatal("ready though revoked")
				}
				if o.Gated && !hadAdmitted && !strings.HasPrefix(reason, "unconfirmed") {
					t.Fatalf("ready without admission: %q", reason)
				}
				if o.Gated && !hadAdmitted && last != report.Ready && last == report.Loaded && !in.LeaderKnown &&
					(now.Sub(noLeader) < o.NoLeaderGrace || now.Sub(alone) < o.NoLeaderGrace) {
					t.Fatalf("admitted itself %v after the leader, %v after loaded", now.Sub(noLeader), now.Sub(alone))
				}
				if !o.Gated && strings.HasPrefix(reason, "unconfirmed") {
					t.Fatal("a plain machine is unconfirmed")
				}
			} else if reason == "" {
				t.Fatalf("%v without a reason", state)
			}
			if state < report.Loaded || state == report.Draining {
				alone = now
			}
			if in.Draining != (state == report.Draining) {
				t.Fatalf("%v with %+v", state, in)
			}
			last = state
		}
	})
}

// A machine that was admitted and is well never flips because leaders change.
func TestLeaderChangesDoNotFlip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g, now := New(Options{Gated: true, FailAfter: 3, OKAfter: 1, NoLeaderGrace: 30 * time.Second}), start
		if state, _, _ := g.Step(now, up(admitted)); state != report.Ready {
			t.Fatalf("admitted, but %v", state)
		}
		for range rapid.IntRange(1, 50).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 600).Draw(t, "after_s")) * time.Second)
			in := up(admitted)
			if rapid.Bool().Draw(t, "leaderless") {
				in = up(alone)
			}
			if state, reason, since := g.Step(now, in); state != report.Ready || !since.Equal(start) {
				t.Fatalf("%v (%s) since %v", state, reason, since)
			}
		}
	})
}

// Looks at one and the same failure are one failure, however often they are
// taken.
func TestSameIsNotCounted(t *testing.T) {
	g := New(Options{FailAfter: 2})
	now := time.Unix(1_800_000_000, 0)
	step := func(in Input) report.Readiness {
		now = now.Add(100 * time.Millisecond)
		in.AppUp, in.WarmedUp = true, true
		s, _, _ := g.Step(now, in)
		return s
	}
	if s := step(Input{ProbesOK: true}); s != report.Ready {
		t.Fatalf("state %v", s)
	}
	step(Input{Reason: "no answer"})
	for range 40 {
		if s := step(Input{Reason: "no answer", Same: true}); s != report.Ready {
			t.Fatalf("state %v after one failure that was looked at again", s)
		}
	}
	if s := step(Input{Reason: "no answer"}); s != report.Booting {
		t.Errorf("state %v after two failures", s)
	}
}

// TestResume: a judge that takes over from another of the same life of the app
// begins ready, and ends it as the first would have.
func TestResume(t *testing.T) {
	t0 := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	fresh := func(gated bool) *Gate {
		g := New(Options{Gated: gated, FailAfter: 3, OKAfter: 2, NoLeaderGrace: time.Minute})
		g.Resume(t0)
		return g
	}
	state := func(g *Gate, at time.Duration, in Input) report.Readiness {
		s, _, _ := g.Step(t0.Add(at), in)
		return s
	}
	silent := Input{AppUp: true, Reason: "no answer yet", LeaderKnown: true}
	g := fresh(false)
	for i, want := range []report.Readiness{report.Ready, report.Ready, report.Booting} {
		if got := state(g, time.Duration(i)*time.Second, silent); got != want {
			t.Errorf("look %d without an answer: %s, want %s", i, got, want)
		}
	}
	g = fresh(true)
	good := Input{AppUp: true, ProbesOK: true, WarmedUp: true, LeaderKnown: true}
	if got := state(g, time.Second, good); got != report.Ready {
		t.Errorf("gated, not confirmed yet: %s, want ready", got)
	}
	if got := state(g, 2*time.Minute, good); got == report.Ready {
		state(g, 3*time.Minute+time.Second, good)
	}
	if got := state(g, 10*time.Minute, good); got != report.Loaded {
		t.Errorf("gated, never confirmed: %s, want loaded", got)
	}
	g = fresh(false)
	if got := state(g, time.Second, Input{Reason: "gone"}); got != report.Booting {
		t.Errorf("the app ended: %s, want booting", got)
	}
	g = fresh(false)
	state(g, time.Second, good)
	notWarm := good
	notWarm.WarmedUp = false
	if got := state(g, 2*time.Second, notWarm); got != report.Warming {
		t.Errorf("its own word on warm-up counts once it has been given: %s, want warming", got)
	}
}
