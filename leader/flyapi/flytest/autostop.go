package flytest

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	fly "github.com/superfly/fly-go"
)

// proxies are the apps over which Fly Proxy's loop runs.
type proxies struct {
	mu   sync.Mutex // guards apps
	apps map[string]context.CancelFunc
}

// traffic is what the proxy knows of the load on one service of an app.
type traffic struct {
	service  func(*machine) *fly.MachineService // nil for a machine that does not serve it
	inFlight map[string]int                     // by machine
	idle     bool                               // nobody has come since the pass before
}

// Autostop makes the proxy do, for an app with routes, what the services in
// its machines' config say, as Fly Proxy does: every so often it stops or
// suspends at most one machine per region where there are more than the load
// needs, and it starts one when a request finds none. A machine whose config
// names no service with autostop or autostart is left alone. An every of 0
// ends it; so does Close.
func (s *Server) Autostop(app string, every time.Duration) {
	seen := make(map[*Route]int)
	s.proxy(app, every, func(ctx context.Context) {
		for _, r := range s.routesOf(app) {
			for id, verb := range s.fleet.excess(app, s.opts.Regions[0], r.traffic(seen)) {
				s.proxyCall(ctx, app, id, verb)
			}
		}
	})
}

// AutostopBy is Autostop for an app without routes: load says, each time, how
// many requests each machine has in flight, and under "" how many find none, for
// whatever service its config names first. With them it starts, at each pass, a machine where all that run
// are over their soft limit.
func (s *Server) AutostopBy(app string, every time.Duration, load func() map[string]int) {
	s.proxy(app, every, func(ctx context.Context) {
		t := traffic{inFlight: load(), idle: true, service: func(m *machine) *fly.MachineService {
			if len(m.config.Services) == 0 {
				return nil
			}
			return &m.config.Services[0]
		}}
		for id, verb := range s.fleet.excess(app, s.opts.Regions[0], t) {
			s.proxyCall(ctx, app, id, verb)
		}
		if id := s.fleet.wanted(app, t); id != "" {
			s.proxyCall(ctx, app, id, "start")
		}
	})
}

// proxy runs a pass over an app every so often, in place of what ran before.
func (s *Server) proxy(app string, every time.Duration, pass func(context.Context)) {
	s.proxies.mu.Lock()
	defer s.proxies.mu.Unlock()
	if stop := s.proxies.apps[app]; stop != nil {
		stop()
		delete(s.proxies.apps, app)
	}
	if every <= 0 {
		return
	}
	ctx, stop := context.WithCancel(s.fleet.ctx)
	if s.proxies.apps == nil {
		s.proxies.apps = make(map[string]context.CancelFunc)
	}
	s.proxies.apps[app] = stop
	s.fleet.mu.Lock()
	defer s.fleet.mu.Unlock()
	s.fleet.spawn(func() {
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
			pass(ctx)
		}
	})
}

func (s *Server) autostops(app string) bool {
	s.proxies.mu.Lock()
	defer s.proxies.mu.Unlock()
	return s.proxies.apps[app] != nil
}

func (s *Server) routesOf(app string) []*Route {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*Route
	for _, r := range s.routes {
		if r.app == app {
			out = append(out, r)
		}
	}
	return out
}

func (s *Server) proxyCall(ctx context.Context, app, id, verb string) {
	err := actor{s, actorProxy}.call(ctx, http.MethodPost, fmt.Sprintf("/v1/apps/%s/machines/%s/%s", app, id, verb), "", nil, nil)
	if err != nil {
		s.log.Debug("proxy is refused", "machine", id, "verb", verb, "error", err)
	}
}

// service returns what a machine's config says of the route's port.
func (r *Route) service(m *machine) *fly.MachineService {
	for i := range m.config.Services {
		if s := &m.config.Services[i]; s.InternalPort == r.port {
			return s
		}
	}
	return nil
}

const defaultSoftLimit = 20

func softLimit(s *fly.MachineService) int {
	if s.Concurrency != nil && s.Concurrency.SoftLimit > 0 {
		return s.Concurrency.SoftLimit
	}
	return defaultSoftLimit
}

