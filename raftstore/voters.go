package raftstore

import (
	"cmp"
	"slices"
	"time"
)

// warmStandbys is how many caught-up non-voters are kept beside the voters.
const warmStandbys = 1

// server is what the leader knows of one server of the raft configuration.
type server struct {
	id, machine string
	voter       bool
	self        bool          // the leader
	alive       bool          // answered lately
	silent      time.Duration // since it answered
	dead        bool          // proven: it never votes again
	leaving     bool          // it, or the autoscaler, asked to remove it
	caughtUp    bool
}

// candidate is a living eligible machine outside raft.
type candidate struct {
	id, addr, machine string
}

// roster is the leader's view on which the next change of membership rests.
type roster struct {
	servers     []server
	candidates  []candidate // that answered and are in no cluster, best first
	others      int         // living eligible machines outside raft
	silentAfter time.Duration
	unsettled   bool // the newest change of voters has not reached every living one
	going       bool // the leader is about to leave: a successor matters more than odd numbers
	shrink      bool // eligible machines have been too few for long enough
}

type stepKind string

const (
	stepNone    stepKind = ""
	stepAdd     stepKind = "add"     // as a non-voter
	stepPromote stepKind = "promote" // a caught-up non-voter
	stepRemove  stepKind = "remove"
)

// change is one change of the raft configuration.
type change struct {
	kind stepKind
	id   string
	addr string
	why  string
}

// wantVoters is the right number of voters for so many eligible machines: two
// are worse than one, because either's end stops both.
func wantVoters(eligible int) int {
	switch {
	case eligible >= 7:
		return 5
	case eligible >= 3:
		return 3
	}
	return 1
}

// next chooses the one change to make now. PURE. A voter is removed only if
// the living others are a majority of the current configuration; one that
// lives and leaves, if they are a majority of the configuration without it.
// None is promoted while a living voter lacks entries: hashicorp/raft refuses
// votes to a server that the voter does not yet know as one, so a leader lost
// in between could leave voters that never elect.
func (r roster) next() change {
	var voters, standbys []server
	living, behind, eligible := 0, 0, r.others
	for _, s := range r.servers {
		if !s.voter {
			if !s.self && (s.dead || s.leaving || s.silent >= r.silentAfter) {
				return change{stepRemove, s.id, "", "non-voter is " + s.state()}
			}
			standbys = append(standbys, s)
		} else {
			voters = append(voters, s)
			if s.alive {
				living++
			}
			if s.alive && !s.self && !s.caughtUp {
				behind++
			}
		}
		if s.alive && !s.leaving {
			eligible++
		}
	}
	n := len(voters)
	for _, s := range voters {
		if s.self {
			continue
		}
		others := living
		if s.alive {
			others--
		}
		switch {
		case r.unsettled:
		case (s.dead || !s.alive && s.silent >= r.silentAfter) && others >= n/2+1,
			s.leaving && others >= (n-1)/2+1:
			return change{stepRemove, s.id, "", "voter is " + s.state()}
		}
	}
	want := wantVoters(eligible)
	need := max(0, want-n)
	var ready []server
	for _, s := range standbys {
		if s.alive && s.caughtUp && !s.leaving {
			ready = append(ready, s)
		}
	}
	if need > 0 {
		// From an odd number only when the next odd one is in reach.
		enough := 1
		if n%2 == 1 && !r.going {
			enough = 2
		}
		if !r.unsettled && behind == 0 && len(ready) >= enough && living+1 >= (n+1)/2+1 {
			return change{stepPromote, ready[0].id, "", "too few voters"}
		}
	}
	if !r.unsettled && n > want && living == n && n > 1 && (r.shrink || n%2 == 0 && n > 2) {
		i := slices.IndexFunc(voters, func(s server) bool { return !s.self })
		return change{stepRemove, voters[i].id, "", "more voters than eligible machines justify"}
	}
	if len(standbys) < need+warmStandbys && len(r.candidates) > 0 {
		c := r.candidates[0]
		return change{stepAdd, c.id, c.addr, "stand-by wanted"}
	}
	if len(standbys) > need+warmStandbys && living == n && need == 0 {
		return change{stepRemove, standbys[len(standbys)-1].id, "", "more stand-bys than wanted"}
	}
	return change{}
}

func (s server) state() string {
	switch {
	case s.dead:
		return "proven dead"
	case s.leaving:
		return "leaving"
	}
	return "silent"
}

// rank sorts candidates: those of apps with few servers first, because a
// deploy takes all machines of an app at once; then the oldest boot.
func rank(peers []Peer, perApp map[string]int) []Peer {
	return slices.SortedFunc(slices.Values(peers), func(a, b Peer) int {
		return cmp.Or(
			cmp.Compare(perApp[a.App], perApp[b.App]),
			a.BootAt.Compare(b.BootAt),
			cmp.Compare(a.Machine, b.Machine),
		)
	})
}
