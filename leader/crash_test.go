package leader_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"flymesh/leader/decide"
	"flymesh/leader/flyapi/flytest"
	"flymesh/raftstore/state"
)

// The crash matrix: every step of every operation, times the moment at which
// its leader dies, times what the API answers to the step's call. However it
// goes, the end is exactly the machines that were asked for, no orphan, no
// double, and the cap held at every instant.

// journey is one way of an operation, from what the service has to what is asked.
type journey struct {
	name   string
	have   int // machines that run
	pool   int // stopped ones beside them
	want   int
	stages []stage
}

// stage is a step that gets committed and the API call that it makes, if any.
type stage struct {
	step state.Step
	call string // action in the emulator's audit; empty: it only looks
}

var journeys = []journey{
	{"create", 1, 0, 2, []stage{
		{state.StepIntent, "list"}, {state.StepCreating, "create"}, {state.StepBooting, "get"}, {state.StepWarming, "get"},
	}},
	{"start", 1, 1, 2, []stage{
		{state.StepIntent, "list"}, {state.StepStarting, "start"}, {state.StepBooting, "get"}, {state.StepWarming, "get"},
	}},
	{"remove", 2, 0, 1, []stage{
		{state.StepIntent, "get"}, {state.StepCordon, "set_metadata"}, {state.StepCordon, "cordon"}, {state.StepDrain, ""}, {state.StepStopping, "stop"},
	}},
	{"suspend", 2, 0, 1, []stage{
		{state.StepIntent, "get"}, {state.StepCordon, "set_metadata"}, {state.StepCordon, "cordon"}, {state.StepDrain, ""}, {state.StepStopping, "suspend"},
	}},
}

// deaths are the moments at which the leader dies around a stage.
var deaths = []string{"never", "before commit", "after commit", "after the call", "after the answer"}

// answers are what the API does with the stage's first call.
var answers = []struct {
	name  string
	fault *flytest.Fault
}{
	{"ok", nil},
	{"lost before", &flytest.Fault{Drop: "before"}},
	{"lost after", &flytest.Fault{Drop: "after"}},
	{"408", &flytest.Fault{Status: 408}},
	{"409 lease", &flytest.Fault{Status: 409, Body: `{"error":"aborted: machine ID x, lease currently held by deploy, expires at 2030-01-01T00:00:00Z"}`}},
	{"409 update", &flytest.Fault{Status: 409, Body: `{"error":"aborted: machine update failed due to concurrent update"}`}},
	{"409 host full", &flytest.Fault{Status: 409, Body: `{"error":"aborted: could not reserve resource for machine: insufficient memory available to fulfill request"}`}},
	{"409 starting", &flytest.Fault{Status: 409, Body: `{"error":"aborted: machine still attempting to start"}`}},
	{"412 state", &flytest.Fault{Status: 412, Body: `{"error":"failed_precondition: unable to start machine from current state: 'replacing'"}`}},
	{"412 active", &flytest.Fault{Status: 412, Body: `{"error":"machine still active, refusing to start"}`}},
	{"422 region full", &flytest.Fault{Status: 422, Body: `{"error":"could not find a candidate host","status":"insufficient_capacity"}`}},
	{"429", &flytest.Fault{Status: 429}},
	{"500", &flytest.Fault{Status: 500}},
	{"502", &flytest.Fault{Status: 502}},
	{"502 after commit", &flytest.Fault{Status: 502, Drop: "after"}},
	{"503", &flytest.Fault{Status: 503}},
	{"hang", &flytest.Fault{Delay: flytest.Delay(90 * time.Second)}},
}

type outcome struct {
	alerts int // operations that ended failed on the way
	took   time.Duration
}

func TestCrashMatrix(t *testing.T) {
	share := 10 // every share-th case; `make matrix` and CI run all of them
	if v, err := strconv.Atoi(os.Getenv("FLYMESH_MATRIX_SHARE")); err == nil && v > 0 {
		share = v
	}
	cases, alerted, n := 0, 0, 0
	for _, j := range journeys {
		for i := range j.stages {
			for _, death := range deaths {
				for a := range answers {
					if n++; n%share != 0 {
						continue
					}
					if answers[a].fault != nil && j.stages[i].call == "" {
						continue // the stage makes no call that could be answered
					}
					name := strings.ReplaceAll(fmt.Sprintf("%s/%d-%s-%s/%s/%s", j.name, i, j.stages[i].step, j.stages[i].call, death, answers[a].name), " ", "_")
					var o outcome
					ok := t.Run(name, func(t *testing.T) { o = crash(t, j, j.stages[i], death, answers[a].fault) })
					cases++
					if ok && o.alerts > 0 {
						alerted++
					}
				}
			}
		}
	}
	t.Logf("%d cases; in %d an operation failed on the way and was reported before the wanted state was reached by another", cases, alerted)
}

