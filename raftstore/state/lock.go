package state

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// LockPolicy says what frees a lock whose holder has gone silent.
type LockPolicy string

// The policies.
const (
	// Fenced frees it when the holder's agent says that the work has ended, or
	// the platform that the machine is stopped: never by time alone.
	Fenced LockPolicy = "fenced"
	// Expiry frees it also when the lease, the grace and the lock delay have
	// passed: for work that does no harm when two do it for a moment.
	Expiry LockPolicy = "expiry"
)

// Holder is who holds a lock: one session of one boot of an agent.
type Holder struct {
	Machine string `json:"machine"`
	App     string `json:"app,omitempty"` // of the machine: where the platform is asked about it
	Boot    string `json:"boot"`
	Session string `json:"session"` // random, made by who asked for the lock
}

// Lock is one lock that is held. Its token is "<epoch>-<index>" of the entry
// that granted it: a later grant has a greater one, in every epoch.
type Lock struct {
	Name   string     `json:"name"`
	Token  string     `json:"token"`
	Policy LockPolicy `json:"policy"`
	Holder Holder     `json:"holder"`
	Reason string     `json:"reason,omitempty"` // what it is held for
	At     time.Time  `json:"at"`               // of the grant
}

// Cause says what proves that a lock is free.
type Cause string

// The causes.
const (
	Released Cause = "released" // the holder says so
	Ended    Cause = "ended"    // the holder's agent says that the work has ended
	Stopped  Cause = "stopped"  // the platform says that the machine does not run
	Expired  Cause = "expired"  // the lease and all margins have passed
	Forced   Cause = "forced"   // a person says so, against the rules
)

// Grant gives a lock to a holder. Rejected while another session holds it,
// while the locks of an earlier epoch are not yet known (see Rebuilt), and
// while the holder's machine is being removed.
type Grant struct {
	Lock   string     `json:"lock"`
	Policy LockPolicy `json:"policy"`
	Holder Holder     `json:"holder"`
	Reason string     `json:"reason,omitempty"`
}

// Free ends a hold. Rejected if Token is not the lock's, or if the cause does
// not do for the lock's policy.
type Free struct {
	Lock   string `json:"lock"`
	Token  string `json:"token"`
	Cause  Cause  `json:"cause"`
	Reason string `json:"reason,omitempty"`
}

// Adopt takes a lock over that a machine says it holds from an earlier epoch.
type Adopt struct {
	Lock Lock `json:"lock"`
}

// Rebuilt says that no lease of an earlier epoch can last any more, so that
// expiry locks are granted in this one. With Proven, every machine has said
// which locks it holds from before, or is proven not to run: then fenced locks
// are granted too.
type Rebuilt struct {
	Epoch  uint64 `json:"epoch"`
	Proven bool   `json:"proven,omitempty"`
	Reason string `json:"reason"`
}

// Known says whether locks of the policy are granted in this epoch.
func (s *State) Known(p LockPolicy) bool {
	return s.Proven == s.Epoch || p == Expiry && s.Rebuilt == s.Epoch
}

// Fence returns a token as one number that grows with each grant, for a
// database to compare. It is 0 for what is no token.
func Fence(token string) uint64 {
	e, i, ok := strings.Cut(token, "-")
	epoch, err1 := strconv.ParseUint(e, 10, 24)
	index, err2 := strconv.ParseUint(i, 10, 40)
	if !ok || err1 != nil || err2 != nil {
		return 0
	}
	return epoch<<40 | index
}

// HeldBy returns the locks that a machine holds, by name.
func (s *State) HeldBy(machine string) (locks []Lock) {
	for _, name := range slices.Sorted(maps.Keys(s.Locks)) {
		if l := s.Locks[name]; l.Holder.Machine == machine {
			locks = append(locks, *l)
		}
	}
	return locks
}

