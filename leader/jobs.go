package leader

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/adhocore/gronx"

	"flymesh/raftstore/state"
)

const (
	jobTick  = time.Second
	tellWait = 4 * time.Second
	tellNext = 2 * time.Second // before a machine is told again to start a run
	pausedBy = "paused by "    // begins the detail of a tick that a pause passed over
)

// The verbs of a job's agent, besides those of every holder.
const (
	JobBegin  LockVerb = "begin"  // commits the start: without it nothing begins
	JobFinish LockVerb = "finish" // commits the end, and frees the lock
)

// Job is what the leader needs to know of one job.
type Job struct {
	Name    string
	Service string // a pinned one: its primary runs the job
	Cron    string // five fields, UTC; empty: only when a person asks
	Misfire time.Duration
	Args    map[string]string
}

// JobStart tells the primary's agent to carry out a run.
type JobStart struct {
	Job   string            `json:"job"`
	Run   string            `json:"run"`
	Token string            `json:"token"`
	Tick  time.Time         `json:"tick,omitzero"`
	Args  map[string]string `json:"args,omitempty"`
}

// JobView is a job as the leader sees it.
type JobView struct {
	Name    string `json:"name"`
	Service string `json:"service"`
	Cron    string `json:"cron"`
	state.Job
	Next  time.Time `json:"next,omitzero"`
	Waits string    `json:"waits,omitempty"` // why a tick that is due does not run yet
}

// jobs starts the runs of one term.
type jobs struct {
	*locks
	mirrored map[string]bool      // by token: its tick is in the metadata
	noted    map[string]time.Time // by job: the end of the pause that is in the metadata
	told     map[string]time.Time // by token
}

// keepJobs claims ticks and has them run until the term ends.
func (k *locks) keepJobs(ctx context.Context) {
	j := &jobs{locks: k, mirrored: map[string]bool{}, noted: map[string]time.Time{}, told: map[string]time.Time{}}
	tick := time.NewTicker(jobTick)
	defer tick.Stop()
	for ; ctx.Err() == nil; k.await(ctx, tick.C) {
		for _, job := range k.l.Jobs {
			st := k.l.Store.State()
			j.notePause(ctx, job, st.Job(job.Name))
			if r := st.Job(job.Name).Running; r != nil {
				if r.State == state.RunClaimed {
					j.start(ctx, job, *r)
				}
				if tick, err := newestTick(job.Cron, time.Now()); job.Cron != "" && err == nil && tick.After(st.Job(job.Name).Last) {
					j.want(state.JobLock(job.Name))
				}
				continue
			}
			if job.Cron != "" && st.Known(state.Fenced) {
				j.due(ctx, st, job)
			}
		}
	}
}

// newestTick is the last scheduled time that is not in the future.
func newestTick(cron string, now time.Time) (time.Time, error) {
	t, err := gronx.PrevTickBefore(cron, now.UTC().Truncate(time.Minute), true)
	return t.Truncate(time.Minute), err
}

// want has a silent holder of the lock looked after.
func (k *locks) want(lock string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.wanted[lock] = time.Now()
}

// due claims the newest tick of a job, if it is to run now.
func (j *jobs) due(ctx context.Context, st *state.State, job Job) {
	now := time.Now().UTC()
	mem := st.Job(job.Name)
	if mem.Last.IsZero() {
		j.first(ctx, job, mem, now)
		return
	}
	tick, err := newestTick(job.Cron, now)
	if err != nil || !tick.After(mem.Last) {
		return
	}
	waits, s, m := j.mayRun(st, job)
	switch {
	case mem.PausedUntil.After(now):
		j.skip(ctx, job, tick, fmt.Sprintf(pausedBy+"%s until %s: %s", mem.PausedBy, mem.PausedUntil.Format(time.RFC3339), cmp.Or(mem.PauseReason, "no reason given")))
	case now.Sub(tick) > job.Misfire:
		why := cmp.Or(j.waiting(job.Name, ""), waits)
		if j.began.After(tick.Add(job.Misfire)) {
			why = "no leader could run it in time"
		}
		j.skip(ctx, job, tick, fmt.Sprintf("missed by more than %s: %s", job.Misfire, why))
	case waits != "":
		j.waiting(job.Name, waits)
	default:
		if _, err := j.claim(ctx, s, m, &state.Claim{Job: job.Name, Tick: tick, Args: job.Args, Holder: state.Holder{
			Session: job.Name + "@" + tick.Format(time.RFC3339)}}, ""); err != nil {
			j.waiting(job.Name, err.Error())
		}
	}
}

