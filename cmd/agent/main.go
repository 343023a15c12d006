// Command agent is the sidecar: the entrypoint of an image that runs the app
// and keeps its machine in the mesh.
//
//	agent run [-config FILE] -- CMD...   run the app and the mesh half beside it
//	agent run --primary CMD --replica CMD   the same, with an app of two roles
//	agent check [-config FILE] [-env]    say everything that is wrong with mesh.toml
//	agent version
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"flymesh/agent"
	"flymesh/agent/config"
	"flymesh/agent/identity"
	"flymesh/agent/supervise"
)

// version is set at build time.
var version = "dev"

const defaultConfig = "/etc/flymesh/mesh.toml"

const usage = `usage: agent run [-config FILE] [-kill-timeout 30s] [-dev] -- CMD...
       agent run [...] --primary "CMD..." --replica "CMD..."
       agent check [-config FILE] [-env]
       agent version

run    starts CMD and, beside it, the mesh half. CMD's output and exit code are untouched.
check  prints every problem of the file (with -env also of the environment); exit 2 if there is one.

--primary, --replica  instead of CMD: the pinned primary of the service runs the one, all others run the other.
                      Quotes are as in a shell, nothing is expanded. The program finds its role as FLYMESH_ROLE.
-config defaults to $FLYMESH_CONFIG, then ` + defaultConfig + `.
-dev    on loopback only: run without FLYMESH_SECRET.
-kill-timeout 30s  as long as kill_timeout in fly.toml, or a little less: the time for a drain and the app's end (default 5s).
`

// Exit codes besides the app's own.
const (
	exitFailure = 1
	exitUsage   = 2
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return exitUsage
	}
	switch args[0] {
	case "run":
		return runApp(args[1:])
	case "mesh": // the mesh half; started by run
		return runMesh(args[1:])
	case "roles": // the app of two roles; started by run
		return runRoles(args[1:])
	case "check":
		return check(args[1:])
	case "version":
		fmt.Println(version)
		return 0
	case "help", "-h", "-help", "--help":
		fmt.Print(usage)
		return 0
	}
	fmt.Fprintf(os.Stderr, "agent: %q is not a command; use run, check or version\n", args[0])
	return exitUsage
}

type options struct {
	config string
	dev    bool
	env    bool

	primary, replica string // commands

	killTimeout time.Duration
}

func parse(name string, args []string) (options, []string, error) {
	o := options{config: defaultConfig}
	if v := os.Getenv("FLYMESH_CONFIG"); v != "" {
		o.config = v
	}
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&o.config, "config", o.config, "")
	f.BoolVar(&o.dev, "dev", false, "")
	f.BoolVar(&o.env, "env", false, "")
	f.DurationVar(&o.killTimeout, "kill-timeout", 0, "")
	f.StringVar(&o.primary, "primary", "", "")
	f.StringVar(&o.replica, "replica", "", "")
	err := f.Parse(args)
	return o, f.Args(), err
}

func check(args []string) int {
	o, rest, err := parse("check", args)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%q is one argument too many", rest[0])
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "agent check: %v\n", err)
		return exitUsage
	}
	// On a machine of the mesh the environment belongs to what is checked.
	if o.env || os.Getenv("FLY_MACHINE_ID") != "" {
		return config.Check(os.Stdout, o.config, os.Getenv)
	}
	code := config.Check(os.Stdout, o.config, nil)
	if cfg, err := config.Load(o.config); err == nil {
		for _, p := range config.CheckEnv(cfg, os.Getenv) {
			fmt.Printf("note, not counted off a machine without -env: %s\n", p)
		}
	}
	return code
}

// runApp is the small process that outlives everything: it loads nothing but
// what it needs to start two children.
func runApp(args []string) int {
	exe, err := os.Executable()
	if err != nil {
		fmt.Fprintf(os.Stderr, "agent run: find own binary: %v\n", err)
		return exitFailure
	}
	special := ""
	if m, err := identity.FromEnv(os.Getenv); err == nil {
		special = m.Special
	}
	o, app, err := parse("run", args)
	if err == nil {
		app, err = appOf(o, app, special, exe)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "agent run: %v\n", err)
		return exitUsage
	}
	if special != "" {
		return execApp(app, special)
	}
	mesh := []string{exe, "mesh", "-config", o.config}
	if o.dev {
		mesh = append(mesh, "-dev")
	}
	defer time.AfterFunc(settled, settle).Stop()
	return supervise.Run(context.Background(), supervise.Options{App: app, Mesh: mesh, KillTimeout: o.killTimeout, Log: logger(os.Stderr)})
}

