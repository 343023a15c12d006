package agent

import (
	"context"

	"flymesh/agent/api"
)

// Role takes in what the role-aware command on this machine runs, and says who
// should run the primary. Without a leader it fails: the command goes on as it
// is, and its lease decides.
func (a *agent) Role(ctx context.Context, r api.RoleRequest) (api.RoleAnswer, error) {
	a.health.runs(r.Role)
	if !a.svc.Policy.Pinned {
		return api.RoleAnswer{}, badRequest("service %s has no primary: set pinned = true in [service.%s] for --primary and --replica", a.svc.Name, a.svc.Name)
	}
	p, err := a.askPrimary(ctx)
	return api.RoleAnswer{Self: a.self.ID, Lock: api.RoleLock(a.svc.Name), Primary: p}, err
}

func (a *agent) askPrimary(ctx context.Context) (api.Primary, error) {
	ctx, cancel := context.WithTimeout(ctx, leaseTries)
	defer cancel()
	self, addr, ok := a.Route()
	switch {
	case self:
		return a.Primary(ctx, a.svc.Name)
	case !ok:
		return api.Primary{}, api.ErrNoLeader
	}
	return a.dial(addr).Primary(ctx, a.svc.Name)
}

// Primary says who is a service's primary.
func (a *agent) Primary(ctx context.Context, service string) (api.Primary, error) {
	if err := a.known(service); err != nil {
		return api.Primary{}, err
	}
	if _, err := a.view(ctx); err != nil {
		return api.Primary{}, err
	}
	return api.Primary{Service: service, Machine: a.store.State().Service(service).Primary}, nil
}
