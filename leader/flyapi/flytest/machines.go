package flytest

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	fly "github.com/superfly/fly-go"
)

// launchInput is the body of create and update.
type launchInput struct {
	fly.LaunchMachineInput
	CurrentVersion string `json:"current_version"`
}

// with runs fn with the fleet's lock held on the machine of the call. Writes
// to a machine whose host is gone fail.
func (s *Server) with(c *call, fn func(*machine) error) error {
	s.fleet.mu.Lock()
	defer s.fleet.mu.Unlock()
	m, err := s.fleet.find(c.app, c.id)
	if err != nil {
		return err
	}
	if err := m.unreachable(c.r.Method); err != nil {
		return err
	}
	return fn(m)
}

func (m *machine) unreachable(method string) error {
	if m.host != fly.HostStatusOk && method != http.MethodGet {
		return failf(http.StatusServiceUnavailable, "unavailable: host of machine %s is unreachable", m.id)
	}
	return nil
}

func (s *Server) list(c *call) (reply, error) {
	q := c.r.URL.Query()
	f := s.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.apps[c.app]
	if a == nil {
		return reply{}, notFound("app not found")
	}
	fresh := f.timing.ListLag <= 0
	if k, err := c.r.Cookie("fly_flaps_affinity"); err == nil && k.Value == s.cookie {
		fresh = true
	}
	out := []wireMachine{}
	for _, m := range a.sorted() {
		v, known := m.view, true
		if !fresh {
			v, known = m.asOf(time.Now().Add(-f.timing.ListLag))
		}
		if !known || !listed(v, q) || time.Now().Before(m.hidden) {
			continue
		}
		w := v.wire()
		if l := m.held(); l != nil && q.Get("include_leases") == "true" {
			d := l.data(false)
			d.Version = "" // a listing does not tell
			w.Lease = &d
		}
		if q.Get("summary") == "true" {
			w.IncompleteConfig, w.Config = nil, &fly.MachineConfig{Metadata: v.config.Metadata}
		}
		out = append(out, w)
	}
	return ok(out)
}

// asOf returns what a listing showed at a time.
func (m *machine) asOf(t time.Time) (view, bool) {
	for _, p := range slices.Backward(m.past) {
		if !p.at.After(t) {
			return p.view, true
		}
	}
	return view{}, false
}

func listed(v view, q url.Values) bool {
	if v.state == fly.MachineStateDestroyed && q.Get("include_deleted") != "true" {
		return false
	}
	if r := q.Get("region"); r != "" && r != v.region {
		return false
	}
	if states := list(q["state"]); len(states) > 0 && !slices.Contains(states, v.state) {
		return false
	}
	for k, want := range q {
		if key, ok := strings.CutPrefix(k, "metadata."); ok && v.config.Metadata[key] != want[0] {
			return false
		}
	}
	return true
}

// list returns the values of a query parameter that is repeated or has commas.
func list(values []string) []string {
	var out []string
	for _, v := range values {
		for p := range strings.SplitSeq(v, ",") {
			if p != "" {
				out = append(out, p)
			}
		}
	}
	return out
}

func (s *Server) create(c *call) (reply, error) {
	var in launchInput
	if err := c.read(&in); err != nil {
		return reply{}, err
	}
	c.name = in.Name
	if in.Config == nil {
		return reply{}, failf(http.StatusBadRequest, "invalid_argument: machine config is required")
	}
	region := in.Region
	if region == "" {
		region = s.opts.Regions[0]
	}
	if !slices.Contains(s.opts.Regions, region) {
		return reply{}, failf(http.StatusBadRequest, "invalid_argument: region %s not found", region)
	}
	f := s.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.apps[c.app]
	if a == nil {
		return reply{}, notFound("app not found")
	}
	m, err := f.add(a, fly.MachineStateCreated, in.Name, region, in.Config)
	if err != nil {
		return reply{}, err
	}
	m.cordoned = in.SkipServiceRegistration
	c.machine, c.name = m.id, m.name
	w := m.wire()
	if in.LeaseTTL > 0 {
		w.Nonce = f.grant(m, c.owner, "", time.Duration(in.LeaseTTL)*time.Second).nonce
	}
	f.launch(m, !in.SkipLaunch)
	return ok(w)
}

func (s *Server) get(c *call) (reply, error) {
	var w wireMachine
	err := s.with(c, func(m *machine) error {
		w = m.wire()
		return nil
	})
	return reply{code: http.StatusOK, body: w}, err
}

func (s *Server) update(c *call) (reply, error) {
	var in launchInput
	if err := c.read(&in); err != nil {
		return reply{}, err
	}
	if in.Config == nil {
		return reply{}, failf(http.StatusBadRequest, "invalid_argument: machine config is required")
	}
	var w wireMachine
	err := s.with(c, func(m *machine) error {
		if err := m.refused(c.nonce); err != nil {
			return err
		}
		if v := in.CurrentVersion; v != "" && v != m.instanceID {
			return preconditionf("machine version mismatch: expected %s, current %s", v, m.instanceID)
		}
		err := s.fleet.update(m, in.Config, in.Name, in.Region, in.SkipLaunch)
		w = m.wire()
		return err
	})
	return reply{code: http.StatusOK, body: w}, err
}

