package flytest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	fly "github.com/superfly/fly-go"
)

// Server is an emulated Machines API with its machines.
type Server struct {
	opts    Options
	log     *slog.Logger
	ids     *source
	fleet   *fleet
	audit   audit
	faults  faults
	limits  limiter
	deploys deploys
	proxies proxies
	issuer  issuer
	cookie  string

	mu     sync.Mutex // guards the fields below
	url    string
	http   *http.Server
	routes []*Route
	closed bool
	wg     sync.WaitGroup // listener and in-process requests
}

var _ http.Handler = (*Server)(nil)

// New returns a server without a listener: serve it with Listen, with an HTTP
// server of your own, or in process with Transport.
func New(o Options) (*Server, error) {
	o = o.withDefaults()
	s := &Server{opts: o, log: o.Log.With("component", "flytest"), ids: newSource(o.Seed)}
	s.fleet = newFleet(o.Launcher, o.Timing, s.ids, s.log)
	s.fleet.env = s.env
	s.fleet.self = func(m *machine) http.Handler { return selfAPI{s, m.id, m.app} }
	s.faults.ids = s.ids
	s.cookie = s.ids.nonce()
	for _, name := range o.Apps {
		s.fleet.addApp(name)
	}
	for name, token := range o.Tokens {
		if token == "" {
			return nil, fmt.Errorf("make emulator: token of app %q is empty", name)
		}
		s.fleet.addApp(name)
	}
	return s, nil
}

// Listen serves on a TCP address, such as 127.0.0.1:0, until Close.
func (s *Server) Listen(addr string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.http != nil {
		ln.Close()
		return errors.New("listen: the emulator is closed or listens already")
	}
	s.url = "http://" + ln.Addr().String()
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)}
	srv := s.http
	s.wg.Go(func() {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("emulator stopped serving", "error", err)
		}
	})
	return nil
}

// URL returns what FLY_FLAPS_BASE_URL has to be, or http://flytest.invalid
// where the server does not listen and Transport is used.
func (s *Server) URL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.url == "" {
		return "http://flytest.invalid"
	}
	return s.url
}

// Close stops serving, ends every machine and waits for all that it started.
func (s *Server) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	srv, routes := s.http, s.routes
	s.mu.Unlock()
	for _, r := range routes {
		r.close()
	}
	if srv != nil {
		srv.Close()
	}
	err := s.fleet.close()
	s.wg.Wait()
	return err
}

// Accounting says how the launcher limits and measures CPU: cgroup-v1,
// cgroup-v2, process-tree or none.
func (s *Server) Accounting() string { return s.opts.Launcher.Accounting() }

// env returns the environment that the platform gives a machine.
func (s *Server) env(app string, v view) map[string]string {
	env := maps.Clone(s.opts.Secrets[app])
	if env == nil {
		env = make(map[string]string)
	}
	maps.Copy(env, v.config.Env)
	memory := 256
	if g := v.config.Guest; g != nil && g.MemoryMB > 0 {
		memory = g.MemoryMB
	}
	maps.Copy(env, map[string]string{
		"FLY_APP_NAME":        app,
		"FLY_MACHINE_ID":      v.id,
		"FLY_ALLOC_ID":        v.id,
		"FLY_REGION":          v.region,
		"PRIMARY_REGION":      s.opts.Regions[0],
		"FLY_PRIVATE_IP":      v.privateIP,
		"FLY_MACHINE_VERSION": v.instanceID,
		"FLY_PROCESS_GROUP":   groupOf(v.config),
		"FLY_IMAGE_REF":       v.config.Image,
		"FLY_VM_MEMORY_MB":    strconv.Itoa(memory),
		"FLY_FLAPS_BASE_URL":  s.URL(),
	})
	return env
}

// Spec describes a machine that Seed makes.
type Spec struct {
	App    string
	Group  string // default: the config's fly_process_group, else app
	Name   string // default: made up
	Region string // default: the first
	Config fly.MachineConfig
	Start  bool // boot it; else it is stopped
}

// Seed makes a machine as a deploy would have made it before: with
// fly_platform_version and fly_process_group metadata, past its creation, and
// without a line in the audit log. A machine that is to start is starting
// when Seed returns; Await waits until it has started.
func (s *Server) Seed(spec Spec) (*fly.Machine, error) {
	var c fly.MachineConfig // a copy that shares nothing with the caller's
	if b, err := json.Marshal(spec.Config); err != nil {
		return nil, fmt.Errorf("seed machine: %w", err)
	} else if err := json.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("seed machine: %w", err)
	}
	if spec.Group != "" {
		c = *withMetadata(&c, fly.MachineConfigMetadataKeyFlyProcessGroup, spec.Group)
	}
	c = *withMetadata(&c, fly.MachineConfigMetadataKeyFlyProcessGroup, groupOf(&c))
	c = *withMetadata(&c, fly.MachineConfigMetadataKeyFlyPlatformVersion, fly.MachineFlyPlatformVersion2)
	region := spec.Region
	if region == "" {
		region = s.opts.Regions[0]
	}
	f := s.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	m, err := f.add(f.addApp(spec.App), fly.MachineStateStopped, spec.Name, region, &c)
	if err != nil {
		return nil, fmt.Errorf("seed machine: %w", err)
	}
	if spec.Start {
		if err := f.start(m); err != nil {
			return nil, fmt.Errorf("seed machine: %w", err)
		}
	}
	return m.client(), nil
}

// Await waits until the machine is in the state.
func (s *Server) Await(ctx context.Context, id, state string) error {
	last := "unknown"
	err := s.fleet.await(ctx, func() (bool, time.Time, error) {
		m := s.fleet.byID(id)
		if m == nil {
			return false, time.Time{}, notFound("machine not found")
		}
		last = m.state
		return m.state == state, time.Time{}, nil
	})
	if err != nil {
		return fmt.Errorf("await machine %s %s, which is %s: %w", id, state, last, err)
	}
	return nil
}
