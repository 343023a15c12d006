package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"flymesh/agent/api"
	"flymesh/agent/identity"
)

const (
	renewTry   = 2 * time.Second // for one renewal
	renewAgain = 500 * time.Millisecond
	clockEvery = 250 * time.Millisecond
	clockGap   = time.Second
)

// hold is a lock and the command that runs under it.
type hold struct {
	client   *api.Client
	lease    api.Lease
	deadline time.Time // end of the lease, by this process's clock
	out      io.Writer
	why      string // why the lock was lost
	failure  string // why the command did not start
}

// renewal is the outcome of one try.
type renewal struct {
	until time.Time // zero: no answer
	lost  string    // non-empty: the lock is lost for good
}

// run runs the command in a process group of its own until it ends, or the
// lock is lost: then nothing of the group is left when run returns.
func (h *hold) run(ctx context.Context, argv []string, stdout io.Writer) (code int, lost bool) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, stdout, h.out
	cmd.Env = append(os.Environ(),
		api.LockNameEnv+"="+h.lease.Lock, api.LockTokenEnv+"="+h.lease.Token,
		api.LockFenceEnv+"="+strconv.FormatUint(h.lease.Fence, 10), api.LockSocketEnv+"="+h.lease.Socket)
	cmd.WaitDelay = time.Second
	// If this process dies, the command dies with it; what the command has
	// started, the agent finds by its environment.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if tty := int(os.Stdin.Fd()); foreground(tty) {
		cmd.SysProcAttr.Foreground, cmd.SysProcAttr.Ctty = true, tty
	}
	begun, ended := make(chan error, 1), make(chan error, 1)
	if time.Now().After(h.stopAt()) {
		h.why = "its lease was nearly over before the command began"
		return exitLockLost, true
	}
	go func() {
		runtime.LockOSThread() // the signal at the parent's death is of the thread
		if err := cmd.Start(); err != nil {
			begun <- err
			return
		}
		begun <- nil
		ended <- cmd.Wait()
	}()
	if err := <-begun; err != nil {
		h.failure = fmt.Sprintf("start %s: %v", argv[0], err)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
			return exitNotFound, false
		}
		return 126, false
	}
	g := group(cmd.Process.Pid)
	defer g.end() // a command that has ended may have left something behind

	wctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	gaps, answers := make(chan time.Duration, 1), make(chan renewal, 1)
	go identity.WatchClock(wctx, clockEvery, clockGap, func(gap time.Duration) {
		g.kill(syscall.SIGSTOP) // until the lease is known to hold
		select {
		case gaps <- gap:
		case <-wctx.Done():
		}
	})
	every := time.Duration(h.lease.Renew) * time.Millisecond
	next, asking, stopped, dying := time.Now().Add(every), false, false, false
	asked := ctx.Done()
	for {
		if now := time.Now(); !now.Before(h.deadline) {
			h.why = cmp.Or(h.why, "its lease ended before it could be renewed")
			g.kill(syscall.SIGKILL)
			<-ended
			return exitLockLost, true
		} else if !dying && !now.Before(h.stopAt()) {
			dying, h.why = true, "its lease could not be renewed"
			fmt.Fprintf(h.out, "agentctl: lock %s cannot be renewed: the command gets SIGTERM, and SIGKILL in %s\n", h.lease.Lock, time.Until(h.deadline).Round(100*time.Millisecond))
			g.kill(syscall.SIGTERM)
			g.kill(syscall.SIGCONT)
		} else if !dying && !asking && !now.Before(next) {
			asking = true
			go func() { answers <- h.renew(wctx) }()
		}
		wait := time.NewTimer(min(renewAgain/5, max(time.Until(h.deadline), 0)))
		select {
		case err := <-ended:
			wait.Stop()
			if dying {
				return exitLockLost, true
			}
			return codeOf(cmd, err), false
		case gap := <-gaps:
			h.deadline = h.deadline.Add(-gap)
			stopped, next = true, time.Now()
		case r := <-answers:
			asking = false
			next = time.Now().Add(every)
			switch {
			case r.lost != "":
				h.why, h.deadline = r.lost, time.Now()
			case r.until.IsZero():
				next = time.Now().Add(renewAgain)
			case !dying:
				h.deadline = r.until
				if stopped {
					stopped = false
					g.kill(syscall.SIGCONT)
				}
			}
		case <-asked:
			asked = nil
			g.kill(syscall.SIGTERM)
		case <-wait.C:
		}
		wait.Stop()
	}
}

// stopAt is when the command is told to end, so that it has ended with the lease.
func (h *hold) stopAt() time.Time {
	return h.deadline.Add(-time.Duration(h.lease.Grace) * time.Millisecond)
}

func (h *hold) token() api.TokenRequest {
	return api.TokenRequest{Lock: h.lease.Lock, Token: h.lease.Token}
}

func (h *hold) renew(ctx context.Context) renewal {
	sent := time.Now()
	wall := sent.Round(0)
	ctx, cancel := context.WithTimeout(ctx, renewTry)
	defer cancel()
	l, err := h.client.Renew(ctx, h.token())
	switch {
	case err != nil:
		return renewal{}
	case !l.OK:
		return renewal{lost: cmp.Or(l.Why, "the mesh says so")}
	}
	// What the machine was suspended for in between is not on the monotonic clock.
	asleep := max(0, time.Now().Round(0).Sub(wall)-time.Since(sent))
	return renewal{until: sent.Add(l.Left() - asleep)}
}

// release gives the lock back when nothing of the command is left. If nobody
// takes it, the agent does when this process has ended.
func (h *hold) release() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		if _, err := h.client.Release(ctx, h.token()); err == nil {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(renewAgain):
		}
	}
}

// group is a process group.
type group int

func (g group) kill(sig syscall.Signal) { _ = syscall.Kill(-int(g), sig) }

// end kills what is left of the group and waits, for a moment, until it is gone.
func (g group) end() {
	for range 50 {
		if err := syscall.Kill(-int(g), syscall.SIGKILL); err != nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// codeOf is the command's exit code, 128+n for signal n.
func codeOf(cmd *exec.Cmd, err error) int {
	if st, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && st.Signaled() {
		return 128 + int(st.Signal())
	}
	if code := cmd.ProcessState.ExitCode(); code >= 0 {
		return code
	}
	if err != nil {
		return exitFailure
	}
	return exitOK
}

// foreground says whether the file is a terminal and this process is in its
// foreground.
func foreground(tty int) bool {
	pgrp, err := unix.IoctlGetInt(tty, unix.TIOCGPGRP)
	return err == nil && pgrp == unix.Getpgrp()
}
