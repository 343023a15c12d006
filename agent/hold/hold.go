// Package hold does work under a lock of the mesh: it gets the lock from the
// agent of this machine, renews it, runs a program meanwhile and ends the
// program before the lease ends. `agentctl lock` and the role-aware command are
// made of it.
//
// The lease counts from before it was asked for. At its end less the grace the
// program's process group gets SIGTERM, at its end whatever the program has
// started is killed. If this process dies, the program dies with it, and the
// agent finds and kills the rest before the lock is free.
package hold

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"flymesh/agent/api"
	"flymesh/agent/identity"
	"flymesh/agent/process"
)

const (
	acquireTry = 5 * time.Second // for one question
	renewTry   = 2 * time.Second
	releaseTry = 5 * time.Second
	again      = 500 * time.Millisecond
	lookEvery  = 100 * time.Millisecond
	clockEvery = 250 * time.Millisecond
	clockGap   = time.Second
)

var (
	// ErrLost is the cause when a lock was lost while it was needed.
	ErrLost = errors.New("lost")
	// ErrLeft is the cause when something of the command cannot be killed. The
	// lock must not be released then.
	ErrLeft = errors.New("processes of it do not end")
)

// Hold is a lock that is held. It is used from one goroutine.
type Hold struct {
	client   *api.Client
	lease    api.Lease
	deadline time.Time        // end of the lease, by this process's clock
	command  *process.Command // nil: none was started
}

// Acquire asks for the lock once. Without a Hold and an error, why says who has
// the lock or what else is in the way.
func Acquire(ctx context.Context, c *api.Client, r api.AcquireRequest) (h *Hold, why string, err error) {
	sent := time.Now()
	ctx, cancel := context.WithTimeout(ctx, acquireTry)
	defer cancel()
	l, err := c.Acquire(ctx, r)
	switch {
	case err != nil:
		return nil, "", err
	case l.OK:
		h = &Hold{client: c, lease: l, deadline: LeaseEnd(sent, l.Left())}
		if time.Now().Before(h.stopAt()) {
			return h, "", nil
		}
		return nil, "the answer took too long", nil // asked again, the session gets a new lease
	case l.Holder != "":
		return nil, fmt.Sprintf("machine %s has it: %s", l.Holder, l.Why), nil
	}
	return nil, l.Why, nil
}

// Work is what is done under a lock.
type Work struct {
	Command *exec.Cmd // its environment gets the lock's variables
	// Ready, once closed, lets the command start; nil: at once. The lock is
	// held and renewed meanwhile.
	Ready <-chan struct{}
	Began func(*process.Command) // called when the command has started; may be nil
	// Patience is how long the command, once it was asked to end, may take
	// before it is killed; 0: as long as it likes.
	Patience time.Duration
	// Group says that a command that is asked to end is asked with its whole
	// group, as a shell's needs; else the command alone is, as an app expects.
	Group bool
	Say   func(text string) // tells people that the lock is about to be lost
}

// renewal is the outcome of one try.
type renewal struct {
	until time.Time // zero: no answer
	lost  string    // non-empty: the lock is lost for good
}

// Run does the work and returns the command's exit code. The end of ctx asks
// the command to end. An error is ErrLost with the reason, or says why the
// command did not start. Nothing that the command started is left then, unless
// the error is ErrLeft.
func (h *Hold) Run(ctx context.Context, w Work) (code int, err error) {
	code, err = h.run(ctx, w)
	for try := 0; h.command != nil; try++ { // a command that has ended may have left something
		switch {
		case h.command.Kill():
			h.command = nil
		case try == 5:
			return 0, fmt.Errorf("end %s: %w", w.Command.Args[0], ErrLeft)
		}
	}
	return code, err
}

