package flytest

import (
	"cmp"
	"slices"
)

// Info returns the route's counts.
func (r *Route) Info() RouteInfo {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := RouteInfo{App: r.app, URL: r.url, Refused: r.refused, Machines: []BackendInfo{}}
	for _, b := range r.backends {
		out.Machines = append(out.Machines, BackendInfo{b.id, b.healthy, b.inFlight, b.requests, b.errors})
	}
	slices.SortFunc(out.Machines, func(x, y BackendInfo) int { return cmp.Compare(x.Machine, y.Machine) })
	return out
}

// Routes returns the counts of every route.
func (s *Server) Routes() []RouteInfo {
	s.mu.Lock()
	routes := slices.Clone(s.routes)
	s.mu.Unlock()
	out := []RouteInfo{}
	for _, r := range routes {
		out = append(out, r.Info())
	}
	return out
}
