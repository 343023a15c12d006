package epoch_test

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"flymesh/raftstore/epoch"
)

func voter(machine string) epoch.Voter { return epoch.Voter{Machine: machine, Boot: "b"} }

func pending(machine string) epoch.Voter {
	v := voter(machine)
	v.Pending = true
	return v
}

func durable(machine string) epoch.Voter {
	v := voter(machine)
	v.Durable = true
	return v
}

func record(voters ...epoch.Voter) epoch.Record {
	return epoch.Record{Epoch: 4, Cluster: "4-x", Founder: voter("x"), Voters: voters}
}

func TestMayFound(t *testing.T) {
	a, b, c := voter("a"), voter("b"), voter("c")
	fates := func(s string) map[string]epoch.Fate {
		m := map[string]epoch.Fate{}
		for f := range strings.FieldsSeq(s) {
			k, v, _ := strings.Cut(f, "=")
			m[k] = epoch.Fate(v)
		}
		return m
	}
	long := time.Minute
	for _, tc := range []struct {
		name   string
		s      epoch.Situation
		found  bool
		epoch  uint64
		reason string
		resign bool
	}{
		{name: "empty record, patience not over", s: epoch.Situation{NoLeaderFor: time.Second}, reason: "patience"},
		{name: "empty record", s: epoch.Situation{NoLeaderFor: 2 * time.Second}, found: true, epoch: 1},
		{name: "empty record, another goes first", s: epoch.Situation{NoLeaderFor: 2 * time.Second, Rank: 1}, reason: "patience"},
		{name: "empty record, the other did not", s: epoch.Situation{NoLeaderFor: 5 * time.Second, Rank: 1}, found: true, epoch: 1},
		{name: "empty record, but a machine knows a cluster", s: epoch.Situation{NoLeaderFor: long, SeenEpoch: 2}, reason: "epoch 2"},
		{name: "may not vote", s: epoch.Situation{NoLeaderFor: long, Fates: fates("a=stopped b=stopped c=stopped"), Record: record(a, b, c), Self: epoch.Voter{Machine: "no"}}, reason: "may not vote"},
		{name: "all stopped, too early", s: epoch.Situation{NoLeaderFor: 29 * time.Second, Record: record(a, b, c), Fates: fates("a=stopped b=stopped c=stopped")}, reason: "patience"},
		{name: "all stopped", s: epoch.Situation{NoLeaderFor: 30 * time.Second, Record: record(a, b, c), Fates: fates("a=stopped b=stopped c=stopped")}, found: true, epoch: 5},
		{name: "fates not asked", s: epoch.Situation{NoLeaderFor: long, Record: record(a, b, c)}, reason: "not known yet"},
		{name: "majority rebooted", s: epoch.Situation{NoLeaderFor: long, Record: record(a, b, c), Fates: fates("a=rebooted b=destroyed c=running")}, found: true, epoch: 5},
		{name: "only one dead", s: epoch.Situation{NoLeaderFor: long, Record: record(a, b, c), Fates: fates("a=rebooted b=running c=running")}, reason: "b (running), c (running)"},
		{name: "suspended is not dead", s: epoch.Situation{NoLeaderFor: long, Record: record(a, b, c), Fates: fates("a=suspended b=suspended c=suspended")}, reason: "suspended"},
		{name: "unknown is not dead", s: epoch.Situation{NoLeaderFor: 24 * time.Hour, Record: record(a, b, c), Fates: fates("a=stopped")}, reason: "b (unknown)"},
		{name: "two voters, one dead: the other is no majority", s: epoch.Situation{NoLeaderFor: long, Record: record(a, b), Fates: fates("a=stopped b=running")}, found: true, epoch: 5},
		{name: "one voter alive", s: epoch.Situation{NoLeaderFor: long, Record: record(a), Fates: fates("a=running")}, reason: "a (running)"},
		{name: "pending voter dead, the settled one lives", s: epoch.Situation{NoLeaderFor: long, Record: record(a, pending("b")), Fates: fates("a=running b=stopped")}, reason: "a (running)", resign: true},
		{name: "settled one dead, pending one lives", s: epoch.Situation{NoLeaderFor: long, Record: record(a, pending("b")), Fates: fates("a=stopped b=running")}, found: true, epoch: 5},
		{name: "durable voters come back", s: epoch.Situation{NoLeaderFor: long, Record: record(durable("a"), durable("b"), c), Fates: fates("a=stopped b=rebooted c=stopped")}, reason: "a (stopped), b (rebooted)"},
		{name: "durable voters are gone", s: epoch.Situation{NoLeaderFor: long, Record: record(durable("a"), durable("b"), c), Fates: fates("a=destroyed b=replaced c=running")}, found: true, epoch: 5},
		{name: "leader died while a third was promoted", s: epoch.Situation{NoLeaderFor: long, Record: record(a, b, pending("c")), Fates: fates("a=stopped b=running c=running")}, reason: "b (running), c (running)", resign: true},
		{name: "the same, too early to ask for resignation", s: epoch.Situation{NoLeaderFor: 59 * time.Second, Record: record(a, b, pending("c")), Fates: fates("a=stopped b=running c=running")}, reason: "b (running), c (running)"},
		{name: "leader died while a fourth was promoted", s: epoch.Situation{NoLeaderFor: long, Record: record(a, b, c, pending("d")), Fates: fates("a=stopped b=running c=running d=running")}, reason: "b (running)"},
		{name: "no voters recorded", s: epoch.Situation{NoLeaderFor: long, Record: record(), Fates: fates("")}, reason: "0 of 0"},
		{name: "newer epoch heard of", s: epoch.Situation{NoLeaderFor: long, SeenEpoch: 5, Record: record(a), Fates: fates("a=stopped")}, reason: "epoch 5"},
		{name: "own founding was interrupted", s: epoch.Situation{NoLeaderFor: 2 * time.Second, Record: epoch.Record{Epoch: 4, Cluster: "4-b", Founder: voter("me"), Voters: []epoch.Voter{voter("me")}}}, found: true, epoch: 5},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := tc.s
			if s.Self.Machine == "" {
				s.Self = voter("me")
			}
			s.Eligible = s.Self.Machine != "no"
			s.FormAfter, s.RecoverAfter, s.Stagger = 1500*time.Millisecond, 30*time.Second, 3*time.Second
			d := epoch.MayFound(s)
			if d.Found != tc.found || d.Resign != tc.resign || d.Epoch != tc.epoch || !strings.Contains(d.Reason, tc.reason) {
				t.Errorf("got %+v", d)
			}
		})
	}
}