func (h *Hold) run(ctx context.Context, w Work) (code int, err error) {
	wctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	gaps, answers := make(chan time.Duration, 1), make(chan renewal, 1)
	running := make(chan *process.Command, 1)
	go h.watchClock(wctx, running, gaps)

	ready, ended := w.Ready, (<-chan struct{})(nil)
	if ready == nil {
		now := make(chan struct{})
		close(now)
		ready = now
	}
	every := time.Duration(h.lease.Renew) * time.Millisecond
	next, asking, stopped, dying := time.Now().Add(every), false, false, false
	asked, patience := ctx.Done(), (<-chan time.Time)(nil)
	why := ""
	for {
		switch now := time.Now(); {
		case !now.Before(h.deadline), h.command == nil && !now.Before(h.stopAt()):
			return 0, fmt.Errorf("lock %s was %w: %s", h.lease.Lock, ErrLost, cmp.Or(why, "its lease ended before it could be renewed"))
		case !dying && !now.Before(h.stopAt()):
			dying, why = true, "its lease could not be renewed"
			w.Say(fmt.Sprintf("lock %s cannot be renewed: the command gets SIGTERM, and SIGKILL in %s", h.lease.Lock, time.Until(h.deadline).Round(100*time.Millisecond)))
			h.command.SignalGroup(syscall.SIGTERM)
			h.command.SignalGroup(syscall.SIGCONT)
		case !dying && !asking && !now.Before(next):
			asking = true
			go func() { answers <- h.renew(wctx) }()
		}
		wait := time.NewTimer(min(lookEvery, max(time.Until(h.deadline), 0)))
		select {
		case <-ready:
			ready = nil
			if h.command, err = h.start(w); err != nil {
				wait.Stop()
				return 0, err
			}
			ended = h.command.Ended()
			running <- h.command
		case <-ended:
			wait.Stop()
			if dying {
				return 0, fmt.Errorf("lock %s was %w: %s", h.lease.Lock, ErrLost, why)
			}
			return h.command.Code(), nil
		case gap := <-gaps:
			h.deadline = h.deadline.Add(-gap)
			stopped, next = true, time.Now()
		case r := <-answers:
			asking, next = false, time.Now().Add(every)
			switch {
			case r.lost != "":
				why, h.deadline = r.lost, time.Now()
			case r.until.IsZero():
				next = time.Now().Add(again)
			case !dying:
				h.deadline = r.until
				if stopped && h.command != nil {
					h.command.SignalGroup(syscall.SIGCONT)
				}
				stopped = false
			}
		case <-asked:
			asked = nil
			if h.command == nil {
				wait.Stop()
				return 0, nil
			}
			if w.Group {
				h.command.SignalGroup(syscall.SIGTERM)
			} else {
				h.command.Signal(syscall.SIGTERM)
			}
			if w.Patience > 0 {
				patience = time.After(w.Patience)
			}
		case <-patience:
			h.command.Kill()
		case <-wait.C:
		}
		wait.Stop()
	}
}

// start starts the command with the lock's variables.
func (h *Hold) start(w Work) (*process.Command, error) {
	l := h.lease
	w.Command.Env = append(w.Command.Environ(),
		api.LockNameEnv+"="+l.Lock, api.LockTokenEnv+"="+l.Token,
		api.LockFenceEnv+"="+strconv.FormatUint(l.Fence, 10), api.LockSocketEnv+"="+l.Socket)
	c, err := process.Start(w.Command, process.Options{Mark: process.Mark{Socket: l.Socket, Token: l.Token}, Alone: true})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", w.Command.Args[0], err)
	}
	if w.Began != nil {
		w.Began(c)
	}
	return c, nil
}

// watchClock stops the command after a gap of the clock, until the lease is
// known to hold.
func (h *Hold) watchClock(ctx context.Context, running <-chan *process.Command, gaps chan<- time.Duration) {
	var c *process.Command
	identity.WatchClock(ctx, clockEvery, clockGap, func(gap time.Duration) {
		select {
		case c = <-running:
		default:
		}
		if c != nil {
			c.SignalGroup(syscall.SIGSTOP)
		}
		select {
		case gaps <- gap:
		case <-ctx.Done():
		}
	})
}

// stopAt is when the command is told to end, so that it has ended with the lease.
func (h *Hold) stopAt() time.Time {
	return h.deadline.Add(-time.Duration(h.lease.Grace) * time.Millisecond)
}

func (h *Hold) token() api.TokenRequest {
	return api.TokenRequest{Lock: h.lease.Lock, Token: h.lease.Token}
}

func (h *Hold) renew(ctx context.Context) renewal {
	sent := time.Now()
	ctx, cancel := context.WithTimeout(ctx, renewTry)
	defer cancel()
	l, err := h.client.Renew(ctx, h.token())
	switch {
	case err != nil:
		return renewal{}
	case !l.OK:
		return renewal{lost: cmp.Or(l.Why, "the mesh says so")}
	}
	return renewal{until: LeaseEnd(sent, l.Left())}
}

// LeaseEnd is when a lease ends that was asked for at sent. A machine that was
// suspended meanwhile has a monotonic clock that stood still: the wall clock
// shows it.
func LeaseEnd(sent time.Time, lease time.Duration) time.Time {
	now := time.Now()
	asleep := now.Round(0).Sub(sent.Round(0)) - now.Sub(sent)
	return sent.Add(lease - max(0, asleep))
}

// Release gives the lock back and tries until it is taken or ctx ends. If
// nobody takes it, the agent does when this process has ended.
func (h *Hold) Release(ctx context.Context) {
	for ctx.Err() == nil {
		try, cancel := context.WithTimeout(ctx, releaseTry)
		_, err := h.client.Release(try, h.token())
		cancel()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(again):
		}
	}
}