func crash(t *testing.T, j journey, st stage, death string, fault *flytest.Fault) (o outcome) {
	bubble(t, flytest.DefaultTiming(), func(s *stand) {
		s.offer(0.5 * float64(j.want)) // neither rule has anything to say
		s.seed("more", j.have-1, true)
		s.seed("pool", j.pool, false)
		s.lead("v0")
		s.await("a primary", time.Minute, func() bool { return s.raft.state().Service("n8n").Primary != "" })
		primary := s.raft.state().Service("n8n").Primary

		var died atomic.Bool
		die := func() {
			if died.CompareAndSwap(false, true) {
				go s.lead("v1")
			}
		}
		s.raft.hook(func(c state.Command) {
			if death == "before commit" && reaches(c, st.step) {
				die()
			}
		}, func(c state.Command) {
			if death == "after commit" && reaches(c, st.step) {
				die()
			}
		})
		if fault != nil {
			f := *fault
			f.Action, f.Count, f.App = st.call, 1, appName
			s.armAt(st.step, f)
		}
		watch := s.watchCap(3)
		s.scale(j.want)
		if death == "after the call" || death == "after the answer" {
			s.dieAtCall(st, death, die)
		}
		o.took = s.await("the wanted machines", 2*time.Hour, func() bool {
			st := s.raft.state()
			return len(s.started()) == j.want && len(st.Ops) == 0 && st.Service("n8n").Manual == nil
		})
		time.Sleep(3 * time.Minute) // nothing may come after
		if over := watch(); over != "" {
			t.Errorf("%s\n%s", over, s.story())
		}
		s.checkEnd(t, j, primary)
		for _, e := range s.raft.state().Events {
			if strings.HasSuffix(e.Kind, "_failed") {
				o.alerts++
			}
		}
	}, func(s *stand) { s.svcs[0].Suspend = j.name == "suspend" })
	return o
}

// reaches says whether a command commits the step.
func reaches(c state.Command, step state.Step) bool {
	if c.Begin != nil {
		return step == state.StepIntent
	}
	return c.Advance != nil && c.Advance.To == step && c.Advance.From != step
}

// armAt arms a fault when the step is committed, so that it meets the step's
// own call and not the loop's listing before it.
func (s *stand) armAt(step state.Step, f flytest.Fault) {
	var armed atomic.Bool
	s.raft.also(func(c state.Command) {
		if reaches(c, step) && armed.CompareAndSwap(false, true) {
			if err := s.api.AddFaults(f); err != nil {
				s.t.Error(err)
			}
		}
	})
}

// dieAtCall kills the leader when the emulator has seen the stage's call: at
// once, or when it has been answered.
func (s *stand) dieAtCall(st stage, death string, die func()) {
	if st.call == "" {
		return
	}
	var began atomic.Bool
	s.raft.also(func(c state.Command) {
		if !reaches(c, st.step) || !began.CompareAndSwap(false, true) {
			return
		}
		seen := s.calls(st.call)
		go func() {
			for range 20000 {
				if s.calls(st.call) > seen {
					if death == "after the answer" {
						time.Sleep(5 * time.Millisecond)
					}
					die()
					return
				}
				time.Sleep(time.Millisecond)
			}
		}()
	})
}

// watchCap looks each 20 ms at what counts against the cap.
func (s *stand) watchCap(limit int) (done func() string) {
	stop, found := make(chan struct{}), make(chan string, 1)
	go func() {
		worst := ""
		t := time.NewTicker(20 * time.Millisecond)
		defer t.Stop()
		for {
			select {
			case <-stop:
				found <- worst
				return
			case <-t.C:
			}
			n := 0
			for _, m := range s.machines() {
				if !decide.Rests(m.State, time.Time{}, time.Now()) {
					n++
				}
			}
			if n > limit && worst == "" {
				worst = fmt.Sprintf("%d machines at %s, the cap is %d", n, time.Now().Format("15:04:05"), limit)
			}
		}
	}()
	return func() string { close(stop); return <-found }
}

// checkEnd holds the end against the journey: exactly the machines that were
// meant, the primary among them, none cordoned, none forgotten.
func (s *stand) checkEnd(t *testing.T, j journey, primary string) {
	t.Helper()
	ms := s.machines()
	if most := max(j.have+j.pool, j.want); len(ms) > most+s.failures() {
		t.Errorf("%d machines exist, at most %d were meant\n%s", len(ms), most+s.failures(), s.story())
	}
	running, found := 0, false
	for _, m := range ms {
		if m.State != "started" {
			continue
		}
		running++
		found = found || m.ID == primary
		if m.Cordoned {
			t.Errorf("machine %s runs, but is left cordoned\n%s", m.ID, s.story())
		}
	}
	if running != j.want || !found {
		t.Errorf("%d machines run, want %d; the primary %s among them: %v\n%s", running, j.want, primary, found, s.story())
	}
}

// failures counts the operations that ended failed and the machines whose host
// was full: each may leave one stopped machine behind, which the next operation
// starts or avoids.
func (s *stand) failures() (n int) {
	for _, e := range s.raft.state().Events {
		if e.Kind == "up_failed" || strings.Contains(e.Reason, "intent: the host of") {
			n++
		}
	}
	return n
}
