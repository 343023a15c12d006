package agent

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"flymesh/agent/api"
	"flymesh/agent/hold"
	"flymesh/agent/identity"
	"flymesh/agent/process"
	"flymesh/leader"
	"flymesh/raftstore/state"
)

const (
	sessionTick = 250 * time.Millisecond
	sessionIdle = 2 * time.Minute // a session that was never granted anything is forgotten
	leaseTries  = 3 * time.Second // for one question to the leader
	lastWords   = time.Second     // to give back what the dead held, on the way out
)

// session is one program's wish for a lock, or its hold. It is kept in a file,
// so that the agent's next life knows what runs on this machine.
type session struct {
	api.AcquireRequest
	Token string `json:"token,omitempty"`
	Boot  string `json:"boot"`  // of the agent that asked
	Start uint64 `json:"start"` // when PID started, against reuse of the number

	deadline time.Time // end of the lease, counted from before it was asked for
	since    time.Time
	ended    bool // nothing is granted or renewed any more
	told     time.Time

	cancel context.CancelCauseFunc // of a run of a job that this process carries out
	done   chan struct{}           // closed when the run has ended
	work   *process.Command        // the run's, while it may be stopped for a gap of the clock
	halted bool                    // it is stopped until the lease is known to hold
}

// lockKeeper is this machine's side of the locks: it asks the leader on behalf
// of local programs, ends what outlives its lease, and says what runs here.
type lockKeeper struct {
	ask    func(ctx context.Context, r leader.LockRequest) (leader.LockAnswer, error)
	self   state.Holder // without session
	socket string
	dir    string
	log    *slog.Logger

	ends map[string]func() (gone bool, why string) // by lock: ends what this process itself does under it

	work  sync.WaitGroup // runs of jobs
	begun chan struct{}  // there may be a session to watch

	mu       sync.Mutex // guards all below
	sessions map[string]*session
	floor    uint64 // epoch under which no token counts any more
}

// begin watches over a session from now on. The caller holds mu.
func (k *lockKeeper) begin(s *session) {
	k.sessions[s.Session] = s
	select {
	case k.begun <- struct{}{}:
	default:
	}
}

// run ends what has outlived its lease or its owner, until ctx ends. It sleeps
// while there is no session.
func (k *lockKeeper) run(ctx context.Context) error {
	defer k.giveBack()
	defer k.endJobs()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.begun:
			k.guard(ctx)
		}
	}
}

// giveBack ends, as the last act, what dead programs have left: the app may
// have died of its program, and the agent ends with the app.
func (k *lockKeeper) giveBack() {
	ctx, cancel := context.WithTimeout(context.Background(), lastWords)
	defer cancel()
	over, _ := k.due()
	for _, s := range over {
		k.finish(ctx, s)
	}
}

