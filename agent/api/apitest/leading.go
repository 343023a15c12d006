package apitest

import (
	"context"
	"fmt"
	"time"

	"flymesh/agent/api"
	"flymesh/leader/decide"
	"flymesh/probes/report"
	"flymesh/raftstore/state"
)

// Status implements api.Leading.
func (a *Agent) Status(context.Context) (api.Status, error) {
	if err := a.lead(); err != nil {
		return api.Status{}, err
	}
	defer a.mesh.mu.Unlock()
	m := a.mesh
	s := api.Status{
		Mesh: "test", Epoch: m.state.Epoch, Term: m.state.Term, Leader: &api.LeaderRef{Machine: a.machine},
		Quorum: api.Quorum{Healthy: true, Voters: []string{a.machine}}, From: a.machine, At: time.Now().UTC(),
	}
	for _, n := range m.names {
		running, none := m.running[n], 0
		v := verdict(n, running)
		svc := api.ServiceStatus{
			Name: n, Mode: string(decide.Auto), Baseline: 1, Max: Max, Started: &running, Ready: &running, Unknown: &none,
			CPU: report.Of(0.425), P95: report.Of(812.4), P95Samples: report.Of(1204), ErrorRate: report.Of(0.0021),
			Verdict: &v.Verdict, Reason: &v.Reason.Text,
		}
		if until := m.state.Service(n).PausedUntil; until.After(time.Now()) {
			svc.PausedUntil = &until
		}
		s.Services = append(s.Services, svc)
		for i := range running {
			state, ready, readiness, age, version, hash := "started", true, "ready", int64(3200), "0.1.0", "01234567"
			s.Machines = append(s.Machines, api.MachineStatus{
				ID: fmt.Sprintf("%s-%d", n, i), Service: n, Region: "fra", State: &state, Ready: &ready, Readiness: &readiness,
				Role: "agent", Pinned: i == 0, CPU: report.Of(0.425), Memory: report.Of(0.5), ReportAgeMS: &age,
				Version: &version, ConfigHash: &hash,
			})
		}
	}
	return s, nil
}

func verdict(service string, running int) decide.Verdict {
	return decide.Verdict{
		Service: service, At: time.Now().UTC(), Verdict: decide.Hold,
		Reason: decide.Reason{Code: decide.CodeSteady, Text: "no rule holds"},
		Rules: []decide.RuleEval{{Rule: "cpu > 80% for 3m", For: decide.Up, Value: report.Of(0.425), Best: report.Of(0.425),
			Coverage: 0.97, Missing: []string{}}},
		Guards:  []decide.GuardEval{{Code: decide.CodeCap, Blocks: running >= Max, Detail: fmt.Sprintf("%d of %d", running, Max)}},
		Counted: []decide.Counted{{Machine: service + "-0", As: "ready", Why: "its report is fresh"}},
	}
}

// Why implements api.Leading.
func (a *Agent) Why(_ context.Context, service string) (decide.Verdict, error) {
	if err := a.lead(); err != nil {
		return decide.Verdict{}, err
	}
	defer a.mesh.mu.Unlock()
	if err := a.known(service); err != nil {
		return decide.Verdict{}, err
	}
	return verdict(service, a.mesh.running[service]), nil
}

// Events implements api.Leading.
func (a *Agent) Events(_ context.Context, after uint64) ([]state.Event, error) {
	if err := a.lead(); err != nil {
		return nil, err
	}
	defer a.mesh.mu.Unlock()
	var out []state.Event
	for _, e := range a.mesh.state.Events {
		if e.Index > after {
			out = append(out, e)
		}
	}
	return out, nil
}

// Scale implements api.Leading: the fleet obeys at once.
func (a *Agent) Scale(_ context.Context, r api.ScaleRequest) (api.Accepted, error) {
	if err := a.lead(); err != nil {
		return api.Accepted{}, err
	}
	defer a.mesh.mu.Unlock()
	m := a.mesh
	if err := a.known(r.Service); err != nil {
		return api.Accepted{}, err
	}
	from := m.running[r.Service]
	target := from + r.Delta
	if r.Target != nil {
		target = *r.Target
	}
	if target < 1 || target > Max {
		return api.Accepted{}, &api.RequestError{Text: fmt.Sprintf("scale %s to %d: it must be 1 to %d", r.Service, target, Max)}
	}
	res, err := m.commit(state.Command{By: r.By, Scale: &state.Scale{Service: r.Service, Target: target, Reason: r.Reason}})
	if err == nil {
		err = res.Err()
	}
	if err != nil {
		return api.Accepted{}, err
	}
	m.running[r.Service] = target
	return api.Accepted{Index: res.Index, Text: fmt.Sprintf("%s goes from %d to %d machines", r.Service, from, target)}, nil
}

// Pause implements api.Leading.
func (a *Agent) Pause(_ context.Context, r api.PauseRequest) (api.Accepted, error) {
	until := time.Now().UTC().Add(r.For)
	return a.command(r.Service, fmt.Sprintf("%s is not scaled for %s", r.Service, r.For),
		state.Command{By: r.By, Pause: &state.Pause{Service: r.Service, Until: until, Reason: r.Reason}})
}

// Resume implements api.Leading.
func (a *Agent) Resume(_ context.Context, r api.PauseRequest) (api.Accepted, error) {
	return a.command(r.Service, r.Service+" is scaled again", state.Command{By: r.By, Resume: &state.Resume{Service: r.Service}})
}

func (a *Agent) command(service, text string, c state.Command) (api.Accepted, error) {
	if err := a.lead(); err != nil {
		return api.Accepted{}, err
	}
	defer a.mesh.mu.Unlock()
	if err := a.known(service); err != nil {
		return api.Accepted{}, err
	}
	res, err := a.mesh.commit(c)
	if err == nil {
		err = res.Err()
	}
	return api.Accepted{Index: res.Index, Text: text}, err
}

// Propose implements api.Leading.
func (a *Agent) Propose(_ context.Context, c state.Command) (state.Result, error) {
	if err := a.lead(); err != nil {
		return state.Result{}, err
	}
	defer a.mesh.mu.Unlock()
	return a.mesh.commit(c)
}

// Windows implements api.Leading: the state stands for the history.
func (a *Agent) Windows(context.Context) ([]byte, error) {
	if err := a.lead(); err != nil {
		return nil, err
	}
	defer a.mesh.mu.Unlock()
	return a.mesh.state.Snapshot()
}
