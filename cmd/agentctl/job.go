package main

import (
	"fmt"
	"strings"
	"time"

	"flymesh/agent/api"
	"flymesh/leader"
	"flymesh/raftstore/state"
)

type jobCmd struct {
	List    jobListCmd    `cmd:"" help:"show the jobs"`
	Run     jobRunCmd     `cmd:"" help:"run a job now, on the primary of its service"`
	Pause   jobPauseCmd   `cmd:"" help:"skip a job's ticks for a while"`
	Resume  jobResumeCmd  `cmd:"" help:"end a pause"`
	History jobHistoryCmd `cmd:"" help:"show what became of each tick"`
}

type jobListCmd struct {
	JSON bool `help:"print JSON"`
}

// Run prints one line a job.
func (c *jobListCmd) Run(s *session) error {
	all, err := s.client.Jobs(s.ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(s.out, all, true)
	}
	t := newTable(s.out)
	t.row("JOB", "SERVICE", "CRON", "NEXT", "NOW", "LAST")
	for _, j := range all {
		now, last, next := "-", "-", "-"
		switch {
		case j.Running != nil:
			now = fmt.Sprintf("%s on %s", j.Running.State, j.Running.Machine)
		case j.PausedUntil.After(time.Now()):
			now = fmt.Sprintf("paused until %s: %s", moment(j.PausedUntil), j.PauseReason)
		case j.Waits != "":
			now = "waits: " + j.Waits
		}
		if n := len(j.Runs); n > 0 {
			last = fmt.Sprintf("%s %s", j.Runs[n-1].ID, j.Runs[n-1].State)
		}
		if !j.Next.IsZero() {
			next = moment(j.Next)
		}
		t.row(j.Name, j.Service, dash(j.Cron), next, now, last)
	}
	return t.flush()
}

func moment(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02T15:04:05Z")
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

type jobRunCmd struct {
	Name   string   `arg:"" help:"of the job"`
	Arg    []string `placeholder:"K=V" sep:"none" help:"an argument, such as batch_size=64; may be repeated"`
	Reason string   `placeholder:"T" help:"why, for the events"`
}

// Run runs a job now.
func (c *jobRunCmd) Run(s *session) error {
	args := map[string]string{}
	for _, a := range c.Arg {
		k, v, ok := strings.Cut(a, "=")
		if !ok || k == "" {
			return usage("job run %s --arg %s: an argument is NAME=VALUE, such as batch_size=64", c.Name, a)
		}
		args[k] = v
	}
	a, err := s.client.RunJob(s.ctx, api.JobRequest{Job: c.Name, Args: args, Reason: c.Reason, By: who()})
	return s.accepted(a, err)
}

type jobPauseCmd struct {
	Name   string `arg:"" help:"of the job"`
	For    string `default:"24h" placeholder:"24h" help:"how long; a pause always has an end"`
	Reason string `placeholder:"T" help:"why, for the events"`
}

// Run pauses a job.
func (c *jobPauseCmd) Run(s *session) error {
	d, err := time.ParseDuration(c.For)
	if err != nil || d <= 0 {
		return usage("job pause %s --for %s: %q is not a duration above 0; use 30m, 2h or 24h", c.Name, c.For, c.For)
	}
	a, err := s.client.PauseJob(s.ctx, api.JobRequest{Job: c.Name, For: d, Reason: c.Reason, By: who()})
	return s.accepted(a, err)
}

type jobResumeCmd struct {
	Name   string `arg:"" help:"of the job"`
	Reason string `placeholder:"T" help:"why, for the events"`
}

// Run ends a pause.
func (c *jobResumeCmd) Run(s *session) error {
	a, err := s.client.PauseJob(s.ctx, api.JobRequest{Job: c.Name, Reason: c.Reason, By: who()})
	return s.accepted(a, err)
}

type jobHistoryCmd struct {
	Name string `arg:"" help:"of the job"`
	JSON bool   `help:"print JSON"`
}

// Run prints one line a tick, oldest first.
func (c *jobHistoryCmd) Run(s *session) error {
	all, err := s.client.Jobs(s.ctx)
	if err != nil {
		return err
	}
	var job *leader.JobView
	var names []string
	for i, j := range all {
		names = append(names, j.Name)
		if j.Name == c.Name {
			job = &all[i]
		}
	}
	if job == nil {
		return usage("job history %s: there is no such job; there are %s", c.Name, strings.Join(names, ", "))
	}
	runs := job.Runs
	if job.Running != nil {
		runs = append(runs, *job.Running)
	}
	if c.JSON {
		return printJSON(s.out, append([]state.Run{}, runs...), true)
	}
	t := newTable(s.out)
	t.row("TICK", "STATE", "MACHINE", "STARTED", "TOOK", "TOKEN", "BY", "WHAT")
	for _, r := range runs {
		took := "-"
		if !r.Started.IsZero() && !r.Ended.IsZero() {
			took = r.Ended.Sub(r.Started).Round(100 * time.Millisecond).String()
		}
		tick := moment(r.Tick)
		if r.Tick.IsZero() {
			tick = "by hand"
		}
		t.row(tick, string(r.State), dash(r.Machine), moment(r.Started), took, dash(r.Token), dash(r.By), dash(r.Detail))
	}
	return t.flush()
}