func (s *State) grant(index uint64, c Command) Result {
	g := c.Grant
	h := g.Holder
	if g.Lock == "" || h.Machine == "" || h.Session == "" || g.Policy != Fenced && g.Policy != Expiry || c.Term == 0 {
		return reject(index, BadEntry, fmt.Sprintf("grant lock %q by policy %q to %q", g.Lock, g.Policy, h.Machine))
	}
	if l := s.Locks[g.Lock]; l != nil {
		if l.Holder.Session == h.Session {
			return Result{Index: index, Token: l.Token}
		}
		return reject(index, Conflict, fmt.Sprintf("lock %s is held by machine %s", g.Lock, l.Holder.Machine))
	}
	if !s.Known(g.Policy) {
		return reject(index, Conflict, fmt.Sprintf("the locks of epochs before %d are not known yet", s.Epoch))
	}
	for _, id := range slices.Sorted(maps.Keys(s.Ops)) {
		if o := s.Ops[id]; o.Machine == h.Machine && (o.Kind == OpDown || o.Step == StepUndo) {
			return reject(index, Conflict, fmt.Sprintf("operation %s removes machine %s", o.ID, h.Machine))
		}
	}
	token := fmt.Sprintf("%d-%d", s.Epoch, index)
	s.Locks[g.Lock] = &Lock{Name: g.Lock, Token: token, Policy: g.Policy, Holder: h, Reason: g.Reason, At: c.At}
	s.tell(index, c, Event{Kind: "lock", Machine: h.Machine, Op: token, Reason: joined(g.Lock, g.Reason)})
	return Result{Index: index, Token: token}
}

func (s *State) free(index uint64, c Command) Result {
	f := c.Free
	l := s.Locks[f.Lock]
	switch {
	case l == nil:
		return reject(index, NoSuch, fmt.Sprintf("lock %q is not held", f.Lock))
	case l.Token != f.Token:
		return reject(index, Stale, fmt.Sprintf("lock %s is held with token %s, not %s", f.Lock, l.Token, f.Token))
	case f.Cause == Expired && l.Policy != Expiry:
		return reject(index, Conflict, fmt.Sprintf("lock %s is %s: time alone does not free it", f.Lock, l.Policy))
	}
	switch f.Cause {
	case Released, Ended, Stopped, Expired:
		if c.Term == 0 {
			return reject(index, BadEntry, "only a leader frees a lock, or a person by force")
		}
	case Forced:
	default:
		return reject(index, BadEntry, fmt.Sprintf("cause %q", f.Cause))
	}
	delete(s.Locks, f.Lock)
	s.freed(index, c, *l, joined(string(f.Cause), f.Reason))
	s.tell(index, c, Event{Kind: "unlock", Machine: l.Holder.Machine, Op: l.Token, Reason: joined(f.Lock, string(f.Cause), f.Reason)})
	return Result{Index: index, Token: l.Token}
}

func (s *State) adopt(index uint64, c Command) Result {
	l := c.Adopt.Lock
	if l.Name == "" || l.Holder.Machine == "" || l.Holder.Session == "" || l.Policy != Fenced && l.Policy != Expiry || Fence(l.Token) == 0 || c.Term == 0 {
		return reject(index, BadEntry, fmt.Sprintf("adopt lock %q with token %q", l.Name, l.Token))
	}
	if old := s.Locks[l.Name]; old != nil {
		if old.Token == l.Token {
			return Result{Index: index, Token: l.Token}
		}
		return reject(index, Conflict, fmt.Sprintf("lock %s is held with token %s", l.Name, old.Token))
	}
	// What this epoch granted, it also remembers: such a lock was freed.
	if Fence(l.Token)>>40 >= s.Epoch {
		return reject(index, Stale, fmt.Sprintf("token %s is of this epoch and not held", l.Token))
	}
	s.Locks[l.Name] = &l
	s.goesOn(l)
	s.tell(index, c, Event{Kind: "lock", Machine: l.Holder.Machine, Op: l.Token, Reason: joined(l.Name, "goes on from an earlier epoch")})
	return Result{Index: index, Token: l.Token}
}

func (s *State) rebuilt(index uint64, c Command) Result {
	if c.Rebuilt.Epoch != s.Epoch || c.Term == 0 {
		return reject(index, Stale, fmt.Sprintf("epoch %d, this is %d", c.Rebuilt.Epoch, s.Epoch))
	}
	if s.Rebuilt == s.Epoch && (s.Proven == s.Epoch || !c.Rebuilt.Proven) {
		return Result{Index: index}
	}
	if s.Rebuilt = s.Epoch; c.Rebuilt.Proven {
		s.Proven = s.Epoch
	}
	s.tell(index, c, Event{Kind: "locks_known", Reason: c.Rebuilt.Reason})
	return Result{Index: index}
}
