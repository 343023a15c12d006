package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"text/template"
	"time"

	"flymesh/agent/api"
	"flymesh/cmd/agentctl/emulator"
)

// meshFile has the defaults of deploy/mesh.toml and four probes on each machine.
var meshFile = template.Must(template.New("mesh.toml").Parse(`[mesh]
name = "bench"
anchor_app = "bench-voters"
profile = "{{.Profile}}"
discover = ["api"]
{{range .Services}}
[service.{{.Name}}]
kind = "n8n"
app = "bench-{{.Name}}"
vote = {{.Vote}}
baseline = {{.Count}}
max = {{.Count}}

[[service.{{.Name}}.probe]]
type = "http"
url = "http://$FLY_PRIVATE_IP:8080/healthz/readiness"

[[service.{{.Name}}.probe]]
type = "prometheus"
url = "http://$FLY_PRIVATE_IP:8080/metrics"
latency = "n8n_webhook_request_duration_seconds"
errors = 'n8n_webhook_request_duration_seconds_count{status_code=~"5.."}'
queue = "n8n_scaling_mode_queue_jobs_waiting"
in_flight = "n8n_scaling_mode_queue_jobs_active"

[[service.{{.Name}}.probe]]
type = "redis"
addr = "{{$.Redis}}"
{{end}}`))

type benchService struct {
	Name  string
	Vote  bool
	Count int
}

// plenty is how many cores a machine may use: so many that no quota is felt.
const plenty = 8

// mesh is a running mesh of real processes.
type mesh struct {
	*emulator.Emulator
	agent string
	redis string
	stop  []func() error
}

// start starts so many voters and plain agents and waits until all of them are
// ready and one leads.
func (c *course) start(ctx context.Context, profile string, voters, plain int, redis string) (_ *mesh, err error) {
	m := &mesh{agent: c.Agent, redis: redis}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	dir := c.State
	if dir == "" {
		if dir, err = os.MkdirTemp("", "flymesh-bench-"); err != nil {
			return nil, fmt.Errorf("make state directory: %w", err)
		}
		m.stop = append(m.stop, func() error { return os.RemoveAll(dir) })
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	if m.redis == "" {
		if err := m.startRedis(dir); err != nil {
			return nil, err
		}
	}
	services := []benchService{{"voters", true, voters}}
	if plain > 0 {
		services = append(services, benchService{"plain", false, plain})
	}
	var b bytes.Buffer
	if err := meshFile.Execute(&b, map[string]any{"Profile": profile, "Redis": m.redis, "Services": services}); err != nil {
		return nil, fmt.Errorf("write mesh.toml: %w", err)
	}
	path := filepath.Join(dir, "mesh.toml")
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		return nil, fmt.Errorf("write mesh.toml: %w", err)
	}
	began := time.Now()
	m.Emulator, err = emulator.Start(ctx, emulator.Options{
		Agent: c.Agent, Config: path, Listen: "127.0.0.1:0", State: dir, Allowance: plenty, Checks: 10 * time.Second,
	}, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		return nil, err
	}
	m.stop = append(m.stop, m.Emulator.Close)
	limit := 30*time.Second + time.Duration(plain)*time.Second
	if err := m.ready(ctx, limit); err != nil {
		return nil, err
	}
	c.say("%d voters and %d plain agents, each with an app, ready after %.1f s", voters, plain, time.Since(began).Seconds())
	return m, nil
}

// startRedis serves a Redis for the probes: the real one if the PATH has it.
func (m *mesh) startRedis(dir string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("find a port: %w", err)
	}
	m.redis = l.Addr().String()
	l.Close()
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	log, err := os.Create(filepath.Join(dir, "redis.log"))
	if err != nil {
		return fmt.Errorf("start redis: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(self, "demo-app", "--kind", "redis", "--listen", m.redis)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt at the terminal is for this process alone
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start redis: %w", err)
	}
	m.stop = append(m.stop, func() error {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			return fmt.Errorf("end redis: %w", err)
		}
		_ = cmd.Wait() // how it ended does not matter
		return nil
	})
	return nil
}

// Close ends everything.
func (m *mesh) Close() error {
	var errs []error
	for _, stop := range slices.Backward(m.stop) {
		errs = append(errs, stop())
	}
	return errors.Join(errs...)
}

// ready waits until every machine is ready and three of them vote.
func (m *mesh) ready(ctx context.Context, limit time.Duration) error {
	return until(ctx, limit, "the mesh to be ready", func(ctx context.Context) error {
		s, err := m.status(ctx)
		if err != nil {
			return err
		}
		return complete(s, len(m.Machines()))
	})
}

// complete says what the mesh still lacks.
func complete(s api.Status, machines int) error {
	ready := 0
	for _, x := range s.Machines {
		if x.Ready != nil && *x.Ready {
			ready++
		}
	}
	switch {
	case ready < machines:
		return fmt.Errorf("%d of %d machines are ready", ready, machines)
	case !s.Quorum.Healthy || len(s.Quorum.Voters) != 3:
		return fmt.Errorf("%d machines vote", len(s.Quorum.Voters))
	}
	for _, w := range s.Warnings {
		if strings.HasPrefix(w, "voter ") {
			return errors.New(w)
		}
	}
	return nil
}

var errNoLeader = errors.New("nobody leads")

// status asks the agents until one of them tells of a leader.
func (m *mesh) status(ctx context.Context) (api.Status, error) {
	return m.statusOf(ctx, "", 2*time.Second)
}

// statusOf asks all agents but one, each for so long at most.
func (m *mesh) statusOf(ctx context.Context, but string, patience time.Duration) (api.Status, error) {
	err := errNoLeader
	for _, x := range m.Machines() {
		if x.ID == but || x.Socket == "" {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, patience)
		s, failed := api.NewSocketClient(x.Socket).Status(ctx)
		cancel()
		if failed == nil && s.Leader != nil {
			return s, nil
		}
		if failed != nil {
			err = failed
		}
	}
	return api.Status{}, err
}

// until polls ok until it returns nil.
func until(ctx context.Context, limit time.Duration, what string, ok func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last error
	for {
		err := ok(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return fmt.Errorf("waited %s for %s: %w", limit, what, last)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// halves finds the processes of every agent.
func (m *mesh) halves() (supervisors map[string]int, meshHalf map[string]process) {
	supervisors, byPID := map[string]int{}, map[int]string{}
	for _, x := range m.Machines() {
		supervisors[x.ID], byPID[x.PID] = x.PID, x.ID
	}
	return supervisors, meshHalves(byPID)
}

// each runs f for every item at once and joins what went wrong.
func each[T any](items []T, f func(T) error) error {
	errs := make([]error, len(items))
	var wg sync.WaitGroup
	for i, x := range items {
		wg.Go(func() { errs[i] = f(x) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
