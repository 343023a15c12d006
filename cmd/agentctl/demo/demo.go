// Package demo is `agentctl demo`: a whole mesh on one machine, shown in less
// than two minutes. Real agents run as processes beside real apps, an emulator
// of the Machines API starts and stops them, and real load makes the mesh
// scale, lose its leader, and come back to rest.
//
// Run owns everything that it starts and ends it before it returns. It waits
// for things to be so, each with a deadline, never for time to pass.
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"flymesh/agent/config"
	"flymesh/cmd/agentctl/demoapp"
	"flymesh/cmd/agentctl/emulator"
)

// Options is the command line of the demo.
type Options struct {
	JSON  bool   `help:"print the summary as JSON and nothing else on standard output"`
	Keep  bool   `help:"leave everything running after the summary, until Ctrl-C"`
	Seed  uint64 `default:"1" help:"seed of the jitter of the load"`
	Agent string `type:"path" help:"the agent binary (default: the file agent beside this program)"`
	State string `type:"path" help:"directory for logs and files, kept at the end (default: a temporary one, removed)"`

	NoCgroups bool `help:"do not limit machines by cgroup quotas, as where none can be made"`
}

// ErrFailed says that something of what the demo promises did not happen. The
// summary has said which.
var ErrFailed = errors.New("the demo did not show all that it promises")

// limit bounds the whole demo.
const limit = 2 * time.Minute

// Run shows the demo. Progress goes to stderr with JSON and else to stdout.
// dial makes the client of an agent's socket.
func Run(ctx context.Context, o Options, dial func(socket string) Mesh, stdout, stderr io.Writer) (err error) {
	began := time.Now()
	if o.Agent, err = agentBinary(o.Agent); err != nil {
		return err
	}
	progress := stdout
	if o.JSON {
		progress = stderr
	}
	out := &console{w: progress, began: began}

	dir := o.State
	if dir == "" {
		if dir, err = os.MkdirTemp("", "flymesh-demo-"); err != nil {
			return fmt.Errorf("make state directory: %w", err)
		}
		defer os.RemoveAll(dir)
	} else if err = os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	path, err := writeConfig(dir)
	if err != nil {
		return err
	}
	introduce(out, path)
	em, err := emulator.Start(ctx, emulator.Options{Agent: o.Agent, Config: path, Listen: "127.0.0.1:0", State: dir, NoCgroups: o.NoCgroups},
		slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		return err
	}
	defer func() {
		if closed := em.Close(); closed != nil {
			err = errors.Join(err, fmt.Errorf("end demo: %w", closed))
		}
	}()
	out.say("emulator of the Machines API at %s; CPU of machines: %s, %.0f %% of a core each where load is",
		em.URL(), em.Accounting(), 100*em.Cores("n8n"))

	s := newStory(o, em, dial, out)
	stop := s.start(ctx)
	defer stop()
	told, cancel := context.WithDeadline(ctx, began.Add(limit))
	defer cancel()
	failed := s.tell(told)
	if ctx.Err() != nil {
		out.say("interrupted: ending everything")
		return ctx.Err()
	}
	sum := s.summary(failed, began)
	if o.JSON {
		enc := json.NewEncoder(stdout)
		enc.SetEscapeHTML(false) // reasons hold > and <
		err = enc.Encode(sum)
	} else {
		sum.print(out)
	}
	if err == nil && !sum.OK {
		err = ErrFailed
	}
	if o.Keep {
		s.keep(ctx)
	}
	return err
}

// agentBinary finds the agent.
func agentBinary(path string) (string, error) {
	if path == "" {
		self, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("find agent binary: %w", err)
		}
		path = filepath.Join(filepath.Dir(self), "agent")
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("find agent binary (--agent): %w", err)
	}
	return filepath.Abs(path)
}

func writeConfig(dir string) (string, error) {
	text, err := fastPace.config()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "mesh.toml")
	if err := os.WriteFile(path, text, 0o644); err != nil {
		return "", fmt.Errorf("write mesh.toml: %w", err)
	}
	if _, err := config.Load(path); err != nil {
		return "", err
	}
	return path, nil
}

func introduce(out *console, path string) {
	out.text("flymesh demo: four apps (n8n, embeddings, Redis, a web site) of one machine each, an agent beside each app.")
	out.text("Load makes n8n and embeddings need more; the mesh adds machines up to three, and takes them back afterwards.")
	out.text("Its rules are the real ones, in fast motion (%s):", path)
	for _, d := range fastPace.shortened() {
		out.text("    %-42s %-16s here %s", d.What, d.Real, d.Demo)
	}
	out.text("Redis is %s.", demoapp.RedisServer())
	if n := runtime.NumCPU(); n < 2 {
		out.text("This computer has %d core; the demo is made for 2 and may be too slow here.", n)
	}
	if busy := load(); busy > float64(runtime.NumCPU()) {
		out.text("This computer is busy with other work (load average %.0f on %d cores): what follows may be slower, or fail.", busy, runtime.NumCPU())
	}
	out.text("")
}

// load is the number of processes that ran or wanted to over the last minute;
// 0 where the system does not say.
func load() float64 {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(b), " ")
	x, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0
	}
	return x
}

// start begins what runs beside the story: the followed events, the loads and
// a line of figures now and then. The function that it returns ends them.
func (s *story) start(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { s.follow.run(ctx) })
	wg.Go(func() { s.figures(ctx) })
	for _, l := range s.loads {
		wg.Go(func() { _ = l.load.Run(ctx) }) // ends with ctx alone
	}
	return func() {
		cancel()
		wg.Wait()
	}
}

// keep leaves everything running with little load until ctx ends.
func (s *story) keep(ctx context.Context) {
	s.out.text("\nEverything is left running, with a trickle of load. Look at it from another terminal:")
	self, err := os.Executable()
	if err != nil {
		self = "agentctl"
	}
	for _, m := range s.mesh.running() {
		s.out.text("    %s status --socket %s    # %s", self, m.Socket, s.follow.name(m.ID))
	}
	s.out.text("    curl %s/_emulator/machines    # what the emulator knows; also requests, usage, faults", s.em.URL())
	for _, l := range s.loads {
		s.out.text("    %s: %s", l.service, s.em.Proxy(l.service))
	}
	s.out.text("Logs are in %s. Ctrl-C ends everything.", s.em.State())
	<-ctx.Done()
	s.out.say("ending everything")
}
