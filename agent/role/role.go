// Package role runs an app that is one of two programs: the primary, of which
// its service has one, or the replica. It is what `agent run --primary ...
// --replica ...` puts in the place of the app: the supervisor takes it for the
// app, signals it and passes on its exit code.
//
// The machine that is pinned as the service's primary runs the primary, and
// only while it holds the service's role lock: before the lease ends without
// renewal the primary is ended, and the replica takes its place. So without the
// mesh there is no primary anywhere after a while; replicas go on. All that is
// asked of the mesh is asked of the agent on this machine, by its socket.
//
// If a program ends by itself, so does the app, with the program's exit code. If
// this process dies, its program dies with it.
package role

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"flymesh/agent/api"
	"flymesh/agent/hold"
	"flymesh/agent/process"
	"flymesh/agent/supervise"
	"flymesh/probes/report"
	"flymesh/raftstore/state"
)

const (
	askTry       = 4 * time.Second // for one question to the agent
	acquireEvery = time.Second
	releaseWait  = 2 * time.Second // of a process that is about to end

	// At its start the app waits this long for the mesh to say which machine is
	// the primary, and the chosen one for the lock, which a life before it may
	// hold until it counts as silent. Then the replica is started.
	chosenWithin = 10 * time.Second
	heldWithin   = 25 * time.Second
)

// exitStuck is the exit code when processes of the primary cannot be killed:
// the end of the machine ends them.
const exitStuck = 70

// Options say what to run.
type Options struct {
	Primary, Replica []string      // command and arguments
	Socket           string        // of the agent
	Patience         time.Duration // from a program's SIGTERM to its SIGKILL
	Log              *slog.Logger

	askEvery time.Duration // how often the agent is asked; tests shorten it
}

// AskEvery is how often the agent is asked whose turn it is.
const AskEvery = 2 * time.Second

// Run runs the programs until one of them ends by itself or ctx, which ends
// the program that runs, and returns the exit code.
func Run(ctx context.Context, o Options) (exitCode int) {
	if o.askEvery == 0 {
		o.askEvery = AskEvery
	}
	r := &runner{
		Options: o, log: o.Log.With("component", "role"), client: api.NewSocketClient(o.Socket),
		told: make(chan struct{}, 1), news: make(chan struct{}, 1),
	}
	if err := process.Adopt(); err != nil {
		r.log.Warn("what programs leave behind may not be found", "error", err)
	}
	rctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	go process.Reap(rctx)
	go r.passSignals(rctx)
	go r.ask(rctx)
	return r.run(ctx)
}

// runner is the state of one Run.
type runner struct {
	Options
	log    *slog.Logger
	client *api.Client

	role    atomic.Uint32 // report.AppRole: what runs
	told    chan struct{} // role has changed
	answer  atomic.Pointer[api.RoleAnswer]
	news    chan struct{} // answer has changed
	program atomic.Pointer[process.Command]
}

func (r *runner) run(ctx context.Context) int {
	r.set(report.Switching)
	h := r.first(ctx)
	for {
		var replica *process.Command
		if h == nil {
			if ctx.Err() != nil {
				return 0
			}
			c, err := process.Start(r.command(r.Replica, "replica"), process.Options{Alone: true})
			if err != nil {
				return r.cannotStart(err)
			}
			r.began(c, report.Replica)
			if h = r.untilHeld(ctx, c); h == nil { // it has ended
				return c.Code()
			}
			replica = c
		}
		code, again := r.primary(ctx, h, replica)
		if !again {
			return code
		}
		h = nil
	}
}

// set says what runs now.
func (r *runner) set(role report.AppRole) {
	r.role.Store(uint32(role))
	notify(r.told)
}

func (r *runner) began(c *process.Command, role report.AppRole) {
	r.log.Info("started", "role", role.String(), "pid", c.PID())
	r.program.Store(c)
	r.set(role)
}

// notify leaves word for one who looks later.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// chosen says whether this machine is the primary; known false: nobody has said.
func (r *runner) chosen() (yes, known bool) {
	a := r.answer.Load()
	if a == nil || a.Primary.Machine == "" {
		return false, false
	}
	return a.Primary.Machine == a.Self, true
}

// ask tells the agent what runs and asks whose turn it is, until ctx ends. What
// was answered last holds until there is another answer.
func (r *runner) ask(ctx context.Context) {
	t := time.NewTicker(r.askEvery)
	defer t.Stop()
	complained := ""
	for {
		try, cancel := context.WithTimeout(ctx, askTry)
		a, err := r.client.Role(try, api.RoleRequest{Role: report.AppRole(r.role.Load())})
		cancel()
		var re *api.ResponseError
		switch {
		case err == nil:
			r.answer.Store(&a)
			notify(r.news)
		case errors.As(err, &re) && re.Code == api.CodeBadRequest && re.Error() != complained:
			complained = re.Error()
			r.log.Error("the mesh chooses no primary", "error", complained)
		}
		select {
		case <-ctx.Done():
			return
		case <-r.told:
		case <-t.C:
		}
	}
}

// first waits at the start for the word that this machine is the primary, and
// for the lock: nil if it is not, or not soon.
func (r *runner) first(ctx context.Context) *hold.Hold {
	q, began := request(), time.Now()
	for {
		yes, known := r.chosen()
		switch waited := time.Since(began); {
		case known && !yes, !known && waited > chosenWithin, waited > heldWithin, ctx.Err() != nil:
			return nil
		case yes:
			if h := r.try(ctx, &q); h != nil {
				return h
			}
		}
		r.pause(ctx)
	}
}

