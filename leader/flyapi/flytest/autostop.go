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

// Autostop makes the proxy do, for an app with routes, what the services in
// its machines' config say, as Fly Proxy does: every so often it stops or
// suspends at most one machine per region where there are more than the load
// needs, and it starts one when a request finds none. A machine whose config
// names no service with autostop or autostart is left alone. An every of 0
// ends it; so does Close.
func (s *Server) Autostop(app string, every time.Duration) {
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
		seen := make(map[*Route]int)
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
			for _, r := range s.routesOf(app) {
				for id, verb := range r.excess(seen) {
					s.proxyCall(ctx, app, id, verb)
				}
			}
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

// excess returns the machines that are more than the load needs, at most one
// per region, with what is to be done to each. seen counts the route's
// requests up to the last call.
func (r *Route) excess(seen map[*Route]int) map[string]string {
	f := r.s.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	idle := seen[r] == r.uses+r.refused && r.waiting == 0
	seen[r] = r.uses + r.refused
	type region struct {
		running, over, limit int
		least                *machine
		load                 int
		verb                 string
	}
	regions := make(map[string]*region)
	for _, m := range f.apps[r.app].sorted() {
		s := r.service(m)
		if s == nil || m.state != fly.MachineStateStarted {
			continue
		}
		g := regions[m.region]
		if g == nil {
			g = new(region)
			regions[m.region] = g
		}
		load := 0
		if b := r.backends[m.id]; b != nil {
			load = b.inFlight
		}
		g.running++
		if load > softLimit(s) {
			g.over++
		}
		if s.MinMachinesRunning != nil && m.region == r.s.opts.Regions[0] {
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
		lone := g.running == 1 && g.load == 0 && idle // the last one goes only when nobody comes
		if g.least != nil && g.running > g.limit && (lone || g.running > g.over+1) {
			out[g.least.id] = g.verb
		}
	}
	return out
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
		if id := r.sleeper(); id != "" {
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

// sleeper returns a machine that may be started, unless one is on its way.
func (r *Route) sleeper() string {
	f := r.s.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	var found *machine
	for _, m := range f.apps[r.app].sorted() {
		s := r.service(m)
		if s == nil || s.Autostart == nil || !*s.Autostart || m.host != fly.HostStatusOk || m.cordoned {
			continue
		}
		switch m.state {
		case stateStarting, fly.MachineStateStarted:
			return ""
		case fly.MachineStateStopped, fly.MachineStateSuspended:
			found = cmp.Or(found, m)
		}
	}
	if found == nil {
		return ""
	}
	return found.id
}