func (s *Server) destroy(c *call) (reply, error) {
	q := c.r.URL.Query()
	kill := q.Get("kill") == "true" || q.Get("force") == "true"
	err := s.fleet.whenFree(c.ctx, c.app, c.id, c.nonce, func(m *machine) error {
		if err := m.unreachable(c.r.Method); err != nil {
			return err
		}
		return s.fleet.destroyMachine(m, kill)
	})
	return done(err)
}

// done is the answer of an action that has nothing to tell.
func done(err error) (reply, error) {
	return reply{code: http.StatusOK, body: map[string]bool{"ok": true}}, err
}

func (s *Server) start(c *call) (reply, error) {
	var before string
	err := s.with(c, func(m *machine) error {
		if err := m.refused(c.nonce); err != nil {
			return err
		}
		before = m.state
		return s.fleet.start(m)
	})
	return reply{code: http.StatusOK, body: fly.MachineStartResponse{Status: "starting", PreviousState: before}}, err
}

func (s *Server) stop(c *call) (reply, error) {
	var in struct {
		Signal  signalName   `json:"signal"`
		Timeout fly.Duration `json:"timeout"`
	}
	if err := c.read(&in); err != nil {
		return reply{}, err
	}
	if err := valid(in.Signal); err != nil {
		return reply{}, err
	}
	return done(s.fleet.whenFree(c.ctx, c.app, c.id, c.nonce, func(m *machine) error {
		if err := m.unreachable(c.r.Method); err != nil {
			return err
		}
		return s.fleet.stopMachine(m, string(in.Signal), in.Timeout.Duration)
	}))
}

func valid(s signalName) error {
	if s == "" {
		return nil
	}
	if _, err := signalNumber(string(s)); err != nil {
		return failf(http.StatusBadRequest, "invalid_argument: %v", err)
	}
	return nil
}

// leased runs an action that a foreign lease refuses.
func (s *Server) leased(c *call, act func(*machine) error) (reply, error) {
	return done(s.with(c, func(m *machine) error {
		if err := m.refused(c.nonce); err != nil {
			return err
		}
		return act(m)
	}))
}

func (s *Server) suspend(c *call) (reply, error) { return s.leased(c, s.fleet.suspend) }

func (s *Server) restart(c *call) (reply, error) {
	q := c.r.URL.Query()
	signal := q.Get("signal")
	if err := valid(signalName(signal)); err != nil {
		return reply{}, err
	}
	var timeout time.Duration
	if t := q.Get("timeout"); t != "" {
		d, err := time.ParseDuration(t)
		if n, nerr := strconv.Atoi(t); err != nil && nerr == nil {
			d, err = time.Duration(n)*time.Second, nil
		}
		if err != nil {
			return reply{}, failf(http.StatusBadRequest, "invalid_argument: timeout: %v", err)
		}
		timeout = d
	}
	if q.Get("force_stop") == "true" {
		signal, timeout = "SIGKILL", time.Nanosecond
	}
	return s.leased(c, func(m *machine) error { return s.fleet.restart(m, signal, timeout) })
}

func (s *Server) signal(c *call) (reply, error) {
	var in struct {
		Signal signalName `json:"signal"`
	}
	if err := c.read(&in); err != nil {
		return reply{}, err
	}
	if in.Signal == "" {
		return reply{}, failf(http.StatusBadRequest, "invalid_argument: signal is required")
	}
	if err := valid(in.Signal); err != nil {
		return reply{}, err
	}
	var inst Instance
	rep, err := s.leased(c, func(m *machine) error {
		if inst = m.inst; inst == nil {
			return preconditionf("unable to signal machine from current state: '%s'", m.state)
		}
		return nil
	})
	if err == nil {
		err = inst.Signal(string(in.Signal))
	}
	return rep, err
}

func (s *Server) exec(c *call) (reply, error) {
	return s.leased(c, func(*machine) error {
		return failf(http.StatusNotImplemented, "unimplemented: the emulator does not run exec")
	})
}

func (s *Server) cordon(c *call) (reply, error) { return s.setCordon(c, true) }

func (s *Server) uncordon(c *call) (reply, error) { return s.setCordon(c, false) }

func (s *Server) setCordon(c *call, on bool) (reply, error) {
	return s.leased(c, func(m *machine) error {
		if m.cordoned != on {
			m.cordoned = on
			s.fleet.changedMachine(m)
		}
		return nil
	})
}

func (s *Server) ps(c *call) (reply, error) {
	var inst Instance
	err := s.with(c, func(m *machine) error {
		if m.state != fly.MachineStateStarted {
			return preconditionf("machine is not started")
		}
		inst = m.inst
		return nil
	})
	out := []fly.ProcessStat{}
	if err == nil && inst != nil {
		out = append(out, inst.Processes()...)
	}
	return reply{code: http.StatusOK, body: out}, err
}

func (s *Server) events(c *call) (reply, error) {
	var out []event
	err := s.with(c, func(m *machine) error {
		out = m.wire().Events
		return nil
	})
	return reply{code: http.StatusOK, body: out}, err
}

// client returns the machine as fly-go would have read it; with mu held.
func (m *machine) client() *fly.Machine {
	b, err := json.Marshal(m.wire())
	if err != nil {
		panic(err) // every field can be written
	}
	out := new(fly.Machine)
	if err := json.Unmarshal(b, out); err != nil {
		panic(err)
	}
	return out
}
