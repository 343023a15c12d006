package leader

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"flymesh/raftstore/state"
)

// What a leader that has lost all state finds of a job in the metadata of
// machines, under these and the job's name in lower case.
const (
	MetaJob   = "flymesh_job_"   // its newest tick that was claimed or skipped
	MetaPause = "flymesh_pause_" // its pause, see pauseNote
)

func metaJob(job string) string { return MetaJob + strings.ToLower(job) }

func metaPause(job string) string { return MetaPause + strings.ToLower(job) }

// pauseNote is a job's pause, or its end. The newest one counts, on whatever
// machine it is.
type pauseNote struct {
	At     time.Time `json:"at"`
	Until  time.Time `json:"until,omitzero"`
	By     string    `json:"by,omitempty"`
	Reason string    `json:"reason,omitempty"`
}

// write puts a value into the metadata of the primary and of one machine
// besides, and reports whether one of them has it.
func (j *jobs) write(ctx context.Context, job Job, key, value string) (written bool) {
	var on []Machine
	primary := j.l.Store.State().Service(job.Service).Primary
	for _, s := range j.l.Services {
		for _, m := range j.l.machines(s) {
			if m.ID == primary {
				on = append([]Machine{m}, on...)
			} else if m.State == "started" {
				on = append(on, m)
			}
		}
	}
	for i, m := range on {
		if i > 1 || j.l.Store.Verify(ctx) != nil {
			break
		}
		err := j.l.Cloud.SetMetadata(ctx, m.App, m.ID, key, value)
		if written = written || err == nil; err != nil {
			j.l.log.Warn("write metadata of job failed", "job", job.Name, "machine", m.ID, "key", key, "error", err)
		}
	}
	return written
}

// remembered is what machines' metadata remembers of a job; false while it is not
// all known.
func (j *jobs) remembered(job string) (last time.Time, pause pauseNote, known bool) {
	for _, s := range j.l.Services {
		n, _ := j.l.listed.of(s.App)
		if n.err != nil || n.began.Before(j.began) {
			return last, pause, false
		}
		for _, m := range n.machines {
			if t, err := time.Parse(time.RFC3339, m.Metadata[metaJob(job)]); err == nil && t.After(last) {
				last = t.UTC()
			}
			var p pauseNote
			if json.Unmarshal([]byte(m.Metadata[metaPause(job)]), &p) == nil && p.At.After(pause.At) {
				pause = p
			}
		}
	}
	return last, pause, true
}

// first says from when ticks count in a state that knows nothing of the job:
// from what the machines' metadata remembers, else from now. A pause that has
// not ended goes on.
func (j *jobs) first(ctx context.Context, job Job, mem state.Job, now time.Time) {
	last, pause, known := j.remembered(job.Name)
	if !known {
		return // what is not known could be a tick that ran
	}
	if last.IsZero() {
		last = now.Truncate(time.Second)
	}
	if pause.Until.After(now) && mem.PausedUntil.IsZero() {
		p := &state.PauseJob{Job: job.Name, Until: pause.Until, Reason: pause.Reason, By: pause.By}
		if _, err := j.l.propose(ctx, j.term, state.Command{PauseJob: p}); err != nil {
			j.l.log.Warn("go on with pause failed", "job", job.Name, "error", err)
			return
		}
	}
	if _, err := j.l.propose(ctx, j.term, state.Command{Skip: &state.Skip{Job: job.Name, Tick: last, Silent: true}}); err != nil && !errors.Is(err, state.ErrRejected) {
		j.l.log.Warn("set first tick failed", "job", job.Name, "error", err)
	}
}

// notePause keeps a job's pause in the metadata, and its end.
func (j *jobs) notePause(ctx context.Context, job Job, mem state.Job) {
	if mem.Last.IsZero() || job.Cron == "" {
		return // the metadata is still to be read; or no tick is to be kept from running
	}
	was, ok := j.noted[job.Name]
	if !ok {
		_, pause, known := j.remembered(job.Name)
		if !known {
			return
		}
		was = pause.Until
		j.noted[job.Name] = was
	}
	now := time.Now().UTC()
	if was.Equal(mem.PausedUntil) || was.Before(now) && mem.PausedUntil.Before(now) {
		return
	}
	b, err := json.Marshal(pauseNote{At: now, Until: mem.PausedUntil, By: mem.PausedBy, Reason: mem.PauseReason})
	if err != nil {
		j.l.log.Error("note pause failed", "job", job.Name, "error", err)
		return
	}
	if j.write(ctx, job, metaPause(job.Name), string(b)) {
		j.noted[job.Name] = mem.PausedUntil
	}
}
