package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"

	"flymesh/agent/api"
	"flymesh/agent/hold"
	"flymesh/agent/process"
	"flymesh/raftstore/state"
)

// Exit codes of `agentctl lock` besides its command's.
const (
	exitLockLost      = 70
	exitNotObtained   = 75
	exitNotExecutable = 126
	exitNotFound      = 127
)

// exitError ends with a code of its own; an empty text prints nothing.
type exitError struct {
	code int
	text string
}

func (e *exitError) Error() string { return e.text }

// lockCommands are the commands of exclusive work.
type lockCommands struct {
	Lock   lockCmd   `cmd:"" help:"run a command while holding a lock of the mesh"`
	Locks  locksCmd  `cmd:"" help:"show the locks that are held"`
	Unlock unlockCmd `cmd:"" help:"free a lock by force"`
	Job    jobCmd    `cmd:"" help:"show and steer the scheduled jobs"`
	Pin    pinCmd    `cmd:"" help:"make a machine the primary of its service"`
}

const (
	acquireEvery = time.Second // between two tries to get a lock
	releaseWait  = 5 * time.Second
)

type lockCmd struct {
	Name    string   `arg:"" help:"any name: the same one excludes each other in the whole mesh"`
	Wait    string   `default:"30s" placeholder:"30s" help:"how long to try; 0s: once"`
	Policy  string   `default:"fenced" enum:"fenced,expiry" help:"fenced: a silent holder is proven gone before the lock is granted again; expiry: its lease has to pass"`
	Command []string `arg:"" passthrough:"" help:"-- CMD ARGS"`
}

// Run gets the lock, runs the command under it and gives it back.
func (c *lockCmd) Run(s *session) error {
	switch {
	case len(c.Command) == 0:
	case c.Command[0] == "--":
		c.Command = c.Command[1:]
	case strings.HasPrefix(c.Command[0], "-"):
		return usage("lock %s: there is no flag %s; flags are --wait and --policy, and the command comes after --", c.Name, c.Command[0])
	}
	wait, err := time.ParseDuration(c.Wait)
	if err != nil || wait < 0 {
		return usage("lock %s --wait %s: %q is not a duration; use 30s or 0s", c.Name, c.Wait, c.Wait)
	}
	if len(c.Command) == 0 {
		return usage("lock %s: the command is missing: agentctl lock %s -- CMD", c.Name, c.Name)
	}
	h, err := c.acquire(s, wait)
	if err != nil {
		return err
	}
	if err := process.Adopt(); err != nil {
		return fmt.Errorf("adopt orphans: %w", err)
	}
	go process.Reap(s.ctx)
	cmd := exec.Command(c.Command[0], c.Command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, s.out, s.err
	code, err := h.Run(s.ctx, hold.Work{Command: cmd, Group: true, Say: func(text string) { fmt.Fprintln(s.err, "agentctl: "+text) }})
	switch {
	case errors.Is(err, hold.ErrLost):
		return &exitError{exitLockLost, fmt.Sprintf("%v: the command was killed", err)}
	case errors.Is(err, hold.ErrLeft):
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), releaseWait)
	defer cancel()
	h.Release(ctx)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, exec.ErrNotFound):
		return &exitError{exitNotFound, err.Error()}
	case err != nil:
		return &exitError{exitNotExecutable, err.Error()}
	case code != exitOK:
		return &exitError{code: code}
	}
	return nil
}

// acquire asks until the lock is granted or the wait is over.
func (c *lockCmd) acquire(s *session, wait time.Duration) (*hold.Hold, error) {
	r := api.AcquireRequest{
		Lock: c.Name, Session: rand.Text(), Policy: state.LockPolicy(c.Policy), PID: os.Getpid(), Wrapper: true,
		Reason: fmt.Sprintf("%.200s", who()+": "+strings.Join(c.Command, " ")),
	}
	until := time.Now().Add(wait)
	for {
		h, why, err := hold.Acquire(s.ctx, s.client, r)
		var re *api.ResponseError
		switch {
		case h != nil:
			return h, nil
		case errors.As(err, &re) && re.Code == api.CodeBadRequest:
			return nil, err
		case err != nil:
			why = oneLine(s.explain(err))
		}
		if s.ctx.Err() != nil || time.Now().Add(acquireEvery).After(until) || !s.sleep(acquireEvery) {
			return nil, &exitError{exitNotObtained, fmt.Sprintf("lock %s was not obtained within %s: %s", c.Name, wait, why)}
		}
	}
}

type locksCmd struct {
	JSON bool `help:"print JSON"`
}

// Run prints who holds what.
func (c *locksCmd) Run(s *session) error {
	all, err := s.client.Locks(s.ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(s.out, all, true)
	}
	t := newTable(s.out)
	t.row("LOCK", "MACHINE", "TOKEN", "POLICY", "SINCE", "RENEWED", "REASON")
	for _, l := range all {
		reason := l.Reason
		if l.Why != "" {
			reason = l.Why
		}
		t.row(l.Name, l.Holder.Machine, l.Token, string(l.Policy), l.At.UTC().Format("2006-01-02T15:04:05Z"),
			fmt.Sprintf("%s ago", l.Silent.Round(time.Second)), reason)
	}
	return t.flush()
}

type unlockCmd struct {
	Name   string `arg:"" help:"of the lock"`
	Force  bool   `help:"say that you know that the holder's work has ended, or does no harm"`
	Reason string `placeholder:"T" help:"why, for the events"`
}

// Run frees a lock against the rules.
func (c *unlockCmd) Run(s *session) error {
	if !c.Force {
		return usage("unlock %s: the mesh frees a lock when its work has ended; to free it against that rule add --force", c.Name)
	}
	a, err := s.client.Unlock(s.ctx, api.UnlockRequest{Lock: c.Name, Reason: c.Reason, By: who()})
	return s.accepted(a, err)
}
