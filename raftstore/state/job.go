package state

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// maxRuns bounds the history of one job; the oldest go first.
const maxRuns = 100

// JobLock names the lock under which a job runs: its runs exclude each other.
func JobLock(job string) string { return "job/" + job }

// RunState is where one run of a job stands.
type RunState string

// The states. claimed -> started -> done | failed | lost; a claim that is given
// up before its start is returned, and its tick may be claimed again.
const (
	RunClaimed  RunState = "claimed"
	RunStarted  RunState = "started"
	RunDone     RunState = "done"
	RunFailed   RunState = "failed"
	RunLost     RunState = "lost"     // it began, and nobody knows how it ended
	RunReturned RunState = "returned" // it never began
	RunSkipped  RunState = "skipped"  // its tick was too old, or the job paused
)

// Run is one run of a job, or the tick that got none.
type Run struct {
	ID      string            `json:"id"`            // <job>@<tick>, or <job>#<request> for one that a person asked for
	Tick    time.Time         `json:"tick,omitzero"` // scheduled time, UTC; zero: a person asked
	State   RunState          `json:"state"`
	Machine string            `json:"machine,omitempty"`
	Token   string            `json:"token,omitempty"`
	Args    map[string]string `json:"args,omitempty"`
	By      string            `json:"by,omitempty"` // the person
	Claimed time.Time         `json:"claimed,omitzero"`
	Started time.Time         `json:"started,omitzero"`
	Ended   time.Time         `json:"ended,omitzero"`
	Detail  string            `json:"detail,omitempty"`
}

// Job is what is remembered of one job.
type Job struct {
	Last        time.Time `json:"last,omitzero"` // newest tick that was claimed or skipped
	Before      time.Time `json:"before,omitzero"`
	Running     *Run      `json:"running,omitempty"`
	Runs        []Run     `json:"runs,omitempty"` // that have ended, oldest first
	PausedUntil time.Time `json:"paused_until,omitzero"`
	PauseReason string    `json:"pause_reason,omitempty"`
	PausedBy    string    `json:"paused_by,omitempty"`
}

// Claim takes a tick, or a run that a person asked for, and the job's lock with
// it. Rejected for a tick that is not newer than the last one, and while a run
// is under way.
type Claim struct {
	Job    string            `json:"job"`
	Tick   time.Time         `json:"tick,omitzero"`
	Args   map[string]string `json:"args,omitempty"`
	By     string            `json:"by,omitempty"`
	Holder Holder            `json:"holder"` // its session is the run's ID
}

// Mark moves the run under a token on: to started, once, or to done or failed,
// which also frees the lock.
type Mark struct {
	Job    string   `json:"job"`
	Token  string   `json:"token"`
	To     RunState `json:"to"`
	Detail string   `json:"detail,omitempty"`
}

// Skip passes over a tick; with Silent it only says from when ticks count.
type Skip struct {
	Job    string    `json:"job"`
	Tick   time.Time `json:"tick"`
	Reason string    `json:"reason,omitempty"`
	Silent bool      `json:"silent,omitempty"`
}

// PauseJob keeps a job from running until a time; a time that is past ends that.
type PauseJob struct {
	Job    string    `json:"job"`
	Until  time.Time `json:"until"`
	Reason string    `json:"reason,omitempty"`
	By     string    `json:"by,omitempty"` // who paused it; empty: who sends this
}

// Job returns what is remembered of a job, the zero one if nothing is.
func (s *State) Job(name string) Job {
	if j := s.Jobs[name]; j != nil {
		return j.clone()
	}
	return Job{}
}

func (j Job) clone() Job {
	if j.Running != nil {
		r := *j.Running
		r.Args = maps.Clone(r.Args)
		j.Running = &r
	}
	j.Runs = slices.Clone(j.Runs)
	return j
}

func (s *State) job(name string) *Job {
	if s.Jobs == nil {
		s.Jobs = map[string]*Job{}
	}
	j := s.Jobs[name]
	if j == nil {
		j = &Job{}
		s.Jobs[name] = j
	}
	return j
}

func (s *State) claim(index uint64, c Command) Result {
	q := c.Claim
	j := s.Job(q.Job)
	switch {
	case q.Job == "" || q.Holder.Session == "" || q.Tick.IsZero() && q.By == "":
		return reject(index, BadEntry, fmt.Sprintf("claim of job %q by %q", q.Job, q.Holder.Machine))
	case j.Running != nil:
		return reject(index, Conflict, fmt.Sprintf("run %s is under way on machine %s", j.Running.ID, j.Running.Machine))
	case !q.Tick.IsZero() && !q.Tick.After(j.Last):
		return reject(index, Stale, fmt.Sprintf("tick %s is not newer than %s", stamp(q.Tick), stamp(j.Last)))
	case !q.Tick.IsZero() && j.PausedUntil.After(c.At):
		return reject(index, Conflict, "the job is paused until "+stamp(j.PausedUntil))
	}
	g := c
	g.Grant = &Grant{Lock: JobLock(q.Job), Policy: Fenced, Holder: q.Holder, Reason: q.Holder.Session}
	r := s.grant(index, g)
	if r.Rejection != "" {
		return r
	}
	v := s.job(q.Job)
	if !q.Tick.IsZero() {
		v.Before, v.Last = v.Last, q.Tick
	}
	v.Running = &Run{
		ID: q.Holder.Session, Tick: q.Tick, State: RunClaimed, Machine: q.Holder.Machine, Token: r.Token,
		Args: maps.Clone(q.Args), By: q.By, Claimed: c.At,
	}
	return r
}

