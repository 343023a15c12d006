package apitest

import (
	"context"
	"fmt"

	"flymesh/agent/api"
	"flymesh/agent/redis"
	"flymesh/raftstore/state"
)

var _ api.RedisBackend = (*Agent)(nil)

// ServeRedis gives an agent's machine a Redis, a real one.
func (a *Agent) ServeRedis(r *redis.Redis) {
	a.mesh.mu.Lock()
	defer a.mesh.mu.Unlock()
	a.mesh.redis, a.mesh.redisAt = r, a.machine
}

// Redis implements api.RedisBackend: every agent reaches the one Redis.
func (a *Agent) Redis(ctx context.Context, q api.RedisRequest) ([]api.RedisAnswer, error) {
	a.mesh.mu.Lock()
	r, at := a.mesh.redis, a.mesh.redisAt
	a.mesh.mu.Unlock()
	if r == nil || q.Machine != "" && q.Machine != at || q.Service != "" && q.Service != "redis" {
		return nil, asked(fmt.Errorf("service %q of machine %q has no Redis; redis of %s has", q.Service, q.Machine, at))
	}
	x, err := q.Do(ctx, at, r)
	return []api.RedisAnswer{x}, err
}

// OwnRedis implements api.RedisBackend.
func (a *Agent) OwnRedis(ctx context.Context, q api.RedisRequest) ([]api.RedisAnswer, error) {
	return a.Redis(ctx, q)
}

// PromoteRedis implements api.RedisBackend: the candidate obeys at once.
func (a *Agent) PromoteRedis(_ context.Context, q api.PromoteRequest) (api.Promoted, error) {
	return led(a, func(m *Mesh) (api.Promoted, error) {
		if q.Machine == m.redisAt {
			return api.Promoted{}, asked(fmt.Errorf("promote redis: machine %s is the primary already", q.Machine))
		}
		reason := fmt.Sprintf("%s hands over to %s once that has every write: none is lost", m.redisAt, q.Machine)
		res, err := m.do(state.Command{By: q.By, Pin: &state.Pin{Service: "redis", Machine: q.Machine, Reason: reason}})
		if err != nil {
			return api.Promoted{}, err
		}
		_, err = m.do(state.Command{By: q.Machine, Note: &state.Note{Kind: "redis_primary", Service: "redis", Machine: q.Machine, Reason: "takes writes from offset 7 of history 0000002a on, under token 1-9"}})
		return api.Promoted{Accepted: api.Accepted{Index: res.Index, Text: reason}, Service: "redis", From: m.redisAt, To: q.Machine}, err
	})
}
