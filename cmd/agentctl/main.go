// Command agentctl looks at a mesh and steers it, from any of its machines: it
// asks the agent beside it over a unix socket, and the agent asks the leader.
//
// Exit codes: 0 done; 1 it did not work, and one line says why; 2 wrong usage;
// 3 nobody leads the mesh. `agentctl lock` has its command's, or 75 if the lock
// was not obtained, or 70 if it was lost.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"flymesh/agent/api"
	"flymesh/agent/identity"
	"flymesh/cmd/agentctl/bench"
	"flymesh/cmd/agentctl/demo"
	"flymesh/cmd/agentctl/demoapp"
	"flymesh/cmd/agentctl/emulator"
	"flymesh/cmd/agentctl/simulate"
)

// version is set at build time.
var version = "dev"

// The exit codes.
const (
	exitOK       = 0
	exitFailure  = 1
	exitUsage    = 2
	exitNoLeader = 3
)

// cli is the command line.
type cli struct {
	Socket  string           `env:"FLYMESH_SOCKET" default:"/run/flymesh/agent.sock" placeholder:"PATH" help:"unix socket of the agent to ask (${env})"`
	Version kong.VersionFlag `help:"print the version and end"`

	Status  statusCmd  `cmd:"" help:"show the whole mesh"`
	Why     whyCmd     `cmd:"" help:"show why a service is scaled or not"`
	Events  eventsCmd  `cmd:"" help:"show what happened"`
	Scale   scaleCmd   `cmd:"" help:"ask for a size: +N, -N or N machines; bypasses the cooldown, never the cap"`
	Pause   pauseCmd   `cmd:"" help:"stop scaling a service for a while"`
	Resume  resumeCmd  `cmd:"" help:"end a pause"`
	Raft    raftCmd    `cmd:"" help:"show and steer the agreement between the voters"`
	History historyCmd `cmd:"" help:"show what a service did in the last day, with the scaling steps"`
	Alerts  alertsCmd  `cmd:"" help:"show what people are told, or keep a rule quiet"`
	lockCommands
	Redis  redisCmd  `cmd:"" help:"show what fills a Redis, trim it, make its candidate the primary"`
	Secret secretCmd `cmd:"" help:"make secrets"`

	Demo     demoCmd     `cmd:"" help:"show a whole mesh at work on this computer"`
	Emulator emulatorCmd `cmd:"" help:"run the Machines API with real processes as machines"`
	Simulate simulateCmd `cmd:"" help:"replay a history on the policy of a mesh.toml"`
	Bench    benchCmd    `cmd:"" help:"measure on this computer what an agent costs and how fast the mesh is"`
	DemoApp  demoAppCmd  `cmd:"" name:"demo-app" hidden:"" help:"run one of the demo's apps"`
}