func (s *State) mark(index uint64, c Command) Result {
	m := c.Mark
	v := s.Jobs[m.Job]
	l := s.Locks[JobLock(m.Job)]
	if v == nil || v.Running == nil || v.Running.Token != m.Token || l == nil || l.Token != m.Token || c.Term == 0 {
		return reject(index, Stale, fmt.Sprintf("no run of job %s has token %s", m.Job, m.Token))
	}
	r := v.Running
	switch {
	case m.To == RunStarted && r.State == RunClaimed:
		r.State, r.Started = RunStarted, c.At
		s.tell(index, c, Event{Kind: "job_started", Machine: r.Machine, Op: r.Token, Reason: r.ID})
	case m.To == RunFailed && r.State == RunClaimed, (m.To == RunDone || m.To == RunFailed) && r.State == RunStarted:
		s.endRun(index, c, m.Job, m.To, m.Detail)
		delete(s.Locks, l.Name)
	default:
		return reject(index, Stale, fmt.Sprintf("run %s is %s, and cannot be %s", r.ID, r.State, m.To))
	}
	return Result{Index: index, Token: m.Token}
}

// endRun moves the run under way to the history.
func (s *State) endRun(index uint64, c Command, job string, to RunState, detail string) {
	v := s.Jobs[job]
	r := *v.Running
	v.Running = nil
	r.State, r.Ended, r.Detail = to, c.At, detail
	if to == RunReturned && !r.Tick.IsZero() && v.Last.Equal(r.Tick) {
		v.Last = v.Before
	}
	v.add(r)
	s.tell(index, c, Event{Kind: "job_" + string(to), Machine: r.Machine, Op: r.Token, Reason: joined(r.ID, detail)})
}

func (j *Job) add(r Run) {
	j.Runs = append(j.Runs, r)
	if n := len(j.Runs) - maxRuns; n > 0 {
		j.Runs = slices.Delete(j.Runs, 0, n)
	}
}

// freed ends the run whose lock was freed by something else than its end.
func (s *State) freed(index uint64, c Command, l Lock, detail string) {
	job, ok := strings.CutPrefix(l.Name, JobLock(""))
	v := s.Jobs[job]
	if !ok || v == nil || v.Running == nil || v.Running.Token != l.Token {
		return
	}
	to := RunLost
	if v.Running.State == RunClaimed {
		to = RunReturned // a start is committed before anything begins
	}
	s.endRun(index, c, job, to, detail)
}

// goesOn takes in the run of a lock that goes on from an earlier epoch.
func (s *State) goesOn(l Lock) {
	job, ok := strings.CutPrefix(l.Name, JobLock(""))
	if !ok {
		return
	}
	v := s.job(job)
	r := &Run{ID: l.Holder.Session, State: RunStarted, Machine: l.Holder.Machine, Token: l.Token, Started: l.At, Claimed: l.At, Detail: "goes on from an earlier epoch"}
	if _, at, ok := strings.Cut(r.ID, "@"); ok {
		if t, err := time.Parse(time.RFC3339, at); err == nil {
			r.Tick = t
			if t.After(v.Last) {
				v.Before, v.Last = v.Last, t
			}
		}
	}
	v.Running = r
}

func (s *State) skip(index uint64, c Command) Result {
	k := c.Skip
	j := s.Job(k.Job)
	if k.Job == "" || k.Tick.IsZero() || c.Term == 0 {
		return reject(index, BadEntry, fmt.Sprintf("skip %s of job %q", stamp(k.Tick), k.Job))
	}
	if !k.Tick.After(j.Last) {
		return reject(index, Stale, fmt.Sprintf("tick %s is not newer than %s", stamp(k.Tick), stamp(j.Last)))
	}
	v := s.job(k.Job)
	v.Last = k.Tick
	if !k.Silent {
		v.add(Run{ID: k.Job + "@" + stamp(k.Tick), Tick: k.Tick, State: RunSkipped, Ended: c.At, Detail: k.Reason})
		s.tell(index, c, Event{Kind: "job_skipped", Reason: joined(k.Job+"@"+stamp(k.Tick), k.Reason)})
	}
	return Result{Index: index}
}

func (s *State) pauseJob(index uint64, c Command) Result {
	p := c.PauseJob
	if p.Job == "" {
		return reject(index, BadEntry, "a pause names a job")
	}
	v := s.job(p.Job)
	if !p.Until.After(c.At) {
		if v.PausedUntil.IsZero() {
			return reject(index, NoSuch, fmt.Sprintf("job %s is not paused", p.Job))
		}
		v.PausedUntil, v.PauseReason, v.PausedBy = time.Time{}, "", ""
		s.tell(index, c, Event{Kind: "job_resumed", Reason: joined(p.Job, p.Reason)})
		return Result{Index: index}
	}
	v.PausedUntil, v.PauseReason, v.PausedBy = p.Until, p.Reason, cmp.Or(p.By, c.By)
	s.tell(index, c, Event{Kind: "job_paused", Reason: joined(p.Job, "until "+stamp(p.Until), cmp.Or(p.Reason, "no reason given"))})
	return Result{Index: index}
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
