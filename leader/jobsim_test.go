package leader_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"flymesh/leader"
	"flymesh/leader/flyapi/flytest"
	"flymesh/raftstore/state"
)

// jobSim is the agents' side of jobs: it begins a run when the leader has
// committed the start, and watches from outside that no tick begins twice and
// no two runs overlap.
type jobSim struct {
	s   *stand
	ctx context.Context

	mu     sync.Mutex // guards all below
	rnd    *rand.Rand
	known  map[string]bool       // runs that an agent was told of, by machine and run
	active map[string]state.Lock // runs that are going on
	killed map[string]bool       // by token
	floor  uint64
	begun  map[string]int // by run ID: starts
	ended  int
	wrong  []string
	down   bool // no agent answers
	length time.Duration
	slow   time.Duration // from the end of a run to the agent's word that it has ended
}

func (j *jobSim) n(max int) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.rnd.IntN(max)
}

// start is what the agent of a machine does when it is told.
func (j *jobSim) start(_ context.Context, id string, r leader.JobStart) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.down || j.rnd.IntN(10) == 0 {
		return errLost
	}
	if j.known[id+r.Run+r.Token] {
		return nil
	}
	j.known[id+r.Run+r.Token] = true
	go j.run(id, r)
	return nil
}

func (j *jobSim) ask(r leader.LockRequest) (leader.LockAnswer, error) {
	lose := j.n(12)
	if lose == 0 {
		return leader.LockAnswer{}, errLost
	}
	j.s.raft.mu.Lock()
	lead := j.s.raft.leader
	j.s.raft.mu.Unlock()
	for _, v := range j.s.voters {
		if v.id == lead {
			ctx, cancel := context.WithTimeout(j.ctx, 2*time.Second)
			defer cancel()
			a, err := v.leader.Lock(ctx, r)
			if lose == 1 {
				err = errLost // it was carried out, and nobody heard the answer
			}
			return a, err
		}
	}
	return leader.LockAnswer{}, errLost
}

func (j *jobSim) tell(r leader.LockRequest, until time.Time) bool {
	for time.Now().Before(until) && j.ctx.Err() == nil {
		if a, err := j.ask(r); err == nil {
			return a.OK
		}
		time.Sleep(500 * time.Millisecond)
	}
	return false
}

func (j *jobSim) run(machine string, r leader.JobStart) {
	lock := state.JobLock(r.Job)
	id := fmt.Sprintf("%s-%d", r.Run, j.n(1<<30))
	deadline := time.Now().Add(leader.LockLease)
	if !j.tell(leader.LockRequest{Verb: leader.JobBegin, ID: id, Lock: lock, Token: r.Token}, deadline.Add(-leader.LockGrace)) {
		return
	}
	j.mu.Lock()
	if j.killed[r.Token] || state.Fence(r.Token)>>40 < j.floor {
		j.mu.Unlock()
		return
	}
	if len(j.active) > 0 {
		j.wrong = append(j.wrong, fmt.Sprintf("%s: %s begins while %v goes on", time.Now().Format("15:04:05"), r.Run, j.active))
	}
	j.active[r.Run] = state.Lock{Name: lock, Token: r.Token, Policy: state.Fenced, Holder: state.Holder{Machine: machine, App: appName, Boot: "b", Session: r.Run}}
	if j.begun[r.Run]++; j.begun[r.Run] > 1 {
		j.wrong = append(j.wrong, fmt.Sprintf("%s: %s begins again", time.Now().Format("15:04:05"), r.Run))
	}
	length := time.Duration(1+j.rnd.IntN(int(j.length/time.Second))) * time.Second
	j.mu.Unlock()
	over, next := time.Now().Add(length), time.Now().Add(leader.LockRenew)
	deadline = time.Now().Add(leader.LockLease)
	good := true
	for good && time.Now().Before(over) && j.ctx.Err() == nil {
		time.Sleep(250 * time.Millisecond)
		j.mu.Lock()
		good = good && !j.killed[r.Token]
		j.mu.Unlock()
		if time.Now().After(deadline.Add(-leader.LockGrace)) {
			good = false
		}
		if good && time.Now().After(next) {
			sent := time.Now()
			a, err := j.ask(leader.LockRequest{Verb: leader.LockRenewal, Lock: lock, Token: r.Token})
			switch {
			case err != nil:
				next = time.Now().Add(500 * time.Millisecond)
			case !a.OK:
				good = false
			default:
				deadline, next = sent.Add(a.Lease), time.Now().Add(leader.LockRenew)
			}
		}
	}
	j.mu.Lock()
	delete(j.active, r.Run)
	j.ended++
	j.mu.Unlock()
	j.tell(leader.LockRequest{Verb: leader.JobFinish, ID: id + "f", Lock: lock, Token: r.Token, Failed: !good, Reason: "sim"}, time.Now().Add(time.Minute))
}

