package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"flymesh/agent/api"
	"flymesh/agent/config"
	"flymesh/agent/hold"
	"flymesh/agent/process"
	"flymesh/leader"
	"flymesh/raftstore/state"
)

const (
	askAgain  = time.Second
	tellsTail = 300 // bytes of an answer or output that a run's record keeps
)

// startJob begins a run of a job on this machine, unless it has begun. What it
// does goes on after the call.
func (k *lockKeeper) startJob(ctx context.Context, j config.Job, r leader.JobStart) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.sessions[r.Run] != nil {
		return nil
	}
	if state.Fence(r.Token)>>40 < k.floor {
		return fmt.Errorf("start run %s: its token %s is of an old epoch", r.Run, r.Token)
	}
	work, cancel := context.WithCancelCause(ctx)
	s := &session{
		AcquireRequest: api.AcquireRequest{Lock: state.JobLock(r.Job), Session: r.Run, Policy: state.Fenced, PID: os.Getpid(), Reason: r.Run},
		Token:          r.Token, Boot: k.self.Boot, Start: process.Started(os.Getpid()),
		since: time.Now(), deadline: time.Now().Add(leader.LockLease),
		cancel: cancel, done: make(chan struct{}),
	}
	if err := k.keep(s); err != nil {
		return err
	}
	k.begin(s)
	k.work.Go(func() { k.runJob(work, j, r, s) })
	return nil
}

// errNoLease ends work whose lease has ended or is about to.
var errNoLease = errors.New("its lease could not be renewed")

// errStopping ends work because the agent does.
var errStopping = errors.New("the agent is stopping")

// runJob commits the start, does the work while it renews the lease, and
// commits the end.
func (k *lockKeeper) runJob(ctx context.Context, j config.Job, r leader.JobStart, s *session) {
	defer close(s.done)
	defer s.cancel(nil)
	// The same ID in every try: the start is committed once, and its answer is
	// the same.
	sent, ok := k.tellRun(ctx, leader.LockRequest{Verb: leader.JobBegin, ID: rand.Text(), Lock: s.Lock, Token: s.Token}, time.Now().Add(leader.LockLease-leader.LockGrace))
	k.mu.Lock()
	if ok = ok && !s.ended; ok {
		s.deadline = hold.LeaseEnd(sent, leader.LockLease)
	} else {
		s.ended = true // the next look gives it back
	}
	k.mu.Unlock()
	if !ok {
		return
	}
	k.log.Info("run started", "job", j.Name, "run", r.Run, "token", r.Token)
	wctx, stop := context.WithTimeout(ctx, j.Timeout)
	defer stop()
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() { k.renewRun(s, done) })
	detail, err := k.work1(wctx, j, r, s)
	switch {
	case err != nil && ctx.Err() != nil:
		err = fmt.Errorf("given up: %w", context.Cause(ctx))
	case err != nil && wctx.Err() != nil && ctx.Err() == nil:
		err = fmt.Errorf("not over after %s: %w", j.Timeout, err)
	}
	q := leader.LockRequest{Verb: leader.JobFinish, ID: rand.Text(), Lock: s.Lock, Token: s.Token, Reason: detail}
	if err != nil {
		q.Failed, q.Reason = true, fmt.Sprintf("%.*s", tellsTail, err.Error())
	}
	k.log.Info("run ended", "job", j.Name, "run", r.Run, "failed", q.Failed, "detail", q.Reason)
	// The work is over: whoever asks may be told so, and the end is committed if
	// that comes first.
	limit := 2 * time.Minute
	if errors.Is(context.Cause(ctx), errStopping) {
		limit = time.Second
	}
	_, _ = k.tellRun(context.WithoutCancel(ctx), q, time.Now().Add(limit))
	close(done)
	wg.Wait()
	k.drop(s.Session)
}

// tellRun asks the leader until it answers, the lease is over or ctx ends.
func (k *lockKeeper) tellRun(ctx context.Context, q leader.LockRequest, until time.Time) (sent time.Time, ok bool) {
	for ctx.Err() == nil && time.Now().Before(until) {
		sent = time.Now()
		actx, cancel := context.WithTimeout(ctx, leaseTries)
		a, err := k.ask(actx, q)
		cancel()
		if err == nil {
			return sent, a.OK
		}
		select {
		case <-ctx.Done():
		case <-time.After(askAgain):
		}
	}
	return sent, false
}

// gap shortens every lease by time that the clock has lost, and stops the
// commands of jobs until their leases are known to hold.
func (k *lockKeeper) gap(lost time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range k.sessions {
		s.deadline = s.deadline.Add(-lost)
		if s.work != nil {
			s.halted = true
			s.work.SignalGroup(syscall.SIGSTOP)
		}
	}
}

// goOn lets a command that was stopped for a gap go on. The caller holds the
// keeper's mu and has a lease.
func (s *session) goOn() {
	if s.halted && time.Now().Before(s.deadline) {
		s.halted = false
		s.work.SignalGroup(syscall.SIGCONT)
	}
}

// setWork says what a gap of the clock stops, nil: nothing any more. It returns
// how long what is told to end may take for it.
func (k *lockKeeper) setWork(s *session, c *process.Command) (grace time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s.work, s.halted = c, s.halted && c != nil
	return min(leader.LockGrace, time.Until(s.deadline)) - time.Second
}

