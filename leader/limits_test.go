package leader_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"flymesh/leader/decide"
	"flymesh/leader/flyapi/flytest"
)

const (
	noRoom   = `{"error":"could not find a candidate host","status":"insufficient_capacity"}`
	fullHost = `{"error":"aborted: could not reserve resource for machine: insufficient memory available to fulfill request"}`
)

// TestNextRegion fills one region after the other.
func TestNextRegion(t *testing.T) {
	regions := func(s *stand) { s.svcs[0].Regions = []string{"fra", "ams"} }
	bubble(t, flytest.FlyTiming(), func(s *stand) {
		s.lead("v0")
		time.Sleep(time.Minute)
		s.fault(flytest.Fault{Action: "create", Status: 422, Body: noRoom, Count: 1})
		s.scale(2)
		s.await("a second machine", 5*time.Minute, func() bool { return len(s.started()) == 2 })
		for _, m := range s.machines() {
			if m.Op != "" && m.Region != "ams" {
				t.Errorf("machine %s is in %s, want ams: fra is full", m.ID, m.Region)
			}
		}
		if n := s.happened("up_failed"); n != 0 {
			t.Errorf("%d operations failed over a full region\n%s", n, s.story())
		}
		// Both are full: the operation fails, and the breaker says why.
		s.fault(flytest.Fault{Action: "create", Status: 422, Body: noRoom, Count: 2})
		s.scale(3)
		s.await("a failure", 5*time.Minute, func() bool { return s.happened("up_failed") == 1 })
		s.await("the breaker in why", time.Minute, func() bool { return s.blocked(decide.CodeBreaker) != "" })
		if why := s.blocked(decide.CodeBreaker); !strings.Contains(why, "no room in fra, ams") {
			t.Errorf("breaker: %s", why)
		}
		s.await("a third machine all the same", 5*time.Minute, func() bool { return len(s.started()) == 3 })
		if b := s.blocked(decide.CodeBreaker); b != "" {
			t.Errorf("breaker after a success: %s", b)
		}
	}, regions)
}

// TestFullHostIsRemembered: what cannot start where it is, is not asked again
// for a while, and another stopped machine is tried before one is created.
func TestFullHostIsRemembered(t *testing.T) {
	bubble(t, flytest.FlyTiming(), func(s *stand) {
		s.seed("pool", 2, false)
		s.lead("v0")
		time.Sleep(time.Minute)
		s.fault(flytest.Fault{Action: "start", Status: 409, Body: fullHost, Count: 1})
		s.scale(2)
		s.await("a second machine", 5*time.Minute, func() bool { return len(s.started()) == 2 && len(s.raft.state().Ops) == 0 })
		if n := s.calls("create"); n != 0 {
			t.Errorf("%d creates although another machine of the pool could start\n%s", n, s.story())
		}
		full := ""
		for _, r := range s.api.Requests() {
			if r.Action == "start" && r.Status == 409 {
				full = r.Machine
			}
		}
		s.await("the reason in why", time.Minute, func() bool {
			for _, c := range s.verdict().Counted {
				if c.Machine == full && strings.Contains(c.Why, "its host is full") {
					return true
				}
			}
			return false
		})
		starts := s.startsOf(full)
		s.scale(3)
		s.await("a third machine", 5*time.Minute, func() bool { return len(s.started()) == 3 && len(s.raft.state().Ops) == 0 })
		if n := s.startsOf(full); n != starts {
			t.Errorf("machine %s was asked to start again within 15 m\n%s", full, s.story())
		}
		s.scale(1)
		s.await("one machine", 30*time.Minute, func() bool { return len(s.started()) == 1 && s.mem().Manual == nil })
		time.Sleep(20 * time.Minute)
		s.scale(3)
		s.await("three machines", 30*time.Minute, func() bool { return len(s.started()) == 3 })
		if n := s.calls("create"); n != 1 {
			t.Errorf("%d creates, want the one while the host was full\n%s", n, s.story())
		}
	})
}

// TestNeverReady: a machine that does not become ready is stopped, marked and
// not chosen again for 15 minutes; failures in a row open the breaker longer
// and longer, and why names it.
func TestNeverReady(t *testing.T) {
	bubble(t, flytest.FlyTiming(), func(s *stand) {
		s.lead("v0")
		time.Sleep(time.Minute)
		s.mu.Lock()
		s.dud = true
		s.mu.Unlock()
		s.scale(2)
		s.await("a failure", 10*time.Minute, func() bool { return s.happened("up_failed") == 1 })
		first := ""
		for id := range s.raft.state().Avoid {
			first = id
		}
		s.await("the breaker in why", time.Minute, func() bool { return strings.Contains(s.blocked(decide.CodeBreaker), "not ready after 5m") })
		if got := s.started(); len(got) != 1 || first == "" {
			t.Fatalf("%v run after the failure, avoided %q\n%s", got, first, s.story())
		}
		starts := s.startsOf(first)
		s.await("a second failure", 10*time.Minute, func() bool { return s.happened("up_failed") == 2 })
		if n := s.startsOf(first); n != starts {
			t.Errorf("machine %s was started again within 15 m\n%s", first, s.story())
		}
		s.mu.Lock()
		s.dud = false
		s.mu.Unlock()
		s.await("two machines at last", 30*time.Minute, func() bool { return len(s.started()) == 2 && len(s.raft.state().Ops) == 0 })
	})
}