func jobStand(s *stand, seed uint64) (*jobSim, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	j := &jobSim{s: s, ctx: ctx, rnd: rand.New(rand.NewPCG(seed, 9)), known: map[string]bool{}, active: map[string]state.Lock{}, killed: map[string]bool{}, begun: map[string]int{}, length: 90 * time.Second}
	s.mu.Lock()
	s.jobs = j
	s.mu.Unlock()
	return j, cancel
}

// held and end are the agent's side of leader.Holders.
func (j *jobSim) held(machine string, epoch uint64) (all []state.Lock, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.down {
		return nil, errLost
	}
	j.floor = max(j.floor, epoch)
	for _, l := range j.active {
		if l.Holder.Machine == machine {
			all = append(all, l)
		}
	}
	return all, nil
}

func (j *jobSim) end(l state.Lock) (bool, string, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.down {
		return false, "", errLost
	}
	j.killed[l.Token] = true
	delete(j.active, l.Holder.Session)
	slow := j.slow
	j.mu.Unlock()
	time.Sleep(slow)
	j.mu.Lock()
	return true, "", nil
}

func withJob(cron string, misfire time.Duration) func(o *leader.Options) {
	return func(o *leader.Options) {
		o.Jobs = []leader.Job{{Name: "Nightly", Service: "n8n", Cron: cron, Misfire: misfire}}
	}
}

// TestJobHistories runs a job each two minutes for half an hour while leaders
// die, agents are deaf and all state is lost: no tick begins twice, no two runs
// overlap, and when all is well again the next tick runs.
func TestJobHistories(t *testing.T) {
	n := seeds(t, 25)
	begun, ended := 0, 0
	states := map[state.RunState]int{}
	for seed := range n {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble(t, flytest.DefaultTiming(), func(s *stand) {
				j, cancel := jobStand(s, uint64(seed))
				defer cancel()
				s.lead("v0")
				for range 20 {
					time.Sleep(time.Duration(5+j.n(90)) * time.Second)
					switch j.n(8) {
					case 0, 1, 2:
						s.raft.elect("")
						time.Sleep(time.Duration(j.n(60)) * time.Second)
						s.lead(fmt.Sprintf("v%d", j.n(3)))
					case 3:
						s.raft.forget()
						s.raft.elect("")
						time.Sleep(time.Duration(10+j.n(60)) * time.Second)
						s.lead(fmt.Sprintf("v%d", j.n(3)))
					case 4:
						j.mu.Lock()
						j.down = !j.down
						j.mu.Unlock()
					case 5:
						_ = s.api.AddFaults(flytest.Fault{Action: "set_metadata", Status: 503, Count: 1 + j.n(6)})
					}
				}
				s.api.ClearFaults()
				j.mu.Lock()
				j.down = false
				was := len(j.begun)
				j.mu.Unlock()
				s.lead("v2")
				s.await("the next tick's run", 15*time.Minute, func() bool {
					j.mu.Lock()
					defer j.mu.Unlock()
					return len(j.begun) > was
				})
				j.mu.Lock()
				defer j.mu.Unlock()
				if len(j.wrong) > 0 {
					t.Errorf("seed %d: %v\n%s", seed, j.wrong, s.story())
				}
				begun, ended = begun+len(j.begun), ended+j.ended
				for _, r := range s.raft.state().Job("Nightly").Runs {
					states[r.State]++
				}
			}, func(s *stand) { s.tweak = withJob("*/5 * * * *", 5*time.Minute) })
		})
		if t.Failed() {
			return
		}
	}
	t.Logf("%d seeds: %d runs began, %d ended; in the histories at the end: %v", n, begun, ended, states)
}