// renewRun keeps a run's lease until done, and ends the work before the lease
// does.
func (k *lockKeeper) renewRun(s *session, done <-chan struct{}) {
	t := time.NewTicker(leader.LockRenew)
	defer t.Stop()
	guard := time.NewTicker(sessionTick)
	defer guard.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	renew := func() {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), leaseTries)
			defer cancel()
			_, _ = k.renew(ctx, api.TokenRequest{Lock: s.Lock, Token: s.Token}, leader.LockRenewal) // the guard sees what came of it
		})
	}
	for asked := time.Now(); ; {
		select {
		case <-done:
			return
		case <-guard.C:
			k.mu.Lock()
			over, halted := s.ended || time.Until(s.deadline) < leader.LockGrace, s.halted
			k.mu.Unlock()
			if over {
				s.cancel(errNoLease)
			} else if halted && time.Since(asked) > askAgain {
				asked = time.Now()
				renew()
			}
		case <-t.C:
			renew()
		}
	}
}

// work1 does the work of one run and says in short what came of it.
func (k *lockKeeper) work1(ctx context.Context, j config.Job, r leader.JobStart, s *session) (detail string, err error) {
	if j.URL != "" {
		return callJob(ctx, j, r)
	}
	return k.commandJob(ctx, j, r, s)
}

// callJob makes the call of a job, once: whether a broken one has begun its
// work is not known.
func callJob(ctx context.Context, j config.Job, r leader.JobStart) (string, error) {
	var body io.Reader
	if j.Method != http.MethodGet {
		b, err := json.Marshal(map[string]any{"job": r.Job, "run": r.Run, "tick": r.Tick, "token": r.Token, "args": r.Args})
		if err != nil {
			return "", fmt.Errorf("encode call: %w", err)
		}
		body = bytes.NewReader(b)
	}
	q, err := http.NewRequestWithContext(ctx, j.Method, j.URL, body)
	if err != nil {
		return "", fmt.Errorf("make call: %w", err)
	}
	q.GetBody = nil // never sent twice
	q.Header.Set("Content-Type", "application/json")
	q.Header.Set("Flymesh-Run", r.Run)
	q.Header.Set("Flymesh-Token", r.Token)
	for _, h := range j.HeadersEnv {
		name, env, _ := strings.Cut(h, "=")
		v := os.Getenv(env)
		if v == "" {
			return "", fmt.Errorf("make call: %s is not set, for header %s", env, name)
		}
		q.Header.Set(name, v)
	}
	c := http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, Proxy: nil},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := c.Do(q)
	if err != nil {
		return "", fmt.Errorf("call: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", fmt.Errorf("read answer of call: %w", err)
	}
	said := fmt.Sprintf("%d %.*s", resp.StatusCode, tellsTail, strings.TrimSpace(string(b)))
	if j.Status != 0 && resp.StatusCode != j.Status || j.Status == 0 && resp.StatusCode/100 != 2 {
		return "", fmt.Errorf("answer: %s", said)
	}
	if field, want, ok := strings.Cut(j.Expect, "="); ok {
		var v map[string]any
		if err := json.Unmarshal(b, &v); err != nil || fmt.Sprint(v[field]) != want {
			return "", fmt.Errorf("answer without %s: %s", j.Expect, said)
		}
	}
	return said, nil
}

// commandJob runs the program of a job in a process group of its own.
func (k *lockKeeper) commandJob(ctx context.Context, j config.Job, r leader.JobStart, s *session) (string, error) {
	cmd := exec.Command(j.Command[0], j.Command[1:]...)
	out := &tail{}
	cmd.Stdout, cmd.Stderr = out, out
	lock := state.JobLock(r.Job)
	cmd.Env = append(os.Environ(), api.LockNameEnv+"="+lock, api.LockTokenEnv+"="+r.Token,
		api.LockFenceEnv+"="+strconv.FormatUint(state.Fence(r.Token), 10), api.LockSocketEnv+"="+k.socket,
		"FLYMESH_JOB="+r.Job, "FLYMESH_JOB_RUN="+r.Run)
	if !r.Tick.IsZero() {
		cmd.Env = append(cmd.Env, "FLYMESH_JOB_TICK="+r.Tick.UTC().Format(time.RFC3339))
	}
	for name, v := range r.Args {
		cmd.Env = append(cmd.Env, "FLYMESH_ARG_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_"))+"="+v)
	}
	c, err := process.Start(cmd, process.Options{Mark: k.mark(r.Token)})
	if err != nil {
		return "", fmt.Errorf("start command: %w", err)
	}
	k.setWork(s, c)
	select {
	case <-c.Ended():
		err = c.Err()
		k.setWork(s, nil)
	case <-ctx.Done():
		if left := k.setWork(s, nil); left > 0 { // else its lease has ended
			c.SignalGroup(syscall.SIGTERM)
			c.SignalGroup(syscall.SIGCONT)
			select {
			case <-c.Ended():
			case <-time.After(left):
			}
		}
		err = context.Cause(ctx)
	}
	if !c.Kill() { // what it has left behind ends with it
		err = errors.Join(err, errors.New("its processes do not end"))
	}
	if err != nil {
		return "", fmt.Errorf("command: %w: %s", err, out)
	}
	return out.String(), nil
}

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if n := len(t.b) - tellsTail; n > 0 {
		t.b = t.b[n:]
	}
	return len(p), nil
}

// String returns what is kept, on one line.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(strings.Fields(strings.ToValidUTF8(string(t.b), "?")), " ")
}
