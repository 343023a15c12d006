package raftstore

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// rosterOf reads "L V Vdead Vsilent Vleaving N Nlag": the leader, voters and
// non-voters with their state, named 0, 1, 2 ...
func rosterOf(spec string, candidates int) roster {
	r := roster{silentAfter: 30 * time.Second, others: candidates}
	for i, f := range strings.Fields(spec) {
		s := server{id: fmt.Sprint(i), machine: fmt.Sprint(i), voter: f[0] != 'N', self: f[0] == 'L', alive: true, caughtUp: true}
		switch f[1:] {
		case "dead":
			s.dead, s.alive, s.caughtUp = true, false, false
		case "silent":
			s.silent, s.alive, s.caughtUp = 31*time.Second, false, false
		case "quiet":
			s.silent, s.alive, s.caughtUp = 10*time.Second, false, false
		case "leaving":
			s.leaving = true
		case "lag":
			s.caughtUp = false
		}
		r.servers = append(r.servers, s)
	}
	for i := range candidates {
		r.candidates = append(r.candidates, candidate{id: fmt.Sprintf("c%d", i), addr: "x"})
	}
	return r
}

func TestNextChange(t *testing.T) {
	for _, tc := range []struct {
		going      bool
		name       string
		servers    string
		candidates int
		shrink     bool
		want       string
	}{
		{false, "alone", "L", 0, false, " "},
		{false, "alone with one candidate: a stand-by, no second voter", "L", 1, false, "add c0"},
		{false, "one stand-by is not enough", "L N", 0, false, " "},
		{false, "two candidates", "L", 2, false, "add c0"},
		{false, "both stand-bys wanted first", "L N", 1, false, "add c0"},
		{false, "both ready", "L N N", 0, false, "promote 1"},
		{false, "one ready", "L N Nlag", 0, false, " "},
		{false, "from two to three", "L V N", 0, false, "promote 2"},
		{false, "three voters and a warm one", "L V V", 2, false, "add c0"},
		{false, "a voter lacks entries: no promotion", "L Vlag N", 0, false, " "},
		{false, "complete", "L V V N", 2, false, " "},
		{false, "dead voter goes at once", "L V Vdead N", 0, false, "remove 2"},
		{false, "silent voter goes after its time", "L V Vsilent N", 0, false, "remove 2"},
		{false, "quiet voter stays", "L V Vquiet N", 0, false, " "},
		{false, "two dead of three: nothing to be done", "L Vdead Vdead N", 0, false, " "},
		{false, "two dead of five", "L V V Vdead Vdead", 0, false, "remove 3"},
		{false, "dead of two: no majority without it", "L Vdead", 1, false, "add c0"},
		{false, "leaving voter", "L V Vleaving N", 0, false, "remove 2"},
		{false, "leaving voter of two lives", "L Vleaving", 0, false, "remove 1"},
		{false, "leaving voter while another is quiet", "L Vquiet Vleaving", 0, false, " "},
		{false, "dead stand-by", "L V V Ndead", 0, false, "remove 3"},
		{false, "too many stand-bys", "L V V N N", 0, false, "remove 4"},
		{false, "two voters, no third: wait", "L V", 0, false, " "},
		{false, "two voters, no third for long: one", "L V", 0, true, "remove 1"},
		{false, "never shrink around a dead one", "L V Vquiet", 0, true, " "},
		{false, "seven eligible: five voters", "L V V N N", 2, false, "promote 3"},
		{false, "five voters, six eligible for long", "L V V V V", 1, true, "remove 1"},
		{false, "four voters by a leader change between two steps", "L V V V", 0, false, "remove 1"},
		{true, "a leader that leaves and one ready", "L N Nlag", 0, false, "promote 1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := rosterOf(tc.servers, tc.candidates)
			r.shrink, r.going = tc.shrink, tc.going
			ch := r.next()
			if got := string(ch.kind) + " " + ch.id; got != tc.want {
				t.Errorf("got %q (%s), want %q", got, ch.why, tc.want)
			}
		})
	}
}

// TestChangesAreSafe: from any roster every change leaves a living majority of
// the current and of the next configuration, and changes come to an end.
func TestChangesAreSafe(t *testing.T) {
	kinds := []string{"V", "V", "V", "Vdead", "Vsilent", "Vquiet", "Vleaving", "N", "Ndead", "Nlag", "Nleaving"}
	rapid.Check(t, func(t *rapid.T) {
		spec := "L " + strings.Join(rapid.SliceOfN(rapid.SampledFrom(kinds), 0, 7).Draw(t, "servers"), " ")
		r := rosterOf(spec, rapid.IntRange(0, 7).Draw(t, "candidates"))
		r.shrink = rapid.Bool().Draw(t, "shrink")
		count := func() (voters, living int) {
			for _, s := range r.servers {
				if s.voter {
					voters++
					if s.alive {
						living++
					}
				}
			}
			return
		}
		for round := 0; ; round++ {
			if round > 40 {
				t.Fatalf("no end from %q", spec)
			}
			n0, l0 := count()
			if 2*l0 <= n0 {
				return // such a leader loses its lease
			}
			ch := r.next()
			switch ch.kind {
			case stepNone:
				return
			case stepAdd:
				r.candidates, r.others = r.candidates[1:], r.others-1
				r.servers = append(r.servers, server{id: ch.id, machine: ch.id, alive: true, caughtUp: true})
				continue
			}
			for i, s := range r.servers {
				if s.id != ch.id {
					continue
				}
				if ch.kind == stepPromote {
					if s.voter || !s.caughtUp || !s.alive {
						t.Fatalf("promotes %+v", s)
					}
					r.servers[i].voter = true
				} else {
					if s.self {
						t.Fatalf("removes the leader")
					}
					r.servers = append(r.servers[:i:i], r.servers[i+1:]...)
				}
				break
			}
			if n, l := count(); 2*l <= n {
				t.Fatalf("%s %s (%s) from %q leaves %d living of %d", ch.kind, ch.id, ch.why, spec, l, n)
			}
		}
	})
}

func TestSupersedes(t *testing.T) {
	for _, tc := range []struct {
		now, was string
		want     bool
	}{
		{"m.b", "m.b", false}, {"m.c", "m.b", true}, {"m.b.1", "m.b", true}, {"m.b", "m.b.1", false},
		{"m.b.10", "m.b.9", true}, {"o.c", "m.b", false}, {"m.c", "m.b.3", true},
	} {
		if got := supersedes(tc.now, tc.was); got != tc.want {
			t.Errorf("supersedes(%q, %q) = %v", tc.now, tc.was, got)
		}
	}
}

func TestGap(t *testing.T) {
	tick := 100 * time.Millisecond
	for _, tc := range []struct {
		name       string
		mono, wall time.Duration
		want       time.Duration
	}{
		{"none", tick, tick, 0},
		{"stall", 5 * time.Second, 5 * time.Second, 4900 * time.Millisecond},
		{"suspend with a frozen monotonic clock", tick, time.Hour, time.Hour - tick},
		{"suspend with a lagging wall clock", time.Minute, tick, time.Minute - tick},
		{"wall clock set back", tick, -time.Hour, 0},
	} {
		if got := gap(tc.mono, tc.wall, tick); got != tc.want {
			t.Errorf("%s: got %s, want %s", tc.name, got, tc.want)
		}
	}
}