// guard is run while there are sessions.
func (k *lockKeeper) guard(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// While a machine is suspended its monotonic clock stands still: leases are
	// shorter than they look afterwards.
	wg.Go(func() {
		identity.WatchClock(ctx, sessionTick, time.Second, k.gap)
	})
	t := time.NewTicker(sessionTick)
	defer t.Stop()
	for {
		over, left := k.due()
		for _, s := range over {
			k.finish(ctx, s)
		}
		if left == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// endJobs ends the runs of jobs that this process carries out: the next one
// could not go on with them.
func (k *lockKeeper) endJobs() {
	k.mu.Lock()
	for _, s := range k.sessions {
		if s.cancel != nil {
			s.cancel(errStopping)
		}
	}
	k.mu.Unlock()
	k.work.Wait()
}

// due lists the sessions that are over, and says how many there are.
func (k *lockKeeper) due() (over []session, all int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	for _, s := range k.sessions {
		dead := s.PID != 0 && !process.Alive(s.PID, s.Start)
		switch {
		case s.Token == "" && (s.ended || dead || now.Sub(s.since) > sessionIdle):
			k.forget(s.Session)
		case s.Token != "" && (s.ended || dead || now.After(s.deadline)) && now.Sub(s.told) > time.Second:
			s.ended, s.told = true, now
			over = append(over, *s)
		}
	}
	return over, len(k.sessions)
}

// finish ends the work of a session, and tells the leader when nothing runs.
func (k *lockKeeper) finish(ctx context.Context, s session) {
	ctx, cancel := context.WithTimeout(ctx, leaseTries)
	defer cancel()
	why := "its lease could not be renewed"
	if s.PID != 0 && !process.Alive(s.PID, s.Start) {
		why = "the process that held it died"
	}
	if gone, _ := k.end(s); !gone {
		// A program that is no wrapper cannot be ended here. Its hold may end
		// without it: by time, or by a person.
		a, err := k.ask(ctx, leader.LockRequest{Verb: leader.LockCheck, Lock: s.Lock, Token: s.Token})
		if err == nil && !a.OK && !s.Wrapper {
			k.drop(s.Session)
		}
		return
	}
	_, err := k.ask(ctx, leader.LockRequest{Verb: leader.LockRelease, Lock: s.Lock, Token: s.Token, Gone: true, Reason: why})
	if err != nil {
		return // again at the next look
	}
	k.log.Info("lock given back: its work has ended", "lock", s.Lock, "token", s.Token, "reason", why)
	k.drop(s.Session)
}

// end kills what runs under a session and says whether nothing does any more.
func (k *lockKeeper) end(s session) (gone bool, why string) {
	if end := k.ends[s.Lock]; end != nil {
		return end()
	}
	if s.cancel != nil {
		s.cancel(errNoLease)
		select {
		case <-s.done:
			return true, ""
		case <-time.After(2 * time.Second):
			return false, "run " + s.Session + " has not ended yet"
		}
	}
	if s.Wrapper && process.Alive(s.PID, s.Start) {
		_ = syscall.Kill(s.PID, syscall.SIGKILL) // one that has ended is what is wanted
	}
	for range 40 {
		left := k.mark(s.Token).Kill()
		switch {
		case left > 0:
			why = fmt.Sprintf("%d processes do not end", left)
		case s.PID == 0:
			return false, "the program that holds it gave no pid"
		case process.Alive(s.PID, s.Start):
			why = fmt.Sprintf("process %d still runs", s.PID)
			if !s.Wrapper {
				return false, why
			}
		default:
			return true, ""
		}
		time.Sleep(50 * time.Millisecond)
	}
	return false, why
}

// acquire asks the leader once, for a program of this machine.
func (k *lockKeeper) acquire(ctx context.Context, r api.AcquireRequest) (api.Lease, error) {
	k.mu.Lock()
	s := k.sessions[r.Session]
	if s == nil {
		s = &session{AcquireRequest: r, Boot: k.self.Boot, since: time.Now()}
		if r.PID != 0 {
			if s.Start = process.Started(r.PID); s.Start == 0 {
				k.mu.Unlock()
				return api.Lease{}, badRequest("pid: there is no process %d", r.PID)
			}
		}
		if err := k.keep(s); err != nil {
			k.mu.Unlock()
			return api.Lease{}, err
		}
		k.begin(s)
	}
	ended := s.ended || s.Lock != r.Lock
	k.mu.Unlock()
	if ended {
		return api.Lease{Lock: r.Lock, Why: "the session is over: make a new one"}, nil
	}
	h := k.self
	h.Session = r.Session
	sent := time.Now()
	a, err := k.ask(ctx, leader.LockRequest{
		Verb: leader.LockAcquire, ID: rand.Text(), Lock: r.Lock, Policy: s.Policy, Holder: h, Reason: r.Reason,
	})
	if err != nil {
		return api.Lease{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case !a.OK:
		if s.Token == "" {
			k.forget(s.Session)
		}
		return api.LeaseOf(r.Lock, a), nil
	case s.ended || state.Fence(a.Token)>>40 < k.floor || k.sessions[r.Session] != s:
		// The leader was told meanwhile that nothing runs here.
		s.ended, s.Token = true, a.Token
		return api.Lease{Lock: r.Lock, Why: "the grant came too late"}, nil
	}
	s.Token, s.deadline = a.Token, hold.LeaseEnd(sent, a.Lease)
	if err := k.keep(s); err != nil {
		s.ended = true
		return api.Lease{}, err
	}
	l := api.LeaseOf(r.Lock, a)
	l.Socket = k.socket
	return l, nil
}

// renew lengthens the lease of a program of this machine, or checks it.
func (k *lockKeeper) renew(ctx context.Context, r api.TokenRequest, verb leader.LockVerb) (api.Lease, error) {
	k.mu.Lock()
	s := k.byToken(r.Token)
	lost := s == nil || s.ended || s.Lock != r.Lock
	k.mu.Unlock()
	if lost && verb == leader.LockRenewal {
		return api.Lease{Lock: r.Lock, Why: "this machine's agent has given the lock up"}, nil
	}
	sent := time.Now()
	a, err := k.ask(ctx, leader.LockRequest{Verb: verb, Lock: r.Lock, Token: r.Token})
	if err != nil || verb == leader.LockCheck {
		return api.LeaseOf(r.Lock, a), err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if !a.OK {
		s.ended = true
	}
	if s.ended {
		return api.Lease{Lock: r.Lock, Why: a.Why}, nil
	}
	s.deadline = hold.LeaseEnd(sent, a.Lease)
	s.goOn()
	return api.LeaseOf(r.Lock, a), nil
}

// release gives a lock back whose work has ended. What the work has left
// behind is killed first.
func (k *lockKeeper) release(ctx context.Context, r api.TokenRequest) (api.Lease, error) {
	if left := k.mark(r.Token).Kill(); left > 0 {
		return api.Lease{}, fmt.Errorf("release lock %s: %d processes that run under it are being killed", r.Lock, left)
	}
	a, err := k.ask(ctx, leader.LockRequest{Verb: leader.LockRelease, Lock: r.Lock, Token: r.Token})
	if err != nil {
		return api.Lease{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if s := k.byToken(r.Token); s != nil {
		k.forget(s.Session)
	}
	return api.LeaseOf(r.Lock, a), nil
}

// held says which locks work on this machine runs under. Grants of an epoch
// before this one are worth nothing here from now on.
func (k *lockKeeper) held(epoch uint64) []state.Lock {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.floor = max(k.floor, epoch)
	locks := []state.Lock{}
	for _, s := range k.sessions {
		if s.Token != "" {
			h := k.self
			h.Boot, h.Session = s.Boot, s.Session
			locks = append(locks, state.Lock{Name: s.Lock, Token: s.Token, Policy: s.Policy, Holder: h, Reason: s.Reason, At: s.since.UTC()})
		}
	}
	slices.SortFunc(locks, func(a, b state.Lock) int { return strings.Compare(a.Name+a.Token, b.Name+b.Token) })
	return locks
}

// endLock ends what runs under a lock because the leader says so.
func (k *lockKeeper) endLock(l state.Lock) api.EndAnswer {
	k.mu.Lock()
	s := k.sessions[l.Holder.Session]
	if s == nil {
		k.mu.Unlock()
		if end := k.ends[l.Name]; end != nil {
			gone, why := end()
			return api.EndAnswer{Gone: gone, Why: why}
		}
		// A session is kept before the leader is asked: nothing will run under it.
		left := k.mark(l.Token).Kill()
		return api.EndAnswer{Gone: left == 0, Why: fmt.Sprintf("%d processes are being killed", left)}
	}
	s.ended = true
	if s.Token == "" {
		s.Token = l.Token
	}
	v := *s
	k.mu.Unlock()
	gone, why := k.end(v)
	if gone {
		k.drop(v.Session)
	}
	return api.EndAnswer{Gone: gone, Why: why}
}

// busy says what this machine must not be stopped for; empty: nothing.
func (k *lockKeeper) busy() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var names []string
	for _, s := range k.sessions {
		if s.Token != "" {
			names = append(names, s.Lock)
		}
	}
	if len(names) == 0 {
		return ""
	}
	slices.Sort(names)
	return "holds lock " + strings.Join(names, ", ")
}
