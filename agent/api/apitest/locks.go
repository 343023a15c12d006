package apitest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"flymesh/agent/api"
	"flymesh/leader"
	"flymesh/raftstore/state"
)

// jobs are those of every mesh; they run at once, on the first machine of their
// service, and succeed unless they are told to fail by an argument.
var jobs = []leader.Job{{Name: "NightlyIngest", Service: "n8n", Cron: "0 2 * * *"}, {Name: "ReIndexNow", Service: "n8n", Args: map[string]string{"batch_size": "64"}}}

var (
	_ api.LockBackend = (*Agent)(nil)
	_ api.JobBackend  = (*Agent)(nil)
)

// led runs f for the leader of the mesh, whichever agent is asked.
func led[T any](a *Agent, f func(*Mesh) (T, error)) (T, error) {
	a.mesh.mu.Lock()
	defer a.mesh.mu.Unlock()
	if a.mesh.leader == nil {
		var none T
		return none, api.ErrNoLeader
	}
	return f(a.mesh)
}

// do commits a command of the leader's. The caller holds mu.
func (m *Mesh) do(c state.Command) (state.Result, error) {
	c.Term = m.state.Term
	r, err := m.commit(c)
	return r, cmp.Or(err, r.Err())
}

func asked(err error) error {
	if err == nil {
		return nil
	}
	return &api.RequestError{Text: err.Error()}
}

// Acquire implements api.LockBackend.
func (a *Agent) Acquire(_ context.Context, r api.AcquireRequest) (api.Lease, error) {
	return led(a, func(m *Mesh) (api.Lease, error) {
		if l := m.state.Locks[r.Lock]; l != nil {
			return api.LeaseOf(r.Lock, leader.LockAnswer{Holder: &l.Holder, Why: "held since " + l.At.Format(time.RFC3339)}), nil
		}
		res, err := m.do(state.Command{Grant: &state.Grant{
			Lock: r.Lock, Policy: r.Policy, Holder: state.Holder{Machine: a.machine, Boot: "b", Session: r.Session}, Reason: r.Reason}})
		return api.LeaseOf(r.Lock, leader.LockAnswer{OK: err == nil, Token: res.Token, Lease: leader.LockLease}), err
	})
}

// Renew implements api.LockBackend.
func (a *Agent) Renew(_ context.Context, r api.TokenRequest) (api.Lease, error) {
	return led(a, func(m *Mesh) (api.Lease, error) {
		l := m.state.Locks[r.Lock]
		ok := l != nil && l.Token == r.Token
		return api.LeaseOf(r.Lock, leader.LockAnswer{OK: ok, Token: r.Token, Lease: leader.LockLease, Why: "lock " + r.Lock + " is not held"}), nil
	})
}

// CheckLock implements api.LockBackend.
func (a *Agent) CheckLock(ctx context.Context, r api.TokenRequest) (api.Lease, error) {
	return a.Renew(ctx, r)
}

// Release implements api.LockBackend.
func (a *Agent) Release(_ context.Context, r api.TokenRequest) (api.Lease, error) {
	return led(a, func(m *Mesh) (api.Lease, error) {
		res, err := m.do(state.Command{Free: &state.Free{Lock: r.Lock, Token: r.Token, Cause: state.Released}})
		if errors.Is(err, state.ErrRejected) {
			return api.LeaseOf(r.Lock, leader.LockAnswer{Why: res.Detail}), nil
		}
		return api.LeaseOf(r.Lock, leader.LockAnswer{OK: err == nil, Token: r.Token}), err
	})
}

// Held implements api.LockBackend.
func (a *Agent) Held(context.Context, uint64) ([]state.Lock, error) {
	return led(a, func(m *Mesh) ([]state.Lock, error) { return m.state.HeldBy(a.machine), nil })
}

// EndLock implements api.LockBackend: nothing runs here.
func (a *Agent) EndLock(context.Context, state.Lock) (api.EndAnswer, error) {
	return api.EndAnswer{Gone: true}, nil
}

// Locks implements api.LockBackend.
func (a *Agent) Locks(context.Context) ([]leader.LockView, error) {
	return led(a, func(m *Mesh) ([]leader.LockView, error) {
		all := []leader.LockView{}
		for _, name := range slices.Sorted(maps.Keys(m.state.Locks)) {
			all = append(all, leader.LockView{Lock: *m.state.Locks[name]})
		}
		return all, nil
	})
}

// Lease implements api.LockBackend: agents share one state here.
func (a *Agent) Lease(context.Context, leader.LockRequest) (leader.LockAnswer, error) {
	return leader.LockAnswer{}, api.ErrNoLeader
}

