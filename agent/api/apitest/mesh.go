// Package apitest is a small working mesh behind the API: several agents that
// share one replicated state (the real one) and a fleet that obeys at once.
// Tests of the API and of agentctl put real servers in front of it.
package apitest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"flymesh/agent/api"
	"flymesh/agent/redis"
	"flymesh/leader"
	"flymesh/leader/decide"
	"flymesh/probes/report"
	"flymesh/raftstore/state"
)

// Max is the cap of every service; each starts with one machine.
const Max = 3

// Mesh is what its agents agree on. The zero value is not usable; see New.
type Mesh struct {
	mu      sync.Mutex // guards all below
	state   *state.State
	index   uint64
	running map[string]int
	names   []string
	leader  *Agent
	addrs   map[*Agent]string
	since   time.Time    // without a leader
	redis   *redis.Redis // of the machine redisAt; nil: there is none
	redisAt string
}

// New returns a mesh with the given services, one machine each, and no leader.
func New(services ...string) *Mesh {
	m := &Mesh{state: state.New(), running: map[string]int{}, names: services, addrs: map[*Agent]string{}, since: time.Now()}
	for _, s := range services {
		m.running[s] = 1
	}
	return m
}

// Lead makes an agent the leader that others reach at addr; nil: nobody leads.
func (m *Mesh) Lead(a *Agent, addr string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leader, m.since = a, time.Now()
	if a != nil {
		m.addrs[a] = addr
		m.commit(state.Command{Term: m.state.Term + 1, By: a.machine, Elect: &state.Elect{Machine: a.machine}})
	}
}

// Running returns how many machines a service has.
func (m *Mesh) Running(service string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.running[service]
}

// commit applies a command. The caller holds mu.
func (m *Mesh) commit(c state.Command) (state.Result, error) {
	c.At = time.Now().UTC()
	b, err := c.Encode()
	if err != nil {
		return state.Result{}, err
	}
	m.index++
	return m.state.Apply(m.index, b), nil
}

// Agent is one agent of the mesh; it implements api.Backend.
type Agent struct {
	mesh    *Mesh
	machine string

	mu       sync.Mutex // guards all below
	draining bool
	admitted string
	inFlight int
}

var _ api.Backend = (*Agent)(nil)

// Agent returns a new agent. It drains only when nothing is in flight.
func (m *Mesh) Agent(machine string) *Agent { return &Agent{mesh: m, machine: machine} }

// SetInFlight says how many requests the app beside the agent works on.
func (a *Agent) SetInFlight(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.inFlight = n
}

// Admitted returns the boot that was admitted last.
func (a *Agent) Admitted() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.admitted
}

// Route implements api.Backend.
func (a *Agent) Route() (self bool, addr string, ok bool) {
	a.mesh.mu.Lock()
	defer a.mesh.mu.Unlock()
	l := a.mesh.leader
	if l == nil {
		return false, "", false
	}
	return l == a, a.mesh.addrs[l], true
}

// lead takes the mesh's lock if this agent leads.
func (a *Agent) lead() error {
	a.mesh.mu.Lock()
	if a.mesh.leader == a {
		return nil
	}
	a.mesh.mu.Unlock()
	return api.ErrNoLeader
}

func (a *Agent) known(service string) error {
	if slices.Contains(a.mesh.names, service) {
		return nil
	}
	return &api.RequestError{Text: fmt.Sprintf("service %q is not in mesh.toml; it has %v", service, a.mesh.names)}
}

// Health implements api.Backend: ready unless it drains.
func (a *Agent) Health() (api.Health, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := api.Health{State: report.Ready.String(), Machine: a.machine}
	if a.draining {
		h.State, h.Reason = report.Draining.String(), "asked by the leader"
	}
	return h, !a.draining
}

// LocalStatus implements api.Backend: the names of the services are all that
// an agent without a leader knows.
func (a *Agent) LocalStatus() api.Status {
	a.mesh.mu.Lock()
	defer a.mesh.mu.Unlock()
	s := api.Status{Mesh: "test", From: a.machine, At: time.Now().UTC(), Warnings: []string{
		fmt.Sprintf("no leader for %s", time.Since(a.mesh.since).Round(time.Second))}}
	for _, n := range a.mesh.names {
		s.Services = append(s.Services, api.ServiceStatus{Name: n, Mode: string(decide.Auto), Baseline: 1, Max: Max})
	}
	s.Machines = []api.MachineStatus{{ID: a.machine, Role: "agent"}}
	return s
}

// Drain implements api.Backend.
func (a *Agent) Drain(ctx context.Context, r api.DrainRequest) (leader.DrainResult, error) {
	ctx, cancel := context.WithTimeout(ctx, r.Deadline)
	defer cancel()
	a.mu.Lock()
	a.draining = !r.Undo
	a.mu.Unlock()
	for {
		a.mu.Lock()
		n := a.inFlight
		a.mu.Unlock()
		if n == 0 || r.Undo || ctx.Err() != nil {
			return leader.DrainResult{Done: n == 0, InFlight: n}, nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Admit implements api.Backend.
func (a *Agent) Admit(_ context.Context, r api.AdmitRequest) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.admitted = r.Boot
	return nil
}