// session is what commands need of the world.
type session struct {
	ctx    context.Context
	client *api.Client
	socket string
	out    io.Writer
	err    io.Writer
	clear  bool // out is a terminal that can be cleared
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// exited ends the parser from within, where it wants to end the process.
type exited int

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (code int) {
	defer func() {
		if r := recover(); r != nil {
			e, ok := r.(exited)
			if !ok {
				panic(r)
			}
			code = int(e)
		}
	}()
	var c cli
	parser, err := kong.New(&c, kong.Name("agentctl"), kong.Writers(stdout, stderr),
		kong.Description("Looks at a flymesh and steers it, from any of its machines."),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.Exit(func(code int) { panic(exited(code)) }), kong.Vars{"version": version})
	if err != nil {
		return fail(stderr, err)
	}
	kctx, err := parser.Parse(negatives(args))
	if err != nil {
		fmt.Fprintf(stderr, "agentctl: %s; see %s --help\n", oneLine(err), commandOf(err))
		return exitUsage
	}
	s := &session{
		ctx: ctx, client: api.NewSocketClient(c.Socket), socket: c.Socket, out: stdout, err: stderr, clear: isTerminal(stdout),
	}
	if err := kctx.Run(s); err != nil {
		return fail(stderr, s.explain(err))
	}
	return exitOK
}

// commandOf names the command that a parse error is about.
func commandOf(err error) string {
	var pe *kong.ParseError
	if errors.As(err, &pe) && pe.Context != nil && pe.Context.Selected() != nil {
		return pe.Context.Selected().FullPath()
	}
	return "agentctl"
}

// usageError is a mistake on the command line that the parser does not see.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usage(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

func fail(stderr io.Writer, err error) int {
	var x *exitError
	if errors.As(err, &x) {
		if x.text != "" {
			fmt.Fprintf(stderr, "agentctl: %s\n", x.text)
		}
		return x.code
	}
	fmt.Fprintf(stderr, "agentctl: %s\n", oneLine(err))
	var u *usageError
	switch {
	case errors.As(err, &u):
		return exitUsage
	case errors.Is(err, api.ErrNoLeader):
		return exitNoLeader
	}
	return exitFailure
}

// explain says in words what it means that the agent cannot be asked.
func (s *session) explain(err error) error {
	const or = "--socket or FLYMESH_SOCKET names another"
	var dial *net.OpError // a file that is not there is no agent that is not there
	asked := errors.As(err, &dial)
	switch {
	case errors.Is(err, context.Canceled) && s.ctx.Err() != nil:
		return errors.New("interrupted")
	case asked && errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("no agent runs here: there is no socket %s; %s", s.socket, or)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no agent runs here: nobody answers at socket %s; %s", s.socket, or)
	case asked && errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("socket %s may not be used by this user: it is the agent's own user's and root's; %s", s.socket, or)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the agent at socket %s does not answer in time", s.socket)
	}
	return err
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

var negative = regexp.MustCompile(`^-[0-9]`)

// negatives hands the -1 of `scale SERVICE -1` to a hidden flag: the parser
// takes everything that begins with a dash for a flag.
func negatives(args []string) []string {
	if !slices.Contains(args, "scale") {
		return args
	}
	out := slices.Clone(args)
	for i, a := range out {
		if negative.MatchString(a) && i > 0 && !strings.HasPrefix(out[i-1], "--") {
			out[i] = "--fewer=" + a
		}
	}
	return out
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	fi, err := f.Stat()
	return err == nil && fi.Mode()&fs.ModeCharDevice != 0
}

type secretCmd struct {
	New  secretNewCmd  `cmd:"" help:"print a new mesh secret for FLYMESH_SECRET"`
	Page secretPageCmd `cmd:"" help:"print the token that opens the page from off the machine"`
}

type secretNewCmd struct{}

// Run prints a secret; it asks no agent.
func (*secretNewCmd) Run(s *session) error {
	_, err := fmt.Fprintln(s.out, identity.NewSecret())
	return err
}

type secretPageCmd struct {
	Mesh string `required:"" placeholder:"NAME" help:"name of the mesh, as in mesh.toml"`
}

// Run prints the page's token; it asks no agent.
func (c *secretPageCmd) Run(s *session) error {
	secret, err := identity.ParseSecret(os.Getenv("FLYMESH_SECRET"))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(s.out, secret.PageToken(c.Mesh))
	return err
}

type demoCmd struct{ demo.Options }

// Run shows a whole mesh at work.
func (c *demoCmd) Run(s *session) error {
	dial := func(socket string) demo.Mesh { return api.NewSocketClient(socket) }
	return demo.Run(s.ctx, c.Options, dial, s.out, s.err)
}

type emulatorCmd struct{ emulator.Options }

// Run runs the emulator until interrupted.
func (c *emulatorCmd) Run(s *session) error { return emulator.Run(s.ctx, c.Options, s.out, s.err) }

type simulateCmd struct{ simulate.Options }

// Run replays a trace; it asks no agent.
func (c *simulateCmd) Run(s *session) error { return simulate.Run(c.Options, os.Stdin, s.out) }

type demoAppCmd struct{ demoapp.Options }

// Run runs one app of the demo until interrupted.
func (c *demoAppCmd) Run(s *session) error {
	return demoapp.Run(s.ctx, c.Options, slog.New(slog.NewTextHandler(s.err, nil)))
}

type benchCmd struct {
	All      benchAllCmd      `cmd:"" default:"withargs" help:"an idle mesh, then a few changes of its leader (4 minutes)"`
	Idle     benchIdleCmd     `cmd:"" help:"memory, CPU and traffic of an idle mesh"`
	Failover benchFailoverCmd `cmd:"" help:"time without a leader, hand-over, commits, recovery"`
}

type benchAllCmd struct{ bench.AllOptions }

// Run measures everything in short.
func (c *benchAllCmd) Run(s *session) error {
	return bench.RunAll(s.ctx, c.AllOptions, s.out, s.err)
}

type benchIdleCmd struct{ bench.IdleOptions }

// Run measures an idle mesh.
func (c *benchIdleCmd) Run(s *session) error {
	return bench.RunIdle(s.ctx, c.IdleOptions, s.out, s.err)
}

type benchFailoverCmd struct{ bench.FailoverOptions }

// Run measures changes of the leader.
func (c *benchFailoverCmd) Run(s *session) error {
	return bench.RunFailover(s.ctx, c.FailoverOptions, s.out, s.err)
}
