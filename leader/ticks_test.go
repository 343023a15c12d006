package leader_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	fly "github.com/superfly/fly-go"

	"flymesh/leader"
	"flymesh/leader/flyapi/flytest"
	"flymesh/raftstore/state"
)

// ticked runs a bubble in which a job is due at minute 30 of each hour.
func ticked(t *testing.T, f func(s *stand, j *jobSim, tick time.Time)) {
	bubble(t, flytest.DefaultTiming(), func(s *stand) {
		j, cancel := jobStand(s, 1)
		defer cancel()
		j.length = 5 * time.Second
		s.lead("v0")
		tick := time.Now().UTC().Truncate(time.Hour).Add(30 * time.Minute)
		time.Sleep(time.Until(tick) - 10*time.Second)
		f(s, j, tick)
		// An hour and a half: the next tick runs too, and nothing else.
		time.Sleep(time.Until(tick.Add(90 * time.Minute)))
		j.mu.Lock()
		defer j.mu.Unlock()
		first, next := "Nightly@"+tick.Format(time.RFC3339), "Nightly@"+tick.Add(time.Hour).Format(time.RFC3339)
		if len(j.begun) != 2 || j.begun[first] != 1 || j.begun[next] != 1 || len(j.wrong) > 0 {
			t.Errorf("runs %v, wrong %v; want %s and %s once each\n%s", j.begun, j.wrong, first, next, s.story())
		}
		said := map[string]string{}
		for _, r := range s.raft.state().Job("Nightly").Runs {
			said[r.ID] = fmt.Sprintf("%s of %s", r.State, r.Tick.Format(time.RFC3339))
			if r.ID == first {
				t.Logf("tick %s: %s, began %s after it", r.Tick.Format(time.TimeOnly), r.State, r.Started.Sub(r.Tick).Round(time.Second))
			}
		}
		if want := "done of " + tick.Format(time.RFC3339); said[first] != want {
			t.Errorf("the record says %q, want %q", said, want)
		}
	}, func(s *stand) { s.tweak = withJob("30 * * * *", 20*time.Minute) })
}

func TestTickDuringElection(t *testing.T) {
	ticked(t, func(s *stand, _ *jobSim, _ time.Time) {
		s.raft.elect("")
		time.Sleep(25 * time.Second)
		s.lead("v1")
	})
}

func TestTickDuringTotalLoss(t *testing.T) {
	ticked(t, func(s *stand, _ *jobSim, _ time.Time) {
		// The metadata knows the tick of the hour before.
		primary := s.raft.state().Service("n8n").Primary
		last := time.Now().UTC().Truncate(time.Hour).Add(-30 * time.Minute)
		if err := s.voters[0].cloud.SetMetadata(context.Background(), appName, primary, leader.MetaJob+"nightly", last.Format(time.RFC3339)); err != nil {
			t.Fatal(err)
		}
		s.raft.forget()
		s.raft.elect("")
		time.Sleep(10 * time.Minute)
		s.lead("v2")
	})
}