// TestFailedMachineDoesNotBlock: a machine that the platform has given up
// neither counts nor keeps the others from being removed, and it is not started.
func TestFailedMachineDoesNotBlock(t *testing.T) {
	e := &edit{}
	bubble(t, flytest.FlyTiming(), func(s *stand) {
		s.seed("more", 1, true)
		s.seed("pool", 1, false)
		for _, m := range s.machines() {
			if m.Name == "pool0" {
				e.set(m.ID, "failed")
			}
		}
		s.offer(0.2)
		s.lead("v0")
		s.await("one machine", 30*time.Minute, func() bool { return len(s.started()) == 1 })
		s.offer(2.6)
		s.await("three machines", 40*time.Minute, func() bool { return len(s.started()) == 3 })
		for _, m := range s.machines() {
			if m.Name == "pool0" && s.startsOf(m.ID) > 0 {
				t.Errorf("the failed machine was started\n%s", s.story())
			}
		}
	}, func(s *stand) { s.reach = e.through })
}

// TestCreatedLongAgo: a machine that was created and never started is one of
// the pool after a while.
func TestCreatedLongAgo(t *testing.T) {
	e := &edit{}
	bubble(t, flytest.FlyTiming(), func(s *stand) {
		s.seed("pool", 1, false)
		id := ""
		for _, m := range s.machines() {
			if m.Name == "pool0" {
				id = m.ID
				e.set(id, "created")
			}
		}
		s.lead("v0")
		time.Sleep(time.Minute)
		if counted, _, _ := s.verdict().Tally(); counted != 2 {
			t.Errorf("%d machines count: one that was created a minute ago may be starting", counted)
		}
		time.Sleep(10 * time.Minute)
		if counted, _, _ := s.verdict().Tally(); counted != 1 {
			t.Errorf("%d machines count 11 minutes after the creation", counted)
		}
		s.scale(2)
		s.await("it is started", 5*time.Minute, func() bool { return s.startsOf(id) == 1 })
		e.set(id, "")
		s.await("two machines", 5*time.Minute, func() bool { return len(s.started()) == 2 && len(s.raft.state().Ops) == 0 })
		if n := s.calls("create"); n != 0 {
			t.Errorf("%d creates\n%s", n, s.story())
		}
	}, func(s *stand) { s.reach = e.through })
}

// TestSuspend takes machines out by suspending them, starts them again, and
// stops what the platform will not suspend.
func TestSuspend(t *testing.T) {
	with := func(s *stand) { s.svcs[0].Suspend = true }
	bubble(t, flytest.FlyTiming(), func(s *stand) {
		s.lead("v0")
		time.Sleep(time.Minute)
		s.scale(2)
		s.await("two machines", 5*time.Minute, func() bool { return len(s.started()) == 2 && s.mem().Manual == nil })
		s.scale(1)
		s.await("one machine", 5*time.Minute, func() bool { return len(s.started()) == 1 && s.mem().Manual == nil })
		if s.calls("suspend") != 1 || s.calls("stop") != 0 {
			t.Errorf("%d suspends, %d stops", s.calls("suspend"), s.calls("stop"))
		}
		time.Sleep(10 * time.Minute)
		s.scale(2)
		took := s.await("two machines again", 5*time.Minute, func() bool { return len(s.started()) == 2 && s.mem().Manual == nil })
		if s.calls("create") != 1 || s.happened("up_failed") != 0 {
			t.Errorf("%d creates: the suspended machine should have been started\n%s", s.calls("create"), s.story())
		}
		t.Logf("back from suspension after %s", took)
		s.fault(flytest.Fault{Action: "suspend", Status: 400, Body: `{"error":"machine with more than 2GB of memory cannot be suspended"}`})
		s.scale(1)
		s.await("one machine", 5*time.Minute, func() bool { return len(s.started()) == 1 })
		if s.calls("stop") != 1 {
			t.Errorf("%d stops of what cannot be suspended", s.calls("stop"))
		}
	}, with)
}

// startsOf counts the calls to start one machine.
func (s *stand) startsOf(machine string) (n int) {
	for _, r := range s.api.Requests() {
		if r.Action == "start" && r.Machine == machine {
			n++
		}
	}
	return n
}

func (s *stand) fault(f flytest.Fault) {
	s.t.Helper()
	if err := s.api.AddFaults(f); err != nil {
		s.t.Fatal(err)
	}
}

// edit changes the state that the API tells of machines, for states that the
// emulator does not bring about by itself.
type edit struct {
	mu     sync.Mutex // guards states
	states map[string]string
}

func (e *edit) set(machine, state string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.states == nil {
		e.states = map[string]string{}
	}
	e.states[machine] = state
}

func (e *edit) through(next http.RoundTripper) http.RoundTripper {
	return roundTrip(func(r *http.Request) (*http.Response, error) {
		resp, err := next.RoundTrip(r)
		if err != nil || r.Method != http.MethodGet || resp.StatusCode != http.StatusOK {
			return resp, err
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			return nil, err
		}
		var one map[string]any
		var all []map[string]any
		if json.Unmarshal(b, &all) != nil && json.Unmarshal(b, &one) == nil {
			all = []map[string]any{one}
		}
		e.mu.Lock()
		for _, m := range all {
			if id, ok := m["id"].(string); ok && e.states[id] != "" {
				m["state"] = e.states[id]
			}
		}
		e.mu.Unlock()
		if one != nil {
			b, err = json.Marshal(one)
		} else {
			b, err = json.Marshal(all)
		}
		resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
		return resp, err
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
