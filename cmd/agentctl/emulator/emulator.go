// Package emulator is `agentctl emulator`: the Machines API emulator with the
// baseline machines of a mesh.toml on it, each a real process: an agent that
// supervises a stand-in app. The demo starts one in its own process.
//
// An Emulator owns every process, port and file that it makes; Close ends and
// removes them. All methods may be called from any goroutine.
package emulator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	fly "github.com/superfly/fly-go"

	"flymesh/agent/config"
	"flymesh/agent/identity"
	"flymesh/leader/flyapi/flytest"
)

// Options is the command line of the emulator.
type Options struct {
	Agent  string `required:"" type:"path" help:"the agent binary"`
	Config string `required:"" type:"path" help:"the mesh.toml whose baseline machines are started"`
	Listen string `default:"127.0.0.1:4280" help:"address of the Machines API; loopback, since its control part asks no token"`
	State  string `type:"path" help:"directory for root filesystems, logs and the secret, kept at the end (default: a temporary one, removed)"`
	Seed   uint64 `default:"0" help:"seed of machine IDs and names (0: unpredictable); two emulators of one seed on one computer would end each other's machines"`

	NoCgroups bool `help:"do not limit machines by cgroup quotas: CPU is accounted by process tree, and the apps hold themselves back"`

	// Allowance is how many cores each machine may use; 0: what fits this
	// computer when every service is at its cap.
	Allowance float64 `kong:"-"`
	// Checks is how often the proxies ask machines for their health; 0: four
	// times a second, so that a demo need not wait.
	Checks time.Duration `kong:"-"`
	// Exec, if given, changes the command of a service's machines.
	Exec func(service string, argv []string) []string `kong:"-"`
}

// Emulator is a running fleet of baseline machines with its API.
type Emulator struct {
	o      Options
	cfg    *config.Config
	server *flytest.Server
	began  time.Time
	dir    string // state
	remove bool   // dir is ours to remove
	sizes  sizes
	routes map[string]*flytest.Route // by service
	tokens map[string]string         // by app
}

// Machine is one machine and how to reach its agent and app.
type Machine struct {
	flytest.MachineInfo
	Service string // in mesh.toml
	Kind    string // of its app
	Addr    string // host:port of its app
}

// appPort is where the app of every machine listens, on the machine's own address.
const appPort = 8080

// Start starts the API, then the baseline machines of every service, and
// returns while they boot. The caller must Close.
func Start(ctx context.Context, o Options, log *slog.Logger) (*Emulator, error) {
	e := &Emulator{o: o, began: time.Now(), routes: map[string]*flytest.Route{}}
	if err := e.start(ctx, log); err != nil {
		return nil, errors.Join(fmt.Errorf("start emulator: %w", err), e.Close())
	}
	return e, nil
}