// waiting keeps why a due tick does not run, and returns the reason before.
func (j *jobs) waiting(job, why string) (was string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	was = j.waits[job]
	if why != "" {
		j.waits[job] = why
	}
	return was
}

// mayRun finds the machine that runs a job now, or says why none does.
func (k *locks) mayRun(st *state.State, job Job) (waits string, s Service, m Machine) {
	s, ok := k.l.service(job.Service)
	primary := st.Service(job.Service).Primary
	if !ok || primary == "" {
		return fmt.Sprintf("service %s has no primary yet", job.Service), s, m
	}
	if why := k.l.deploys.of(s); why != "" {
		return "a deploy is in progress: " + why, s, m
	}
	i := slices.IndexFunc(k.l.machines(s), func(m Machine) bool { return m.ID == primary })
	if i < 0 {
		return fmt.Sprintf("the primary %s is not listed", primary), s, m
	}
	m = k.l.machines(s)[i]
	if m.State != "started" {
		return fmt.Sprintf("the primary %s is %s", primary, m.State), s, m
	}
	if _, _, fresh, ok := k.l.Reports.Latest(time.Now(), primary); !ok || !fresh {
		return fmt.Sprintf("the agent of the primary %s is not heard", primary), s, m
	}
	return "", s, m
}

// claim commits a run for a machine.
func (k *locks) claim(ctx context.Context, s Service, m Machine, c *state.Claim, id string) (state.Result, error) {
	rep, _, _, _ := k.l.Reports.Latest(time.Now(), m.ID)
	c.Holder.Machine, c.Holder.App, c.Holder.Boot = m.ID, s.App, rep.Boot
	if err := k.l.Store.Verify(ctx); err != nil {
		return state.Result{}, fmt.Errorf("verify leadership: %w", err)
	}
	r, err := k.l.propose(ctx, k.term, state.Command{ID: id, Claim: c})
	if err != nil {
		return r, err
	}
	k.mu.Lock()
	k.heard[r.Token] = time.Now()
	delete(k.waits, c.Job)
	k.mu.Unlock()
	k.l.log.Info("run claimed", "job", c.Job, "run", c.Holder.Session, "machine", m.ID, "token", r.Token)
	return r, nil
}

func (j *jobs) skip(ctx context.Context, job Job, tick time.Time, why string) {
	if _, err := j.l.propose(ctx, j.term, state.Command{Skip: &state.Skip{Job: job.Name, Tick: tick, Reason: why}}); err != nil {
		j.l.log.Warn("skip tick failed", "job", job.Name, "error", err)
		return
	}
	j.mu.Lock()
	delete(j.waits, job.Name)
	j.mu.Unlock()
	j.l.log.Warn("tick skipped", "job", job.Name, "tick", tick.Format(time.RFC3339), "reason", why)
	j.write(ctx, job, metaJob(job.Name), tick.UTC().Format(time.RFC3339)) // if it cannot be written, its age skips it again
}