// traffic is what the route has seen. seen counts its requests up to the last call.
func (r *Route) traffic(seen map[*Route]int) traffic {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := traffic{service: r.service, inFlight: make(map[string]int), idle: seen[r] == r.uses+r.refused && r.waiting == 0}
	seen[r] = r.uses + r.refused
	for id, b := range r.backends {
		t.inFlight[id] = b.inFlight
	}
	return t
}

// excess returns the machines that are more than the load needs, at most one
// per region, with what is to be done to each.
func (f *fleet) excess(app, primary string, t traffic) map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	type region struct {
		running, over, limit int
		least                *machine
		load                 int
		verb                 string
	}
	regions := make(map[string]*region)
	for _, m := range f.apps[app].sorted() {
		s := t.service(m)
		if s == nil || m.state != fly.MachineStateStarted {
			continue
		}
		g := regions[m.region]
		if g == nil {
			g = new(region)
			regions[m.region] = g
		}
		load := t.inFlight[m.id]
		g.running++
		if load > softLimit(s) {
			g.over++
		}
		if s.MinMachinesRunning != nil && m.region == primary {
			g.limit = max(g.limit, *s.MinMachinesRunning)
		}
		if s.Autostop == nil || *s.Autostop == fly.MachineAutostopOff || g.least != nil && g.load <= load {
			continue
		}
		g.least, g.load, g.verb = m, load, "stop"
		if *s.Autostop == fly.MachineAutostopSuspend {
			g.verb = "suspend"
		}
	}
	out := make(map[string]string)
	for _, g := range regions {
		lone := g.running == 1 && g.load == 0 && t.idle // the last one goes only when nobody comes
		if g.least != nil && g.running > g.limit && (lone || g.running > g.over+1) {
			out[g.least.id] = g.verb
		}
	}
	return out
}

// wanted returns a machine that may be started where all that run are over
// their soft limit; empty: none.
func (f *fleet) wanted(app string, t traffic) string {
	f.mu.Lock()
	running, free := 0, 0
	for _, m := range f.apps[app].machines {
		if s := t.service(m); s != nil && m.state == fly.MachineStateStarted {
			running++
			if t.inFlight[m.id] <= softLimit(s) {
				free++
			}
		}
	}
	f.mu.Unlock()
	if free > 0 || running == 0 && t.inFlight[""] == 0 {
		return ""
	}
	return f.sleeper(app, t.service, false)
}

// Of a request that finds no machine.
const (
	autostartPatience = 10 * time.Second
	autostartPoll     = 50 * time.Millisecond
)

// wake starts a machine where the config permits it and holds the request
// until one can take it.
func (r *Route) wake(ctx context.Context) *backend {
	if !r.s.autostops(r.app) {
		return nil
	}
	r.mu.Lock()
	r.waiting++
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.waiting--
		r.mu.Unlock()
	}()
	for end := time.Now().Add(autostartPatience); time.Now().Before(end); {
		if id := r.s.fleet.sleeper(r.app, r.service, true); id != "" {
			r.s.proxyCall(ctx, r.app, id, "start")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(autostartPoll):
		}
		if b := r.pick(); b != nil {
			return b
		}
	}
	return nil
}

// sleeper returns a machine that may be started, unless one is on its way or,
// where that is enough, runs.
func (f *fleet) sleeper(app string, service func(*machine) *fly.MachineService, enough bool) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var found *machine
	for _, m := range f.apps[app].sorted() {
		s := service(m)
		if s == nil || s.Autostart == nil || !*s.Autostart || m.host != fly.HostStatusOk || m.cordoned {
			continue
		}
		switch {
		case m.state == stateStarting, enough && m.state == fly.MachineStateStarted:
			return ""
		case m.state == fly.MachineStateStopped, m.state == fly.MachineStateSuspended:
			found = cmp.Or(found, m)
		}
	}
	if found == nil {
		return ""
	}
	return found.id
}