// acquire asks for the lock, whenever this machine is the chosen one, until it
// is held or ctx ends: then nil.
func (r *runner) acquire(ctx context.Context) *hold.Hold {
	for q := request(); ctx.Err() == nil; r.pause(ctx) {
		if yes, _ := r.chosen(); yes {
			if h := r.try(ctx, &q); h != nil {
				return h
			}
		}
	}
	return nil
}

// request is for one hold, however often it is asked for.
func request() api.AcquireRequest {
	return api.AcquireRequest{Session: rand.Text(), Policy: state.Fenced, PID: os.Getpid(), Reason: "runs the primary"}
}

func (r *runner) try(ctx context.Context, q *api.AcquireRequest) *hold.Hold {
	q.Lock = r.answer.Load().Lock
	h, why, err := hold.Acquire(ctx, r.client, *q)
	if err == nil && h == nil {
		r.log.Debug("the role's lock is not free", "lock", q.Lock, "reason", why)
	}
	return h
}

func (r *runner) pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-r.news:
	case <-time.After(acquireEvery):
	}
}

// untilHeld returns the lock once this machine holds it, while the replica
// runs on; nil when the replica has ended.
func (r *runner) untilHeld(ctx context.Context, replica *process.Command) *hold.Hold {
	actx, cancel := context.WithCancel(ctx)
	defer cancel()
	held := make(chan *hold.Hold, 1)
	go func() { held <- r.acquire(actx) }()
	select {
	case <-replica.Ended():
	case <-ctx.Done():
		r.set(report.Switching)
		replica.Signal(syscall.SIGTERM)
		<-replica.Ended() // the supervisor knows how long that may take
	case h := <-held:
		if h != nil {
			return h
		}
		<-replica.Ended()
	}
	return nil // a lock that is granted meanwhile is given back when this process has ended
}

// primary ends the replica, if there is one, and runs the primary until it
// ends, the lock is lost or the primary is to run elsewhere. again means that
// the replica's turn has come.
func (r *runner) primary(ctx context.Context, h *hold.Hold, replica *process.Command) (code int, again bool) {
	r.set(report.Switching)
	pctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended, began := make(chan struct{}), false
	go func() {
		defer close(ended)
		r.end(replica)
	}()
	go r.watch(pctx, cancel)
	code, err := h.Run(pctx, hold.Work{
		Command: r.command(r.Primary, "primary"), Ready: ended, Patience: r.Patience,
		Began: func(c *process.Command) { began = true; r.began(c, report.Primary) },
		Say:   func(text string) { r.log.Warn(text) },
	})
	elsewhere := pctx.Err() != nil && ctx.Err() == nil
	r.set(report.Switching)
	<-ended
	switch {
	case errors.Is(err, hold.ErrLeft):
		r.log.Error("the primary cannot be ended: the machine has to", "error", err)
		return exitStuck, false
	case ctx.Err() != nil || !elsewhere && !errors.Is(err, hold.ErrLost):
		bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseWait)
		defer cancel()
		h.Release(bye)
		switch {
		case err != nil && !errors.Is(err, hold.ErrLost):
			code = r.cannotStart(err)
		case !began && replica != nil:
			code = replica.Code()
		}
		return code, false
	case elsewhere:
		r.log.Info("the primary has ended here, to run elsewhere", "exit", code)
	default:
		r.log.Warn("the primary was ended", "error", err)
	}
	go h.Release(context.WithoutCancel(ctx)) // nobody may listen for a while
	return 0, true
}

// watch cancels when another machine is to run the primary.
func (r *runner) watch(ctx context.Context, cancel context.CancelFunc) {
	for {
		if yes, known := r.chosen(); known && !yes {
			r.log.Info("another machine is to run the primary", "machine", r.answer.Load().Primary.Machine)
			r.set(report.Switching)
			cancel()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-r.news:
		}
	}
}

// end ends a program: in its own time, if that is not too long.
func (r *runner) end(c *process.Command) {
	if c == nil {
		return
	}
	c.Signal(syscall.SIGTERM)
	select {
	case <-c.Ended():
	case <-time.After(r.Patience):
		r.log.Warn("program did not end in time, killing it", "pid", c.PID(), "after", r.Patience.String())
	}
	for !c.Kill() {
		r.log.Error("processes of a program do not end", "pid", c.PID())
	}
}

func (r *runner) command(argv []string, role string) *exec.Cmd {
	c := exec.Command(argv[0], argv[1:]...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.Env = append(os.Environ(), api.RoleEnv+"="+role)
	return c
}

// passSignals passes on what is not for this process.
func (r *runner) passSignals(ctx context.Context) {
	all := make(chan os.Signal, 16)
	for _, sig := range supervise.PassedOn() {
		if !signal.Ignored(sig) {
			signal.Notify(all, sig)
		}
	}
	defer signal.Stop(all)
	for {
		select {
		case <-ctx.Done():
			return
		case sig := <-all:
			if c := r.program.Load(); c != nil {
				c.Signal(sig)
			}
		}
	}
}

// cannotStart is the exit code of a program that does not start, as shells
// have it.
func (r *runner) cannotStart(err error) int {
	r.log.Error("program cannot start", "error", err)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
		return supervise.ExitNotFound
	}
	return supervise.ExitNotExecutable
}
