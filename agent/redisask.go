package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"flymesh/agent/api"
	"flymesh/agent/config"
	"flymesh/leader"
	"flymesh/raftstore/state"
)

var _ api.RedisBackend = (*agent)(nil)

// roleTry is for one machine to say whether its Redis takes writes.
const roleTry = 3 * time.Second

// redisService finds the service that is meant.
func (a *agent) redisService(name string) (config.Service, error) {
	var names []string
	var found config.Service
	for _, s := range a.cfg.Services {
		if _, ok := s.RedisProbe(); ok {
			names = append(names, s.Name)
			if name == s.Name || name == "" {
				found = s
			}
		}
	}
	switch {
	case len(names) == 0:
		return found, badRequest("no service of mesh.toml has a probe of type \"redis\"")
	case found.Name == "":
		return found, badRequest("service %q has no probe of type \"redis\"; %s has", name, strings.Join(names, ", "))
	case name == "" && len(names) > 1:
		return found, badRequest("name the service: %s", strings.Join(names, ", "))
	}
	return found, nil
}

// Redis has the machine do it whose Redis is meant. Nobody need lead the mesh.
func (a *agent) Redis(ctx context.Context, r api.RedisRequest) ([]api.RedisAnswer, error) {
	svc, err := a.redisService(r.Service)
	if err != nil {
		return nil, err
	}
	r.Service = svc.Name
	if r.Trim != nil && r.Trim.Match == "" {
		r.Trim.Match = svc.Redis.ChatKeys
	}
	all, failures := a.redisRoles(ctx, svc.Name)
	target := r.Machine
	for _, x := range all {
		switch {
		case r.Machine != "" || !x.Writable:
		case target != "":
			return nil, badRequest("the Redis of %s and of %s take writes: name one with --machine", target, x.Machine)
		default:
			target = x.Machine
		}
	}
	switch {
	case r.Role:
		return all, nil
	case target == "" && len(failures) > 0:
		return nil, fmt.Errorf("find the Redis that takes writes: %s", strings.Join(failures, "; "))
	case target == "":
		return nil, badRequest("no Redis of %s takes writes; --machine names one of its machines all the same", svc.Name)
	}
	out, err := a.redisAt(ctx, target, r)
	if err != nil || r.Eviction == nil || r.Machine != "" {
		return out, err
	}
	// A candidate gets the same policy: it may be the primary next.
	for _, x := range all {
		if x.Machine == target {
			continue
		}
		more, err := a.redisAt(ctx, x.Machine, r)
		if err != nil {
			return out, fmt.Errorf("it is set on %s, but not on %s: %w", target, x.Machine, err)
		}
		out = append(out, more...)
	}
	return out, nil
}

// redisRoles asks every machine of a service that is in the mesh.
func (a *agent) redisRoles(ctx context.Context, service string) (all []api.RedisAnswer, failures []string) {
	ctx, cancel := context.WithTimeout(ctx, roleTry)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for id, m := range a.members() {
		if m.Service != service || !m.Alive && id != a.self.ID {
			continue
		}
		wg.Go(func() {
			x, err := a.redisAt(ctx, id, api.RedisRequest{Role: true})
			mu.Lock()
			defer mu.Unlock()
			if all = append(all, x...); err != nil {
				failures = append(failures, fmt.Sprintf("%s: %v", id, err))
			}
		})
	}
	wg.Wait()
	slices.SortFunc(all, func(x, y api.RedisAnswer) int { return cmp.Compare(x.Machine, y.Machine) })
	slices.Sort(failures)
	if len(all)+len(failures) == 0 {
		failures = []string{"no machine of " + service + " is in the mesh now"}
	}
	return all, failures
}

func (a *agent) redisAt(ctx context.Context, machine string, r api.RedisRequest) ([]api.RedisAnswer, error) {
	if machine == a.self.ID {
		return a.OwnRedis(ctx, r)
	}
	c, err := agents{a}.to(machine)
	if err != nil {
		return nil, err
	}
	out, err := c.Redis(ctx, r)
	if re := (*api.ResponseError)(nil); errors.As(err, &re) && re.Code == api.CodeBadRequest {
		return nil, &api.RequestError{Text: re.Error()}
	}
	return out, err
}

// OwnRedis does it with the Redis of this machine.
func (a *agent) OwnRedis(ctx context.Context, r api.RedisRequest) ([]api.RedisAnswer, error) {
	if a.redis == nil {
		return nil, badRequest("machine %s (%s) has no Redis", a.self.ID, a.svc.Name)
	}
	x, err := r.Do(ctx, a.self.ID, a.redis)
	if err != nil {
		return nil, err
	}
	return []api.RedisAnswer{x}, nil
}

// PromoteRedis makes another machine the primary of a Redis. The machines carry
// it out: the old primary hands over, or is proven gone first.
func (a *agent) PromoteRedis(ctx context.Context, r api.PromoteRequest) (api.Promoted, error) {
	svc, err := a.redisService(r.Service)
	if err != nil {
		return api.Promoted{}, err
	}
	if svc.Redis.Failover == config.FailoverOff {
		return api.Promoted{}, badRequest("promote %s: the mesh does not keep its primary: set failover = \"manual\" (or \"auto\") in [service.%s.redis], "+
			"pinned = true and baseline = 2, and start redis-server with --replicaof 127.0.0.1 1", svc.Name, svc.Name)
	}
	if _, err := a.view(ctx); err != nil {
		return api.Promoted{}, err
	}
	p, err := a.leader.Promotion(svc.Name, r.Machine, r.Force)
	if errors.Is(err, leader.ErrNotLeading) {
		return api.Promoted{}, leaderless(err)
	}
	if err != nil {
		return api.Promoted{}, badRequest("promote %s: %v", svc.Name, err)
	}
	reason := p.Text()
	if r.Reason != "" {
		reason = r.Reason + ": " + reason
	}
	res, err := a.command(ctx, r.By, state.Command{Pin: &state.Pin{Service: svc.Name, Machine: p.To, Reason: reason}})
	if err != nil {
		return api.Promoted{}, err
	}
	return api.Promoted{Accepted: api.Accepted{Index: res.Index, Text: p.Text()}, Service: svc.Name, From: p.From, To: p.To}, nil
}
