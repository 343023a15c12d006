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

// Dead reports whether the fate proves that an incarnation which keeps
// nothing over a stop never votes again.
func (f Fate) Dead() bool {
	return f == Stopped || f == Destroyed || f == Rebooted || f == Replaced
}

// Ended reports whether the fate proves that this incarnation never votes again.
func (v Voter) Ended(f Fate) bool {
	if v.Durable {
		return f == Destroyed || f == Replaced
	}
	return f.Dead()
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
	Ask    bool   // only the fates of the recorded voters are missing
	Epoch  uint64 // of the cluster to be founded
	Reason string
	// Living are the recorded voters whose end is not proven, when they are
	// what forbids a recovery.
	Living []Voter
	// Resign: the leader died within a change of voters, and those who live
	// are a majority of the voters before it or after it, not of both. Raft
	// may then never elect, because they differ in who may vote; if all of
	// them agree that nobody leads, they may be asked to give up.
	Resign bool
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
		// Self did not act on that record in time, so that cluster never was.
		// Its number is not used again: each epoch has one cluster at most.
		return Decision{Found: true, Epoch: s.Record.Epoch + 1, Reason: "an earlier founding of this incarnation was not finished"}
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
		settled := Settled(s.Record.Voters)
		d.Resign = majority(s.Record.Voters, s.Fates) != majority(settled, s.Fates) &&
			s.NoLeaderFor >= patience+s.RecoverAfter
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
	settled := Settled(voters)
	return majority(voters, fates) || majority(settled, fates) || len(settled) == 0
}

// Settled returns the voters whose change is not pending.
func Settled(voters []Voter) []Voter {
	return slices.DeleteFunc(slices.Clone(voters), func(v Voter) bool { return v.Pending })
}

func majority(set []Voter, fates map[string]Fate) bool {
	return 2*len(Living(set, fates)) > len(set)
}
