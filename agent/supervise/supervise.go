// Package supervise runs the app beside the mesh half of the agent, so that
// the app behaves as if it were started directly: its own process group, the
// same stdin, stdout and stderr, the signals passed on, its exit code kept.
//
// The mesh half is a second child: it may crash, hang, be killed or never
// start, and the app does not notice. The supervisor itself does nothing but
// wait, so that it stays small and has nothing to fail at. If it is killed all
// the same, both children live on.
//
// Orphaned grandchildren go where they would go without the supervisor: to
// PID 1. Only when it is PID 1 itself does it reap them.
package supervise

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"
)

// Options say what to run. The zero value of a duration is its default.
type Options struct {
	App  []string // command and arguments of the app
	Mesh []string // of the mesh half: this binary with another subcommand
	Env  []string // of both; nil: that of this process

	// KillTimeout is the time from SIGTERM or SIGINT to the end of this
	// process; as long as Fly's kill_timeout or a little less. Default 5 s.
	KillTimeout time.Duration

	Log *slog.Logger

	beat time.Duration // cadence of the watchdog; tests shorten it
}

// Exit codes of Run for an app that could not be started, as shells have them.
const (
	ExitNotExecutable = 126
	ExitNotFound      = 127
)

const (
	killTimeout = 5 * time.Second // the default
	// meshEnd is the greatest time that the mesh half has for its end after
	// the app's; a fifth of a short KillTimeout.
	meshEnd = 2 * time.Second
	// beatEvery is the cadence of the mesh half's heartbeat and of the
	// watchdog that misses it.
	beatEvery = time.Second
	// missedBeats in a row mean that the mesh half hangs. The watchdog counts
	// its own ticks, so that a stall of the whole machine is no hang.
	missedBeats = 10
)

// Patience is how much of a KillTimeout (0: the default) the app has: from the
// signal to this process until the app is killed.
func Patience(kill time.Duration) time.Duration {
	if kill <= 0 {
		kill = killTimeout
	}
	return kill - min(meshEnd, kill/5)
}

// PassedOn are the signals that the app gets as they come. SIGTERM and SIGINT
// are passed on after the drain.
func PassedOn() []os.Signal {
	return []os.Signal{syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH}
}

// Run starts the app and the mesh half and returns the app's exit code (128+n
// for signal n) when both have ended. The end of the app ends everything; the
// end of ctx is a SIGTERM. Run must be the only user of the process's signals.
func Run(ctx context.Context, o Options) (exitCode int) {
	if o.KillTimeout <= 0 {
		o.KillTimeout = killTimeout
	}
	if o.Env == nil {
		o.Env = os.Environ()
	}
	if o.beat <= 0 {
		o.beat = beatEvery
	}
	s := &supervisor{
		Options: o,
		log:     o.Log.With("component", "supervise"),
		appEnd:  make(chan int, 1),
		events:  make(chan event),
		done:    make(chan struct{}),
	}
	defer close(s.done)
	signals := make(chan os.Signal, 16)
	notify(signals)
	defer signal.Stop(signals)

	if err := s.startApp(); err != nil {
		s.log.Error("app cannot start", "error", err)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
			return ExitNotFound
		}
		return ExitNotExecutable
	}
	if os.Getpid() == 1 {
		go reapOrphans(s.done, &s.children)
	}
	debug.FreeOSMemory() // what the start needed is not needed again
	return s.loop(ctx, signals)
}

// notify asks for the signals that are passed on. One that this process was
// started with ignored (nohup) stays ignored, for the app, too.
func notify(signals chan<- os.Signal) {
	for _, sig := range append([]os.Signal{syscall.SIGTERM, syscall.SIGINT}, PassedOn()...) {
		if !signal.Ignored(sig) {
			signal.Notify(signals, sig)
		}
	}
}

// supervisor is the state of one Run; only the loop's goroutine uses it.
type supervisor struct {
	Options
	log *slog.Logger

	children children // those that are waited for here

	app    *exec.Cmd
	appEnd chan int // the exit code, once

	mesh   *mesh         // nil: not running
	lived  bool          // a mesh half sent a heartbeat
	events chan event    // of the mesh half
	done   chan struct{} // closed when Run returns
	again  <-chan time.Time
	back   backoff

	stop     os.Signal // SIGTERM or SIGINT, once it came
	passed   bool      // stop was passed on to the app
	passAt   <-chan time.Time
	killAt   <-chan time.Time
	deadline time.Time // of the app's end
}