// Unlock implements api.LockBackend.
func (a *Agent) Unlock(_ context.Context, r api.UnlockRequest) (api.Accepted, error) {
	return led(a, func(m *Mesh) (api.Accepted, error) {
		token := ""
		if l := m.state.Locks[r.Lock]; l != nil {
			token = l.Token
		}
		res, err := m.do(state.Command{By: r.By, Free: &state.Free{Lock: r.Lock, Token: token, Cause: state.Forced, Reason: r.Reason}})
		return api.Accepted{Index: res.Index, Text: "lock " + r.Lock + " is free"}, asked(err)
	})
}

// Role implements api.LockBackend: every agent is of n8n.
func (a *Agent) Role(ctx context.Context, _ api.RoleRequest) (api.RoleAnswer, error) {
	p, err := a.Primary(ctx, "n8n")
	return api.RoleAnswer{Self: a.machine, Lock: api.RoleLock("n8n"), Primary: p}, err
}

// Primary implements api.LockBackend.
func (a *Agent) Primary(_ context.Context, service string) (api.Primary, error) {
	return led(a, func(m *Mesh) (api.Primary, error) {
		return api.Primary{Service: service, Machine: m.state.Service(service).Primary}, nil
	})
}

// Pin implements api.LockBackend.
func (a *Agent) Pin(_ context.Context, r api.PinRequest) (api.Accepted, error) {
	return led(a, func(m *Mesh) (api.Accepted, error) {
		if err := a.known(r.Service); err != nil {
			return api.Accepted{}, err
		}
		if r.Machine != r.Service+"-0" {
			return api.Accepted{}, asked(fmt.Errorf("pin %s to %s: that is not a started machine of the service; there are %s-0", r.Service, r.Machine, r.Service))
		}
		res, err := m.do(state.Command{By: r.By, Pin: &state.Pin{Service: r.Service, Machine: r.Machine, Reason: r.Reason}})
		return api.Accepted{Index: res.Index, Text: fmt.Sprintf("machine %s is the primary of %s", r.Machine, r.Service)}, err
	})
}

// StartJob implements api.JobBackend.
func (a *Agent) StartJob(context.Context, leader.JobStart) error { return nil }

// Jobs implements api.JobBackend.
func (a *Agent) Jobs(context.Context) ([]leader.JobView, error) {
	return led(a, func(m *Mesh) (all []leader.JobView, err error) {
		for _, j := range jobs {
			v := leader.JobView{Name: j.Name, Service: j.Service, Cron: j.Cron, Job: m.state.Job(j.Name)}
			if j.Cron != "" {
				v.Next = time.Date(2026, 3, 2, 2, 0, 0, 0, time.UTC)
			}
			all = append(all, v)
		}
		return all, nil
	})
}

func findJob(name string) (leader.Job, error) {
	for _, j := range jobs {
		if j.Name == name {
			return j, nil
		}
	}
	return leader.Job{}, asked(fmt.Errorf("job %q is not in mesh.toml; it has %s, %s", name, jobs[0].Name, jobs[1].Name))
}

// RunJob implements api.JobBackend: the run is over when it returns.
func (a *Agent) RunJob(_ context.Context, r api.JobRequest) (api.Accepted, error) {
	return led(a, func(m *Mesh) (api.Accepted, error) {
		j, err := findJob(r.Job)
		if err != nil {
			return api.Accepted{}, err
		}
		args := maps.Clone(j.Args)
		if args == nil {
			args = map[string]string{}
		}
		maps.Copy(args, r.Args)
		to, detail := state.RunDone, fmt.Sprint(args)
		if why := args["fail"]; why != "" {
			to, detail = state.RunFailed, why
		}
		run := fmt.Sprintf("%s#%d", j.Name, m.index)
		res, err := m.do(state.Command{Claim: &state.Claim{Job: j.Name, Args: args, By: r.By, Holder: state.Holder{Machine: j.Service + "-0", Boot: "b", Session: run}}})
		for _, s := range []state.Mark{{To: state.RunStarted}, {To: to, Detail: detail}} {
			if s.Job, s.Token = j.Name, res.Token; err == nil {
				_, err = m.do(state.Command{Mark: &s})
			}
		}
		return api.Accepted{Index: res.Index, Text: fmt.Sprintf("run %s begins on machine %s-0", run, j.Service)}, err
	})
}

// PauseJob implements api.JobBackend.
func (a *Agent) PauseJob(_ context.Context, r api.JobRequest) (api.Accepted, error) {
	return led(a, func(m *Mesh) (api.Accepted, error) {
		if _, err := findJob(r.Job); err != nil {
			return api.Accepted{}, err
		}
		p := &state.PauseJob{Job: r.Job, Reason: r.Reason}
		if r.For > 0 {
			p.Until = time.Now().UTC().Add(r.For)
		}
		res, err := m.do(state.Command{By: r.By, PauseJob: p})
		return api.Accepted{Index: res.Index, Text: fmt.Sprintf("ticks of job %s are skipped for %s", r.Job, r.For)}, asked(err)
	})
}
