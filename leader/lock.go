package leader

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"flymesh/raftstore/state"
)

// Times of a lock. The holder counts its lease from before it asked, the
// leader from when it heard, so that the holder always stops first.
const (
	LockLease  = 15 * time.Second
	LockRenew  = 5 * time.Second  // the holder renews this often
	LockGrace  = 5 * time.Second  // from the holder's SIGTERM to its SIGKILL, at the end of the lease
	LockMargin = 2 * time.Second  // a holder that is late by less is not silent
	LockDelay  = 10 * time.Second // after a lease that nobody has seen the end of
)

// longestLease is what a silent holder may have left, with all margins.
const longestLease = LockLease + LockMargin + LockGrace + LockDelay

const (
	lockTick   = time.Second
	wantedFor  = time.Minute      // a lock that was asked for within it is wanted
	stopSoon   = 5 * time.Second  // a machine that was told to stop is stopping by then
	stopAgain  = 30 * time.Second // before a stop that had no effect is repeated
	holderWait = 4 * time.Second  // for a holder's agent to answer
)

// ErrNotLeading says that this node leads no term, or has only just begun one.
var ErrNotLeading = errors.New("this node does not lead")

// Holders reaches the agents of machines that may hold locks.
type Holders interface {
	// Held returns the locks that work on the machine runs under. From then on
	// the machine begins nothing under a token of an epoch before this one.
	Held(ctx context.Context, machine string, epoch uint64) ([]state.Lock, error)
	// End has the agent end what runs under a lock. gone means that nothing does
	// any more and that nothing ever will under this token; why says what still
	// does otherwise.
	End(ctx context.Context, machine string, l state.Lock) (gone bool, why string, err error)
	// Start has the agent begin a run of a job, once: the agent commits the start
	// before anything begins.
	Start(ctx context.Context, machine string, r JobStart) error
}

// LockVerb is what a LockRequest asks for.
type LockVerb string

// The verbs.
const (
	LockAcquire LockVerb = "acquire"
	LockRenewal LockVerb = "renew"
	LockRelease LockVerb = "release"
	LockCheck   LockVerb = "check"
)

// LockVerbs are all of them, those of jobs included.
var LockVerbs = [...]LockVerb{LockAcquire, LockRenewal, LockRelease, LockCheck, JobBegin, JobFinish}

// LockRequest is what a holder's agent asks of the leader.
type LockRequest struct {
	Verb   LockVerb         `json:"verb"`
	ID     string           `json:"id"` // of this request: a repeat of it grants nothing new
	Lock   string           `json:"lock"`
	Token  string           `json:"token,omitempty"`  // all but acquire
	Policy state.LockPolicy `json:"policy,omitempty"` // acquire
	Holder state.Holder     `json:"holder,omitzero"`  // acquire
	Reason string           `json:"reason,omitempty"`
	Gone   bool             `json:"gone,omitempty"`   // release: the agent saw the end, not the holder
	Failed bool             `json:"failed,omitempty"` // finish: the run was no success
}

// LockAnswer is what the leader says. OK means: granted, renewed, released,
// current. Otherwise Why says why not, and the token is worth nothing (acquire:
// the lock was not obtained yet).
type LockAnswer struct {
	OK     bool          `json:"ok"`
	Token  string        `json:"token,omitempty"`
	Lease  time.Duration `json:"lease,omitempty"` // from when the request was sent
	Holder *state.Holder `json:"holder,omitempty"`
	Why    string        `json:"why,omitempty"`
}

// LockView is a held lock as the leader sees it.
type LockView struct {
	state.Lock
	Silent time.Duration `json:"silent"`        // since the newest renewal that this leader heard, or its begin
	Why    string        `json:"why,omitempty"` // why a silent holder's lock is not free yet
}

// locks keeps the leases of one term.
type locks struct {
	l     *Leader
	term  Term
	began time.Time // no lease ends earlier than one lease after it

	mu      sync.Mutex           // guards all below
	heard   map[string]time.Time // by token: newest renewal
	ending  map[string]bool      // by token: it is being freed and not renewed any more
	forced  map[string]bool      // by token: a person frees it, whatever its holder says
	wanted  map[string]time.Time // by lock: when it was last asked for in vain
	held    map[string]string    // by lock: why it is not free yet
	busy    map[string]bool      // by lock: somebody looks after it
	stops   map[string]stopCall  // by token: its holder's machine was told to stop
	cried   map[string]bool      // by token: people know that it cannot be freed
	stuckAt map[string]time.Time // by lock: when it was last found that it cannot be freed
	waits   map[string]string    // by job: why a due tick does not run yet
	missing string               // what is not known of the locks of earlier epochs
}