func (s *supervisor) loop(ctx context.Context, signals <-chan os.Signal) int {
	s.startMesh()
	watch := time.NewTicker(s.beat)
	defer watch.Stop()
	cancelled := ctx.Done()
	for {
		select {
		case code := <-s.appEnd:
			s.endMesh(code)
			return code
		case sig := <-signals:
			s.signal(sig)
		case <-cancelled:
			cancelled = nil
			s.signal(syscall.SIGTERM)
		case <-s.passAt:
			s.log.Warn("mesh half did not drain in time")
			s.passOn()
		case <-s.killAt:
			s.log.Warn("app did not end in time, killing it")
			_ = syscall.Kill(-s.app.Process.Pid, syscall.SIGKILL)
		case <-s.again:
			s.startMesh()
		case e := <-s.events:
			s.event(e)
		case <-watch.C:
			s.watch()
		}
	}
}

// signal drains first when it is told to end; the second time at the latest
// the app is told as well.
func (s *supervisor) signal(sig os.Signal) {
	if s.passed || sig != syscall.SIGTERM && sig != syscall.SIGINT {
		s.log.Debug("pass signal on", "signal", sig.String())
		_ = s.app.Process.Signal(sig) // it may have ended: then its end is on the way
		return
	}
	if s.stop != nil {
		s.passOn()
		return
	}
	s.stop, s.deadline = sig, time.Now().Add(Patience(s.KillTimeout))
	s.killAt = time.After(Patience(s.KillTimeout))
	if s.mesh == nil || !s.mesh.drain(s.KillTimeout/2) {
		s.passOn()
		return
	}
	s.log.Info("draining", "signal", sig.String(), "within", (s.KillTimeout / 2).String())
	s.passAt = time.After(s.KillTimeout / 2)
}

// passOn gives the app the signal that told this process to end.
func (s *supervisor) passOn() {
	if s.passed {
		return
	}
	s.passed, s.passAt = true, nil
	s.log.Info("stopping app", "signal", s.stop.String(), "within", time.Until(s.deadline).Round(time.Millisecond).String())
	_ = s.app.Process.Signal(s.stop)
}

// startApp starts the app in its own process group, in the foreground of the
// terminal if this process is there.
func (s *supervisor) startApp() error {
	if len(s.App) == 0 {
		return errors.New("no command")
	}
	c := exec.Command(s.App[0], s.App[1:]...)
	c.Env, c.Stdin, c.Stdout, c.Stderr = s.Env, os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Foreground: inForeground()}
	if err := s.children.start(c); err != nil {
		return err
	}
	s.app = c
	go func() {
		_ = c.Wait() // the state says more than the error
		s.appEnd <- exitCode(c.ProcessState)
	}()
	return nil
}

// exitCode is that of a shell: 128+n for an end by signal n.
func exitCode(p *os.ProcessState) int {
	if p == nil {
		return 1
	}
	if w, ok := p.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal())
	}
	return p.ExitCode()
}

// event is a line from one mesh half, or its end.
type event struct {
	from  *mesh
	line  string
	ended bool
}

func (s *supervisor) event(e event) {
	if e.from != s.mesh {
		return // of a mesh half that is gone
	}
	switch {
	case e.ended:
		s.meshEnded()
	case e.line == lineBeat:
		s.lived = true
		e.from.beat()
	case e.line == lineDrained && s.stop != nil:
		s.passOn()
	}
}

// read sends the lines of a mesh half to the loop until it ends.
func (s *supervisor) read(m *mesh) {
	lines := bufio.NewScanner(m.control)
	lines.Buffer(make([]byte, 0, 256), 1024)
	for lines.Scan() {
		select {
		case s.events <- event{from: m, line: lines.Text()}:
		case <-s.done:
			return
		}
	}
}

// watch kills a mesh half that hangs. Its end is an event like any other.
func (s *supervisor) watch() {
	if s.mesh == nil {
		return
	}
	s.mesh.missed++
	if s.mesh.missed == missedBeats {
		s.log.Warn("mesh half hangs, killing it", "pid", s.mesh.cmd.Process.Pid)
		s.mesh.kill(syscall.SIGKILL)
	}
}
