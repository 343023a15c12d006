package epoch

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Zero reports whether the record names no cluster.
func (r Record) Zero() bool { return r.Epoch == 0 && r.Cluster == "" }

// Names reports whether the record names this cluster.
func (r Record) Names(epoch uint64, cluster string) bool {
	return r.Epoch == epoch && r.Cluster == cluster
}

// Same reports whether two records say the same, but for when they were written.
func (r Record) Same(o Record) bool {
	return r.Epoch == o.Epoch && r.Cluster == o.Cluster && r.Founder.ID() == o.Founder.ID() &&
		slices.EqualFunc(r.Voters, o.Voters, func(a, b Voter) bool {
			return a.ID() == b.ID() && a.Pending == b.Pending
		})
}

// ID is the raft server ID of a voting incarnation.
func (v Voter) ID() string { return v.Machine + "." + v.Boot }

// ClusterID names the cluster that a founder's incarnation founds.
func ClusterID(epoch uint64, boot string) string { return fmt.Sprintf("%d-%s", epoch, boot) }

// Ended reports whether the fate proves that the incarnation never votes again.
func (v Voter) Ended(f Fate) bool {
	switch f {
	case Destroyed, Replaced:
		return true
	case Stopped, Rebooted:
		return !v.Durable
	}
	return false
}

// Situation is what a machine without a leader knows.
type Situation struct {
	Record      Record
	Self        Voter // the incarnation that would found
	Eligible    bool  // may vote
	Rank        int   // how many living eligible machines go first
	SeenEpoch   uint64
	NoLeaderFor time.Duration
	// Fates of the recorded voters by machine ID; nil where not asked yet.
	Fates map[string]Fate

	FormAfter    time.Duration // patience before the first formation
	RecoverAfter time.Duration // patience before a recovery
	Stagger      time.Duration // further patience for each machine that goes first
}

// Decision is the answer of MayFound.
type Decision struct {
	Found  bool   // take the lease and found Epoch
	Resume bool   // the record already names Self as founder of Epoch: go on from there
	Ask    bool   // only the fates of the recorded voters are missing
	Epoch  uint64 // of the cluster to be founded
	Reason string
	// Living are the recorded voters whose end is not proven, when they are
	// what forbids a recovery.
	Living []Voter
}

// MayFound decides whether a machine may found the next cluster. It never
// answers yes by count or by time alone: the record must be empty, or those
// recorded voters that are not proven dead must be too few for a majority, in
// the recorded set and also without the one whose change is pending.
func MayFound(s Situation) Decision {
	wait := func(format string, a ...any) Decision {
		return Decision{Reason: fmt.Sprintf(format, a...)}
	}
	if !s.Eligible {
		return wait("this machine may not vote")
	}
	if s.SeenEpoch > s.Record.Epoch {
		return wait("a machine knows of epoch %d, the record only of %d", s.SeenEpoch, s.Record.Epoch)
	}
	if !s.Record.Zero() && s.Record.Founder.ID() == s.Self.ID() {
		return Decision{Resume: true, Epoch: s.Record.Epoch, Reason: "the record names this incarnation as founder"}
	}
	patience := s.RecoverAfter
	if s.Record.Zero() {
		patience = s.FormAfter
	}
	patience += time.Duration(s.Rank) * s.Stagger
	if s.NoLeaderFor < patience {
		return wait("no leader for %s, patience is %s", s.NoLeaderFor.Round(time.Millisecond), patience)
	}
	next := s.Record.Epoch + 1
	if s.Record.Zero() {
		return Decision{Found: true, Epoch: next, Reason: "no cluster was ever founded"}
	}
	if s.Fates == nil {
		d := wait("the fates of the recorded voters are not known yet")
		d.Ask = true
		return d
	}
	living := Living(s.Record.Voters, s.Fates)
	if CanGoOn(s.Record.Voters, s.Fates) {
		var names []string
		for _, v := range living {
			f := s.Fates[v.Machine]
			if f == "" {
				f = Unknown
			}
			names = append(names, v.Machine+" ("+string(f)+")")
		}
		d := wait("%d of %d recorded voters are not proven dead: %s", len(living), len(s.Record.Voters), strings.Join(names, ", "))
		d.Living = living
		return d
	}
	return Decision{Found: true, Epoch: next, Reason: fmt.Sprintf(
		"no leader for %s and %d of %d recorded voters are proven dead",
		s.NoLeaderFor.Round(time.Second), len(s.Record.Voters)-len(living), len(s.Record.Voters))}
}

// Living returns the voters whose end is not proven.
func Living(voters []Voter, fates map[string]Fate) []Voter {
	var l []Voter
	for _, v := range voters {
		if !v.Ended(fates[v.Machine]) {
			l = append(l, v)
		}
	}
	return l
}

// CanGoOn reports whether those not proven dead might still be a majority of
// the voters, with or without the pending ones. A set without voters can.
func CanGoOn(voters []Voter, fates map[string]Fate) bool {
	settled := slices.DeleteFunc(slices.Clone(voters), func(v Voter) bool { return v.Pending })
	for _, set := range [][]Voter{voters, settled} {
		if 2*len(Living(set, fates)) > len(set) {
			return true
		}
	}
	return len(settled) == 0
}