// TestNeverFoundOverMajority: whatever the leader was about to change, a
// cluster whose true voters can still form a majority is not replaced.
func TestNeverFoundOverMajority(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 5).Draw(t, "voters")
		var recorded []epoch.Voter
		for i := range n {
			recorded = append(recorded, voter(string(rune('a'+i))))
		}
		truth := recorded
		switch rapid.IntRange(0, 3).Draw(t, "change") {
		case 1: // being promoted: recorded as pending, in raft or not
			x := pending("x")
			if rapid.Bool().Draw(t, "committed") {
				truth = append(truth[:n:n], x)
			}
			recorded = append(recorded[:n:n], x)
		case 2: // being removed: recorded as pending, in raft or not
			if n > 1 {
				recorded = append([]epoch.Voter(nil), recorded...)
				recorded[n-1].Pending = true
				if rapid.Bool().Draw(t, "committed") {
					truth = truth[:n-1]
				}
			}
		case 3: // removed from an odd number without a word in the record
			if n%2 == 1 && n > 1 {
				truth = truth[:n-1]
			}
		}
		fates := map[string]epoch.Fate{}
		living := 0
		for _, v := range recorded {
			if rapid.Bool().Draw(t, "dead "+v.Machine) {
				fates[v.Machine] = epoch.Stopped
			}
		}
		for _, v := range truth {
			if !v.Ended(fates[v.Machine]) {
				living++
			}
		}
		d := epoch.MayFound(epoch.Situation{
			Record: record(recorded...), Self: voter("me"), Eligible: true, NoLeaderFor: time.Hour, Fates: fates, RecoverAfter: time.Second,
		})
		if d.Found && 2*living > len(truth) {
			t.Fatalf("founds although %d of %d voters live: %+v", living, len(truth), recorded)
		}
		if len(fates) == len(recorded) && !d.Found {
			t.Fatalf("does not found although all are dead: %s", d.Reason)
		}
	})
}
