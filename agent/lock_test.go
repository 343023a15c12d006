package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"flymesh/agent/api"
	"flymesh/agent/config"
	"flymesh/agent/process"
	"flymesh/leader"
	"flymesh/raftstore/state"
)

// oneLock is a leader that knows one lock. Its leases are short.
type oneLock struct {
	mu       sync.Mutex // guards all below
	n        int
	token    string
	released []string
	deaf     bool
	lease    time.Duration
	marks    []string
}

func (o *oneLock) ask(_ context.Context, r leader.LockRequest) (leader.LockAnswer, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.deaf {
		return leader.LockAnswer{}, api.ErrNoLeader
	}
	switch r.Verb {
	case leader.LockAcquire:
		if o.token != "" {
			return leader.LockAnswer{Why: "held"}, nil
		}
		o.n++
		o.token = fmt.Sprintf("1-%d", o.n)
	case leader.LockRelease, leader.JobFinish:
		if o.token == r.Token {
			o.token = ""
			o.released = append(o.released, r.Token)
		}
		if r.Verb == leader.JobFinish {
			o.marks = append(o.marks, fmt.Sprintf("finish failed=%v %s", r.Failed, r.Reason))
		}
		return leader.LockAnswer{OK: true}, nil
	case leader.JobBegin:
		o.marks = append(o.marks, "begin")
	}
	return leader.LockAnswer{OK: o.token == r.Token || r.Verb == leader.LockAcquire, Token: o.token, Lease: o.lease, Why: "lost"}, nil
}

func (o *oneLock) deafen(deaf bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.deaf = deaf
}

func (o *oneLock) free() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.token == ""
}

func keeper(t *testing.T, socket string, o *oneLock) *lockKeeper {
	t.Helper()
	k, err := openLocks(state.Holder{Machine: "m1", App: "a", Boot: "b"}, socket, slog.New(slog.DiscardHandler), o.ask)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = k.run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return k
}

// wrapped is a process that stands for a wrapper, and its child in a group of
// its own with the marks of the lock.
func wrapped(t *testing.T, k *lockKeeper, socket string) (wrapper, child *exec.Cmd, token string) {
	t.Helper()
	wrapper = exec.Command("sleep", "60")
	child = exec.Command("sh", "-c", "sleep 61 & sleep 61")
	if err := wrapper.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = wrapper.Wait() }()
	l, err := k.acquire(t.Context(), api.AcquireRequest{Lock: "x", Session: "session-1", Policy: state.Fenced, PID: wrapper.Process.Pid, Wrapper: true})
	if err != nil || !l.OK {
		t.Fatalf("acquire = %+v, %v", l, err)
	}
	child.Env = []string{"PATH=/bin:/usr/bin", api.LockTokenEnv + "=" + l.Token, api.LockSocketEnv + "=" + socket}
	child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = child.Wait() }()
	t.Cleanup(func() { _ = syscall.Kill(-child.Process.Pid, syscall.SIGKILL); _ = wrapper.Process.Kill() })
	until(t, "three marked processes", func() bool { return len(process.Marked(socket)[l.Token]) == 3 })
	return wrapper, child, l.Token
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// TestDeadWrapperFreesItsLock: what the wrapper left behind, also in the
// background, is killed before the lock is given back.
func TestDeadWrapperFreesItsLock(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	o := &oneLock{lease: time.Minute}
	k := keeper(t, socket, o)
	w, _, token := wrapped(t, k, socket)
	if k.busy() == "" {
		t.Error("the machine is not busy while a lock is held")
	}
	if err := w.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	until(t, "the lock given back", o.free)
	if n := len(process.Marked(socket)[token]); n > 0 {
		t.Errorf("%d processes run under a lock that was given back", n)
	}
	until(t, "the machine not busy", func() bool { return k.busy() == "" })
}

// TestFrozenWrapperIsKilledAtItsDeadline: a stopped process does not renew; the
// agent ends it and all under it when its lease ends.
func TestFrozenWrapperIsKilledAtItsDeadline(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	o := &oneLock{lease: 2 * time.Second}
	k := keeper(t, socket, o)
	w, c, token := wrapped(t, k, socket)
	_ = syscall.Kill(w.Process.Pid, syscall.SIGSTOP)
	_ = syscall.Kill(-c.Process.Pid, syscall.SIGSTOP)
	until(t, "the lock given back", o.free)
	if n := len(process.Marked(socket)[token]); n > 0 || process.Started(w.Process.Pid) != 0 {
		t.Errorf("%d processes and the wrapper run under a lock that was given back", n)
	}
}

// TestNextAgentKnowsWhatRuns: an agent that starts anew announces the lock of a
// living wrapper, and kills what runs under a token that nobody keeps.
func TestNextAgentKnowsWhatRuns(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	o := &oneLock{lease: time.Minute}
	_, _, token := wrapped(t, keeper(t, socket, o), socket)
	stray := exec.Command("sleep", "62")
	stray.Env = []string{api.LockTokenEnv + "=1-99", api.LockSocketEnv + "=" + socket}
	if err := stray.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- stray.Wait() }()
	until(t, "the stray process's environment", func() bool { return len(process.Marked(socket)["1-99"]) == 1 })
	next := keeper(t, socket, o)
	if held := next.held(2); len(held) != 1 || held[0].Token != token || held[0].Holder.Session != "session-1" {
		t.Errorf("held = %+v, want the lock of the living wrapper", held)
	}
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("work that nobody keeps still runs")
	}
}

// TestEndedSessionIsNeverGranted: when the leader was told that nothing runs
// under a session, a grant that comes later starts nothing.
func TestEndedSessionIsNeverGranted(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	o := &oneLock{lease: time.Minute}
	k := keeper(t, socket, o)
	k.held(7) // a leader of epoch 7 has asked
	l, err := k.acquire(t.Context(), api.AcquireRequest{Lock: "x", Session: "session-2", Policy: state.Fenced})
	if err != nil || l.OK {
		t.Errorf("acquire with a token of an old epoch = %+v, %v; want it refused", l, err)
	}
}

// TestJobCommand: the start is committed before anything begins, the end with
// what the command said.
func TestJobCommand(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	o := &oneLock{lease: time.Minute, token: "1-5"}
	k := keeper(t, socket, o)
	j := config.Job{Name: "J", Command: []string{"sh", "-c", "echo $FLYMESH_ARG_BATCH_SIZE $FLYMESH_JOB; exit 0"}, Timeout: time.Minute}
	r := leader.JobStart{Job: "J", Run: "J@t", Token: "1-5", Args: map[string]string{"batch_size": "64"}}
	for range 3 {
		if err := k.startJob(context.Background(), j, r); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the end of the run", func() bool { return o.free() })
	o.mu.Lock()
	defer o.mu.Unlock()
	if got, want := fmt.Sprint(o.marks), "[begin finish failed=false 64 J]"; got != want {
		t.Errorf("marks = %s, want %s", got, want)
	}
}

// TestJobTimeout: a command that does not end is killed, and the run failed.
func TestJobTimeout(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	o := &oneLock{lease: time.Minute, token: "1-6"}
	k := keeper(t, socket, o)
	j := config.Job{Name: "J", Command: []string{"sleep", "63"}, Timeout: 300 * time.Millisecond}
	if err := k.startJob(context.Background(), j, leader.JobStart{Job: "J", Run: "J@u", Token: "1-6"}); err != nil {
		t.Fatal(err)
	}
	until(t, "the end of the run", o.free)
	if n := len(process.Marked(socket)["1-6"]); n > 0 {
		t.Errorf("%d processes outlive their run", n)
	}
}