// execApp becomes the app: a release command, a console or a test machine does
// its work and does not join the mesh.
func execApp(app []string, why string) int {
	path, err := exec.LookPath(app[0])
	if err == nil {
		fmt.Fprintf(os.Stderr, "agent run: %s: the app runs alone, this machine does not join the mesh\n", why)
		err = syscall.Exec(path, app, os.Environ())
	}
	fmt.Fprintf(os.Stderr, "agent run: start %q: %v\n", app[0], err)
	if errors.Is(err, exec.ErrNotFound) {
		return supervise.ExitNotFound
	}
	return supervise.ExitNotExecutable
}

// runMesh is the mesh half.
func runMesh(args []string) int {
	o, _, err := parse("mesh", args)
	if err != nil {
		fmt.Fprintf(os.Stderr, "agent mesh: %v\n", err)
		return exitUsage
	}
	log := logger(os.Stderr)
	ao, err := meshOptions(o, log)
	if err != nil {
		log.Error("the mesh half cannot start", "error", err)
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	defer time.AfterFunc(settled, settle).Stop()
	if err := agent.Run(ctx, ao); err != nil {
		log.Error("the mesh half ends", "error", err)
		return exitFailure
	}
	return 0
}

func meshOptions(o options, log *slog.Logger) (agent.Options, error) {
	cfg, err := config.Load(o.config)
	if err != nil {
		return agent.Options{}, err
	}
	m, err := identity.FromEnv(os.Getenv)
	if err != nil {
		return agent.Options{}, err
	}
	secret, err := secretFor(o, cfg, m)
	if err != nil {
		return agent.Options{}, err
	}
	if v := os.Getenv("FLYMESH_SOCKET"); v != "" {
		cfg.Mesh.Socket = v
	}
	tokens, missing := identity.Tokens(os.Getenv, cfg.TokenApps())
	if svc, ok := cfg.ServiceOf(m.App, m.Group); ok && svc.Vote && len(missing) > 0 {
		log.Warn("this machine cannot vote or lead: tokens are missing", "missing", strings.Join(missing, ", "))
	}
	if len(missing) > 0 {
		tokens = nil
	}
	child, err := supervise.Attach()
	if err != nil {
		return agent.Options{}, err
	}
	ao := agent.Options{
		Config: cfg, Machine: m, Secret: secret, Tokens: tokens, APIBase: os.Getenv("FLY_FLAPS_BASE_URL"),
		Version: version, Supervisor: child, Logger: log,
		PagerDutyKey: identity.NewToken(os.Getenv(config.PagerDutyKeyEnv)), WebhookKey: identity.NewToken(os.Getenv(config.WebhookKeyEnv)),
	}
	return ao, agent.Check(ao)
}

// secretFor reads the secret. Without one nothing starts, except on loopback
// with -dev.
func secretFor(o options, cfg *config.Config, m identity.Machine) (identity.Secret, error) {
	if v := os.Getenv("FLYMESH_SECRET"); v != "" {
		return identity.ParseSecret(v)
	}
	if ip, err := netip.ParseAddr(m.PrivateIP); o.dev && err == nil && ip.IsLoopback() {
		return identity.Dev(cfg.Mesh.Name), nil
	}
	return identity.Secret{}, errors.New("FLYMESH_SECRET is not set: make one with `agentctl secret new` and set it on every app (fly secrets set FLYMESH_SECRET=...)")
}

// logger writes text to a terminal and one JSON object a line to anything else.
// There the key flymesh tells our lines from an app's that look like them.
func logger(w *os.File) *slog.Logger {
	o := slog.HandlerOptions{}
	if os.Getenv("FLYMESH_LOG") == "debug" {
		o.Level = slog.LevelDebug
	}
	if _, err := unix.IoctlGetTermios(int(w.Fd()), unix.TCGETS); err == nil {
		return slog.New(slog.NewTextHandler(w, &o))
	}
	return slog.New(slog.NewJSONHandler(w, &o)).With("flymesh", version)
}
