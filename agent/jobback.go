package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"flymesh/agent/api"
	"flymesh/agent/config"
	"flymesh/leader"
	"flymesh/raftstore/state"
)

var _ api.JobBackend = (*agent)(nil)

// leaderJobs are the jobs of mesh.toml as the leader knows them.
func leaderJobs(all []config.Job) (jobs []leader.Job) {
	for _, j := range all {
		v := leader.Job{Name: j.Name, Service: j.Service, Cron: j.Cron, Misfire: j.Misfire, Args: map[string]string{}}
		for _, a := range j.Args {
			name, value, _ := strings.Cut(a, "=")
			v.Args[name] = value
		}
		jobs = append(jobs, v)
	}
	return jobs
}

func (a *agent) findJob(name string) (config.Job, error) {
	var names []string
	for _, j := range a.cfg.Jobs {
		if j.Name == name {
			return j, nil
		}
		names = append(names, j.Name)
	}
	if len(names) == 0 {
		names = []string{"none"}
	}
	return config.Job{}, badRequest("job %q is not in mesh.toml; it has %s", name, strings.Join(names, ", "))
}

// StartJob begins a run on this machine because the leader says so.
func (a *agent) StartJob(_ context.Context, r leader.JobStart) error {
	j, err := a.findJob(r.Job)
	if err != nil {
		return err
	}
	if j.Service != a.svc.Name {
		return badRequest("job %s runs on service %s; this machine is of %s", j.Name, j.Service, a.svc.Name)
	}
	return a.locks.startJob(context.Background(), j, r)
}

// Jobs lists the jobs.
func (a *agent) Jobs(ctx context.Context) ([]leader.JobView, error) {
	if _, err := a.view(ctx); err != nil {
		return nil, err
	}
	all, ok := a.leader.JobViews()
	if !ok {
		return nil, api.ErrNoLeader
	}
	return all, nil
}

// RunJob runs a job now.
func (a *agent) RunJob(ctx context.Context, r api.JobRequest) (api.Accepted, error) {
	if _, err := a.findJob(r.Job); err != nil {
		return api.Accepted{}, err
	}
	if _, err := a.view(ctx); err != nil {
		return api.Accepted{}, err
	}
	run, machine, res, err := a.leader.RunJob(ctx, r.Job, rand.Text(), r.By, r.Args)
	if errors.Is(err, state.ErrRejected) {
		return api.Accepted{}, badRequest("run %s: %s", r.Job, strings.TrimPrefix(err.Error(), "propose command: "))
	}
	if err != nil {
		return api.Accepted{}, leaderless(err)
	}
	return api.Accepted{Index: res.Index, Text: fmt.Sprintf("run %s begins on machine %s", run, machine)}, nil
}

// PauseJob keeps a job from running for a while, or ends that.
func (a *agent) PauseJob(ctx context.Context, r api.JobRequest) (api.Accepted, error) {
	if _, err := a.findJob(r.Job); err != nil {
		return api.Accepted{}, err
	}
	if r.For < 0 || r.For > 31*24*time.Hour {
		return api.Accepted{}, badRequest("pause %s for %s: a pause lasts more than 0 and at most 744h", r.Job, r.For)
	}
	p := &state.PauseJob{Job: r.Job, Reason: r.Reason}
	text := "job " + r.Job + " runs again"
	if r.For > 0 {
		p.Until = time.Now().UTC().Add(r.For)
		text = fmt.Sprintf("ticks of job %s are skipped until %s", r.Job, p.Until.Format(time.RFC3339))
	}
	res, err := a.command(ctx, r.By, state.Command{PauseJob: p})
	if err != nil {
		return api.Accepted{}, err
	}
	return api.Accepted{Index: res.Index, Text: text}, nil
}

// Start has a machine begin a run.
func (g agents) Start(ctx context.Context, machine string, r leader.JobStart) error {
	if machine == g.a.self.ID {
		return g.a.StartJob(ctx, r)
	}
	c, err := g.to(machine)
	if err != nil {
		return err
	}
	return c.StartJob(ctx, r)
}