// start has the machine of a claimed run begin it. The tick is in the metadata
// before, so that it is not run again even if all state is lost now.
func (j *jobs) start(ctx context.Context, job Job, r state.Run) {
	if !r.Tick.IsZero() && !j.mirrored[r.Token] {
		if !j.write(ctx, job, metaJob(job.Name), r.Tick.UTC().Format(time.RFC3339)) {
			j.waiting(job.Name, "its tick cannot be written to the metadata of a machine")
			return
		}
		j.mirrored[r.Token] = true
	}
	if time.Since(j.told[r.Token]) < tellNext {
		return
	}
	j.told[r.Token] = time.Now()
	if err := j.l.Store.Verify(ctx); err != nil {
		return
	}
	tctx, cancel := context.WithTimeout(ctx, tellWait)
	defer cancel()
	if err := j.l.Holders.Start(tctx, r.Machine, JobStart{Job: job.Name, Run: r.ID, Token: r.Token, Tick: r.Tick, Args: r.Args}); err != nil && ctx.Err() == nil {
		j.waiting(job.Name, err.Error())
		j.l.log.Warn("start run failed", "job", job.Name, "run", r.ID, "machine", r.Machine, "error", err)
	}
}

// markRun commits the start or the end of a run for its agent.
func (k *locks) markRun(ctx context.Context, r LockRequest) (LockAnswer, error) {
	to := state.RunStarted
	k.mu.Lock()
	ending, forced := k.ending[r.Token], k.forced[r.Token]
	if r.Verb == JobFinish {
		to = state.RunDone
		if r.Failed {
			to = state.RunFailed
		}
	}
	k.mu.Unlock()
	switch {
	case forced:
		return LockAnswer{Why: "a person has freed its lock"}, nil // the record has that
	case ending && to == state.RunStarted:
		return LockAnswer{Why: "the run was given up before its start"}, nil
	}
	job := strings.TrimPrefix(r.Lock, state.JobLock(""))
	if to == state.RunStarted {
		if err := k.l.Store.Verify(ctx); err != nil {
			return LockAnswer{}, fmt.Errorf("verify leadership: %w", err)
		}
	}
	res, err := k.l.propose(ctx, k.term, state.Command{ID: r.ID, Mark: &state.Mark{Job: job, Token: r.Token, To: to, Detail: r.Reason}})
	if errors.Is(err, state.ErrRejected) {
		return LockAnswer{Why: res.Detail}, nil
	}
	if err != nil {
		return LockAnswer{}, err
	}
	if to != state.RunStarted {
		return LockAnswer{OK: true, Token: r.Token}, nil
	}
	return k.renew(ctx, LockRequest{Verb: LockRenewal, Lock: r.Lock, Token: r.Token})
}

// RunJob claims a run that a person asks for.
func (l *Leader) RunJob(ctx context.Context, name, id, by string, args map[string]string) (run, machine string, res state.Result, err error) {
	k, err := l.lockKeeper()
	if err != nil {
		return "", "", res, err
	}
	i := slices.IndexFunc(l.Jobs, func(j Job) bool { return j.Name == name })
	if i < 0 {
		return "", "", res, fmt.Errorf("%w: there is no job %s", state.ErrRejected, name)
	}
	waits, s, m := k.mayRun(l.Store.State(), l.Jobs[i])
	if waits != "" {
		return "", "", res, fmt.Errorf("%w: %s", state.ErrRejected, waits)
	}
	all := maps.Clone(l.Jobs[i].Args)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, args)
	run = name + "#" + id
	k.want(state.JobLock(name))
	res, err = k.claim(ctx, s, m, &state.Claim{Job: name, Args: all, By: by, Holder: state.Holder{Session: run}}, id)
	return run, m.ID, res, err
}

// JobViews lists the jobs; false while this node does not lead.
func (l *Leader) JobViews() ([]JobView, bool) {
	k, err := l.lockKeeper()
	if err != nil {
		return nil, false
	}
	st := l.Store.State()
	all := []JobView{}
	for _, j := range l.Jobs {
		v := JobView{Name: j.Name, Service: j.Service, Cron: j.Cron, Job: st.Job(j.Name)}
		if j.Cron != "" {
			if next, err := gronx.NextTickAfter(j.Cron, time.Now().UTC(), false); err == nil {
				v.Next = next
			}
		}
		k.mu.Lock()
		v.Waits = k.waits[j.Name]
		k.mu.Unlock()
		all = append(all, v)
	}
	return all, true
}