func (e *Emulator) start(ctx context.Context, log *slog.Logger) (err error) {
	if e.cfg, err = config.Load(e.o.Config); err != nil {
		return err
	}
	if e.dir = e.o.State; e.dir == "" {
		e.dir, err = os.MkdirTemp("", "flymesh-emulator-")
		e.remove = true
	} else {
		err = os.MkdirAll(e.dir, 0o700)
	}
	if err != nil {
		return err
	}
	e.sizes = sizesOf(e.cfg)
	secrets, tokens, err := e.secrets()
	if err != nil {
		return err
	}
	launcher, err := flytest.NewProcesses(flytest.ProcessOptions{Dir: e.dir, Log: log, NoCgroups: e.o.NoCgroups, Allowance: func(b flytest.Boot) float64 {
		if e.o.Allowance > 0 {
			return e.o.Allowance
		}
		s, _ := e.cfg.ServiceOf(b.App, b.Group)
		return e.sizes.cores[s.Name]
	}})
	if err != nil {
		return err
	}
	e.tokens = tokens
	e.server, err = flytest.New(flytest.Options{
		Launcher: launcher, Tokens: tokens, Secrets: secrets, Seed: e.o.Seed, Log: log,
		Proxy: flytest.Checks{Port: e.cfg.Mesh.HealthPort, Every: e.o.Checks},
	})
	if err != nil {
		return errors.Join(err, launcher.Close())
	}
	if err := e.server.Listen(e.o.Listen); err != nil {
		return err
	}
	for _, s := range e.cfg.Services {
		if err := e.seed(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// seed makes the baseline machines of a service and the way in for its clients.
func (e *Emulator) seed(ctx context.Context, s config.Service) error {
	c, err := e.machine(s)
	if err != nil {
		return err
	}
	for range s.Policy.Baseline {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := e.server.Seed(flytest.Spec{App: s.App, Group: s.Group, Config: c, Start: true}); err != nil {
			return err
		}
	}
	r, err := e.server.Route(s.App, "127.0.0.1:0", appPort)
	if err != nil {
		return fmt.Errorf("open proxy of %s: %w", s.Name, err)
	}
	e.routes[s.Name] = r
	return nil
}

// machine is the config of a service's machines, as a deploy would have made it.
func (e *Emulator) machine(s config.Service) (fly.MachineConfig, error) {
	self, err := os.Executable()
	if err != nil {
		return fly.MachineConfig{}, fmt.Errorf("find this program: %w", err)
	}
	agent, err := filepath.Abs(e.o.Agent)
	if err != nil {
		return fly.MachineConfig{}, err
	}
	if _, err := os.Stat(agent); err != nil {
		return fly.MachineConfig{}, fmt.Errorf("find agent binary: %w", err)
	}
	path, err := filepath.Abs(e.o.Config)
	if err != nil {
		return fly.MachineConfig{}, err
	}
	signal := "SIGTERM"
	c := fly.MachineConfig{
		Image: "registry.fly.io/" + s.App + ":emulated",
		Init: fly.MachineInit{Exec: []string{agent, "run", "--config", path, "--",
			self, "demo-app", "--kind", appKind(s.Kind), "--listen", fmt.Sprintf("$FLY_PRIVATE_IP:%d", appPort)}},
		Restart:    &fly.MachineRestart{Policy: fly.MachineRestartPolicyOnFailure, MaxRetries: 10},
		StopConfig: &fly.StopConfig{Signal: &signal, Timeout: &fly.Duration{Duration: 15 * time.Second}},
		Guest:      e.sizes.guest(),
	}
	if e.o.Exec != nil {
		c.Init.Exec = e.o.Exec(s.Name, c.Init.Exec)
	}
	return c, nil
}

// appKind is the stand-in for a kind of service.
func appKind(kind string) string {
	if kind == config.KindApp {
		return config.KindWeb
	}
	return kind
}

// secrets returns what the machines of each app get at boot, and the token
// that opens each app. The mesh's secret is the environment's, or a fresh one
// that is written into the state directory and shown nowhere.
func (e *Emulator) secrets() (secrets map[string]map[string]string, tokens map[string]string, err error) {
	secret := os.Getenv("FLYMESH_SECRET")
	if secret == "" {
		secret = identity.NewSecret()
		if err := os.WriteFile(e.SecretFile(), []byte(secret+"\n"), 0o600); err != nil {
			return nil, nil, err
		}
	} else if _, err := identity.ParseSecret(secret); err != nil {
		return nil, nil, err
	}
	tokens = map[string]string{}
	for _, app := range e.cfg.Apps() {
		tokens[app] = identity.NewSecret()
	}
	secrets = map[string]map[string]string{}
	for _, s := range e.cfg.Services {
		env := map[string]string{"FLYMESH_SECRET": secret}
		for _, key := range []string{config.PagerDutyKeyEnv, config.WebhookKeyEnv} {
			if v := os.Getenv(key); v != "" {
				env[key] = v
			}
		}
		for _, app := range e.cfg.TokenApps() {
			if s.Vote {
				env[identity.TokenEnv(app)] = tokens[app]
			}
		}
		secrets[s.App] = env
	}
	return secrets, tokens, nil
}

// SecretFile is where a secret made by Start is.
func (e *Emulator) SecretFile() string { return filepath.Join(e.dir, "secret") }

// URL is the Machines API's.
func (e *Emulator) URL() string { return e.server.URL() }

// State is the directory of root filesystems and logs.
func (e *Emulator) State() string { return e.dir }

// Began is when Start was called.
func (e *Emulator) Began() time.Time { return e.began }

// Accounting says how the CPU of machines is limited and measured.
func (e *Emulator) Accounting() string { return e.server.Accounting() }

// Usage is what each app's machines have cost.
func (e *Emulator) Usage() map[string]flytest.Usage { return e.server.Usage() }

// Requests is the audit log of the API.
func (e *Emulator) Requests() []flytest.Request { return e.server.Requests() }

// App is the Fly app of a service.
func (e *Emulator) App(service string) string {
	s, _ := e.cfg.Service(service)
	return s.App
}

// Proxy is the address at which clients reach a service.
func (e *Emulator) Proxy(service string) string {
	if r := e.routes[service]; r != nil {
		return r.URL()
	}
	return ""
}

// Cores is the part of a core that a machine of the service may use.
func (e *Emulator) Cores(service string) float64 { return e.sizes.cores[service] }

// Machines lists all machines, by app and age.
func (e *Emulator) Machines() []Machine {
	var list []Machine
	for _, i := range e.server.Machines() {
		s, _ := e.cfg.ServiceOf(i.App, i.Group)
		list = append(list, Machine{MachineInfo: i, Service: s.Name, Kind: appKind(s.Kind), Addr: net.JoinHostPort(i.PrivateIP, strconv.Itoa(appPort))})
	}
	return list
}

// Token opens the API of a service's app.
func (e *Emulator) Token(service string) string { return e.tokens[e.App(service)] }

// Machine finds a machine by its ID.
func (e *Emulator) Machine(id string) (Machine, bool) {
	for _, m := range e.Machines() {
		if m.ID == id {
			return m, true
		}
	}
	return Machine{}, false
}

// Close ends every machine and removes a state directory that Start made.
func (e *Emulator) Close() error {
	var err error
	if e.server != nil {
		err = e.server.Close()
	}
	if e.remove && e.dir != "" {
		err = errors.Join(err, os.RemoveAll(e.dir))
	}
	return err
}
