package flytest

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	fly "github.com/superfly/fly-go"
)

// wait blocks until the machine is in one of the states, for at most a minute.
func (s *Server) wait(c *call) (reply, error) {
	q := c.r.URL.Query()
	states := list(q["state"])
	if len(states) == 0 {
		states = []string{fly.MachineStateStarted}
	}
	for _, st := range states {
		switch st {
		case fly.MachineStateStarted, fly.MachineStateStopped, fly.MachineStateSuspended, fly.MachineStateDestroyed, "failed", "settled":
		default:
			return reply{}, failf(http.StatusBadRequest, "invalid_argument: cannot wait for state %q", st)
		}
	}
	timeout := time.Minute
	if t := q.Get("timeout"); t != "" {
		n, err := strconv.Atoi(strings.TrimSuffix(t, "s"))
		if err != nil || n < 0 {
			return reply{}, failf(http.StatusBadRequest, "invalid_argument: timeout %q", t)
		}
		timeout = min(timeout, max(time.Second, time.Duration(n)*time.Second))
	}
	version := q.Get("version")
	if version == "" {
		version = q.Get("instance_id")
	}
	end := time.Now().Add(timeout)
	var out reply
	err := s.fleet.await(c.ctx, func() (bool, time.Time, error) {
		m, err := s.fleet.find(c.app, c.id)
		if err != nil {
			return false, time.Time{}, err
		}
		if version != "" && version != m.instanceID {
			return false, time.Time{}, failf(http.StatusBadRequest, "invalid_argument: machine version %s was replaced", version)
		}
		if m.reached(states, q.Get("from_event_id")) {
			out = reply{code: http.StatusOK, body: map[string]any{
				"ok": true, "state": m.state, "version": m.instanceID, "event_id": m.events[0].ID,
			}}
			return true, time.Time{}, nil
		}
		leaving := m.state == fly.MachineStateDestroying || m.state == fly.MachineStateDestroyed
		if leaving && !slices.Contains(states, fly.MachineStateDestroyed) {
			return false, time.Time{}, failf(http.StatusBadRequest, "failed_precondition: machine is %s, it will not be %s", m.state, strings.Join(states, ", "))
		}
		if !time.Now().Before(end) {
			return false, time.Time{}, failf(http.StatusRequestTimeout,
				"deadline_exceeded: machine failed to reach desired state, %s, currently %s", strings.Join(states, ", "), m.state)
		}
		return false, end, nil
	})
	return out, err
}

// reached reports whether the machine is in one of the states, or was since
// the event.
func (m *machine) reached(states []string, from string) bool {
	in := func(state string) bool {
		return slices.Contains(states, state) || (slices.Contains(states, "settled") && !transient(state))
	}
	if in(m.state) {
		return true
	}
	if from == "" {
		return false
	}
	for _, e := range m.events {
		if e.ID == from {
			return false
		}
		if in(e.Status) {
			return slices.ContainsFunc(m.events, func(x event) bool { return x.ID == from })
		}
	}
	return false
}

// leaseAnswer answers acquire and find.
func leaseAnswer(code int, l *lease, secret bool) reply {
	return reply{code: code, body: leaseEnvelope{Status: "success", Data: l.data(secret)}}
}

func (s *Server) findLease(c *call) (reply, error) {
	var out reply
	err := s.with(c, func(m *machine) error {
		l := m.held()
		if l == nil {
			return notFound("lease not found")
		}
		out = leaseAnswer(http.StatusOK, l, l.nonce == c.nonce)
		return nil
	})
	return out, err
}

func (s *Server) acquireLease(c *call) (reply, error) {
	in := struct {
		TTL         int    `json:"ttl"`
		Description string `json:"description"`
	}{TTL: 60}
	if err := c.read(&in); err != nil {
		return reply{}, err
	}
	if t := c.r.URL.Query().Get("ttl"); t != "" {
		n, err := strconv.Atoi(t)
		in.TTL = n
		if err != nil {
			in.TTL = 0
		}
	}
	if in.TTL <= 0 {
		return reply{}, failf(http.StatusBadRequest, "invalid_argument: ttl must be positive")
	}
	var out reply
	err := s.with(c, func(m *machine) error {
		l, err := s.fleet.acquire(m, c.nonce, c.owner, in.Description, time.Duration(in.TTL)*time.Second)
		if err == nil {
			out = leaseAnswer(http.StatusCreated, l, true)
		}
		return err
	})
	return out, err
}

func (s *Server) releaseLease(c *call) (reply, error) {
	rep, err := done(s.with(c, func(m *machine) error { return s.fleet.release(m, c.nonce) }))
	var e *apiError
	if errors.As(err, &e) {
		return reply{}, e
	}
	return rep, err
}