func TestTickDuringDeploy(t *testing.T) {
	ticked(t, func(s *stand, j *jobSim, tick time.Time) {
		next := s.config()
		next.Metadata["fly_release_version"] = "8"
		if _, err := s.api.Seed(flytest.Spec{App: appName, Name: "green", Config: fly.MachineConfig(next), Start: true}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		j.mu.Lock()
		defer j.mu.Unlock()
		if len(j.begun) != 0 {
			t.Errorf("a run began in the middle of a deploy, %s after its tick\n%s", time.Since(tick), s.story())
		}
	})
}

// TestNewLeaderGrantsAFullLease: a leader that has heard nothing yet does not
// take a holder for silent.
func TestNewLeaderGrantsAFullLease(t *testing.T) {
	bubble(t, flytest.DefaultTiming(), func(s *stand) {
		s.lead("v0")
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		m := newLockSim(ctx, s, 1)
		holdFrozen(s, m)
		s.lead("v1")
		least := leader.LockLease + leader.LockMargin + leader.LockGrace + leader.LockDelay
		if d := s.await("the expiry lock", time.Minute, func() bool { return s.want(m, "second", "soft", state.Expiry).OK }); d < least {
			t.Errorf("granted again %s after the election, want at least %s", d, least)
		}
	})
}

// TestTickTooOld: after an outage that is longer than misfire the tick is
// skipped, with the reason in its record, and the next one runs.
func TestTickTooOld(t *testing.T) {
	bubble(t, flytest.DefaultTiming(), func(s *stand) {
		j, cancel := jobStand(s, 1)
		defer cancel()
		s.lead("v0")
		tick := time.Now().UTC().Truncate(time.Hour).Add(30 * time.Minute)
		time.Sleep(time.Until(tick) - 10*time.Second)
		s.raft.elect("")
		time.Sleep(10 * time.Minute)
		s.lead("v1")
		time.Sleep(time.Until(tick.Add(65 * time.Minute)))
		j.mu.Lock()
		defer j.mu.Unlock()
		runs := s.raft.state().Job("Nightly").Runs
		if len(runs) != 2 || runs[0].State != state.RunSkipped || !runs[0].Tick.Equal(tick) || !strings.Contains(runs[0].Detail, "missed by more than 5m0s: no leader could run it in time") ||
			runs[1].State != state.RunDone || !runs[1].Tick.Equal(tick.Add(time.Hour)) || len(j.begun) != 1 {
			t.Errorf("runs %+v, begun %v\n%s", runs, j.begun, s.story())
		}
	}, func(s *stand) { s.tweak = withJob("30 * * * *", 5*time.Minute) })
}

// TestPauseOutlivesAllState: a pause is in the metadata of machines, and so is
// its end.
func TestPauseOutlivesAllState(t *testing.T) {
	bubble(t, flytest.DefaultTiming(), func(s *stand) {
		j, cancel := jobStand(s, 1)
		defer cancel()
		j.length = 5 * time.Second
		s.lead("v0")
		time.Sleep(time.Minute)
		loseAll := func() {
			time.Sleep(time.Minute)
			s.raft.forget()
			s.raft.elect("")
			time.Sleep(time.Minute)
			s.lead("v1")
		}
		until := time.Now().UTC().Add(3 * time.Hour)
		s.raft.person(state.Command{By: "ann", PauseJob: &state.PauseJob{Job: "Nightly", Until: until, Reason: "slow source"}})
		loseAll()
		time.Sleep(time.Hour)
		if job := s.raft.state().Job("Nightly"); !job.PausedUntil.Equal(until) || job.PausedBy != "ann" || job.PauseReason != "slow source" || len(j.begun) != 0 {
			t.Fatalf("in the new epoch: %+v, begun %v\n%s", job, j.begun, s.story())
		}
		s.raft.person(state.Command{By: "ann", PauseJob: &state.PauseJob{Job: "Nightly", Until: time.Now().UTC()}})
		loseAll()
		time.Sleep(time.Hour)
		j.mu.Lock()
		defer j.mu.Unlock()
		if job := s.raft.state().Job("Nightly"); !job.PausedUntil.IsZero() || len(j.begun) != 1 {
			t.Errorf("after the end of the pause: %+v, begun %v\n%s", job, j.begun, s.story())
		}
	}, func(s *stand) { s.tweak = withJob("30 * * * *", 5*time.Minute) })
}

// TestRunEndedByForce: a person who frees a job's lock ends its run; the record
// says who and why, and the next tick runs.
func TestRunEndedByForce(t *testing.T) {
	bubble(t, flytest.DefaultTiming(), func(s *stand) {
		j, cancel := jobStand(s, 1)
		defer cancel()
		s.lead("v0")
		s.await("a run", 20*time.Minute, func() bool {
			j.mu.Lock()
			defer j.mu.Unlock()
			return len(j.active) == 1
		})
		j.mu.Lock()
		j.slow = 3 * time.Second // of the agent's word that nothing runs; the run's own end comes first
		j.mu.Unlock()
		if _, err := s.voters[0].leader.ForceUnlock(context.Background(), state.JobLock("Nightly"), "r1", "ann", "the source hangs"); err != nil {
			t.Fatal(err)
		}
		runs := s.raft.state().Job("Nightly").Runs
		if r := runs[len(runs)-1]; r.State != state.RunLost || !strings.Contains(r.Detail, "forced: the source hangs; its machine said that the work has ended") {
			t.Errorf("the record says %s: %s\n%s", r.State, r.Detail, s.story())
		}
		s.await("the next tick's run", 6*time.Minute, func() bool { return s.raft.state().Job("Nightly").Running != nil })
	}, func(s *stand) { s.tweak = withJob("*/5 * * * *", 5*time.Minute) })
}