// stopCall is a call that stops a machine.
type stopCall struct {
	at  time.Time
	err error // of an answer that leaves open whether it was taken
}

func (l *Leader) newLocks(t Term) *locks {
	return &locks{
		l: l, term: t, began: time.Now(),
		heard: map[string]time.Time{}, ending: map[string]bool{}, wanted: map[string]time.Time{},
		held: map[string]string{}, busy: map[string]bool{},
		stops: map[string]stopCall{}, waits: map[string]string{}, cried: map[string]bool{},
		stuckAt: map[string]time.Time{}, forced: map[string]bool{},
	}
}

// keepLocks looks after the locks until the term ends.
func (l *Leader) keepLocks(ctx context.Context, t Term) {
	k := l.newLocks(t)
	l.setLocks(k)
	defer l.setLocks(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(lockTick)
	defer tick.Stop()
	wg.Go(func() { k.rebuild(ctx) })
	wg.Go(func() { k.keepJobs(ctx) })
	for {
		st := l.Store.State()
		for _, name := range slices.Sorted(maps.Keys(st.Locks)) {
			lock := *st.Locks[name]
			if !k.overdue(lock) {
				continue
			}
			wg.Go(func() {
				defer k.idle(lock.Name)
				k.settle(ctx, lock)
			})
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (l *Leader) setLocks(k *locks) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.locks = k
}

func (l *Leader) lockKeeper() (*locks, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.locks == nil || l.locks.term.Context.Err() != nil {
		return nil, ErrNotLeading
	}
	return l.locks, nil
}

// Lock answers a holder's agent. An error means that nothing can be said: the
// holder asks again, and trusts its lease no longer than it lasts.
func (l *Leader) Lock(ctx context.Context, r LockRequest) (LockAnswer, error) {
	k, err := l.lockKeeper()
	if err != nil {
		return LockAnswer{}, err
	}
	switch r.Verb {
	case LockAcquire:
		return k.acquire(ctx, r)
	case LockRenewal, LockCheck:
		return k.renew(ctx, r)
	case LockRelease:
		return k.release(ctx, r)
	case JobBegin, JobFinish:
		return k.markRun(ctx, r)
	}
	return LockAnswer{}, fmt.Errorf("answer lock request: verb %q is not known", r.Verb)
}

// Locks lists what is held; false while this node does not lead.
func (l *Leader) Locks() ([]LockView, bool) {
	k, err := l.lockKeeper()
	if err != nil {
		return nil, false
	}
	st := l.Store.State()
	k.mu.Lock()
	defer k.mu.Unlock()
	all := []LockView{}
	for _, name := range slices.Sorted(maps.Keys(st.Locks)) {
		lock := *st.Locks[name]
		all = append(all, LockView{Lock: lock, Silent: time.Since(k.heardOf(lock.Token)), Why: k.held[name]})
	}
	return all, true
}

// heardOf is from when a lease counts. A new leader grants a full one first.
func (k *locks) heardOf(token string) time.Time {
	if t, ok := k.heard[token]; ok {
		return t
	}
	return k.began
}

func (k *locks) acquire(ctx context.Context, r LockRequest) (LockAnswer, error) {
	st := k.l.Store.State()
	if old := st.Locks[r.Lock]; old != nil {
		if old.Holder.Session == r.Holder.Session {
			return k.renew(ctx, LockRequest{Verb: LockRenewal, Lock: r.Lock, Token: old.Token})
		}
		k.mu.Lock()
		k.wanted[r.Lock] = time.Now()
		why := k.held[r.Lock]
		k.mu.Unlock()
		if why == "" {
			why = "held since " + old.At.UTC().Format(time.RFC3339)
		}
		return LockAnswer{Holder: &old.Holder, Why: why}, nil
	}
	if !st.Known(r.Policy) {
		k.mu.Lock()
		defer k.mu.Unlock()
		return LockAnswer{Why: fmt.Sprintf("epoch %d is new, and %s", k.term.Epoch, cmp.Or(k.missing, "machines are being asked which locks they hold from before"))}, nil
	}
	if err := k.l.Store.Verify(ctx); err != nil {
		return LockAnswer{}, fmt.Errorf("verify leadership: %w", err)
	}
	res, err := k.l.propose(ctx, k.term, state.Command{ID: r.ID, Grant: &state.Grant{
		Lock: r.Lock, Policy: r.Policy, Holder: r.Holder, Reason: r.Reason,
	}})
	if errors.Is(err, state.ErrRejected) {
		return LockAnswer{Why: res.Detail}, nil
	}
	if err != nil {
		return LockAnswer{}, err
	}
	// A repeated request is answered with its first token, which may be over.
	return k.renew(ctx, LockRequest{Verb: LockRenewal, Lock: r.Lock, Token: res.Token})
}

// renew lengthens a lease, or (check) only says whether the token is current.
// Renewals are not committed: this leader hears them, and the next one grants
// a full lease first.
func (k *locks) renew(ctx context.Context, r LockRequest) (LockAnswer, error) {
	if err := k.l.Store.Leads(ctx); err != nil {
		return LockAnswer{}, fmt.Errorf("verify leadership: %w", err)
	}
	st := k.l.Store.State()
	lock := st.Locks[r.Lock]
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case lock == nil && !st.Known(state.Fenced) && state.Fence(r.Token)>>40 < k.term.Epoch:
		return LockAnswer{}, fmt.Errorf("%w: the locks of epochs before %d are not known yet", ErrNotLeading, k.term.Epoch)
	case lock == nil:
		return LockAnswer{Why: fmt.Sprintf("lock %s is not held", r.Lock)}, nil
	case lock.Token != r.Token:
		return LockAnswer{Holder: &lock.Holder, Why: fmt.Sprintf("lock %s is held with another token", r.Lock)}, nil
	case k.ending[r.Token]:
		return LockAnswer{Why: fmt.Sprintf("the lease of lock %s has ended", r.Lock)}, nil
	}
	if r.Verb == LockCheck {
		return LockAnswer{OK: true, Token: r.Token}, nil
	}
	k.heard[r.Token] = time.Now()
	return LockAnswer{OK: true, Token: r.Token, Lease: LockLease}, nil
}

func (k *locks) release(ctx context.Context, r LockRequest) (LockAnswer, error) {
	cause := state.Released
	if r.Gone {
		cause = state.Ended
	}
	k.mu.Lock()
	k.ending[r.Token] = true
	k.mu.Unlock()
	res, err := k.l.propose(ctx, k.term, state.Command{Free: &state.Free{Lock: r.Lock, Token: r.Token, Cause: cause, Reason: r.Reason}})
	if errors.Is(err, state.ErrRejected) {
		return LockAnswer{Why: res.Detail}, nil
	}
	if err != nil {
		return LockAnswer{}, err
	}
	return LockAnswer{OK: true, Token: r.Token}, nil
}

// ForceUnlock frees a lock because a person says so. The holder's agent is told
// to end the work, but its answer is not waited for.
func (l *Leader) ForceUnlock(ctx context.Context, lock, id, by, reason string) (state.Result, error) {
	k, err := l.lockKeeper()
	if err != nil {
		return state.Result{}, err
	}
	held := l.Store.State().Locks[lock]
	if held == nil {
		return state.Result{}, fmt.Errorf("%w: lock %s is not held", state.ErrRejected, lock)
	}
	k.mu.Lock()
	k.ending[held.Token], k.forced[held.Token] = true, true
	k.busy[lock] = true // nobody else looks after it
	k.mu.Unlock()
	defer k.idle(lock)
	told := "its machine said that the work has ended"
	if gone, why := k.end(ctx, *held); !gone {
		told = "its work may go on: " + why
	}
	pctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	res, err := l.Store.Propose(pctx, state.Command{
		ID: id, At: time.Now().UTC(), By: by,
		Free: &state.Free{Lock: lock, Token: held.Token, Cause: state.Forced, Reason: cmp.Or(reason, "no reason given") + "; " + told},
	})
	if err != nil {
		return res, fmt.Errorf("propose command: %w", err)
	}
	if l := l.Store.State().Locks[lock]; l == nil || l.Token != held.Token {
		res.Rejection = "" // freed by this command, or by its end a moment before
	}
	res.Token = held.Token
	return res, res.Err()
}

// end asks the holder's agent to end the work.
func (k *locks) end(ctx context.Context, lock state.Lock) (gone bool, why string) {
	ctx, cancel := context.WithTimeout(ctx, holderWait)
	defer cancel()
	gone, why, err := k.l.Holders.End(ctx, lock.Holder.Machine, lock)
	if err != nil {
		return false, fmt.Sprintf("the agent of %s does not answer (%v)", lock.Holder.Machine, err)
	}
	return gone, why
}
