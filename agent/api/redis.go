package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"flymesh/agent/redis"
)

// Paths of Redis.
const (
	PathRedis        = "/v1/redis"         // POST RedisRequest -> []RedisAnswer: by any agent; on the mesh port for its own Redis alone
	PathRedisPromote = "/v1/redis/promote" // POST PromoteRequest -> Accepted, by the leader
)

// RedisLock names the lock under which the Redis of a service takes writes.
func RedisLock(service string) string { return "redis/" + service }

// RedisRequest asks something of the Redis of a service. Exactly one of the
// last four is set.
type RedisRequest struct {
	Service string `json:"service,omitempty"` // empty: the only one that has a Redis
	Machine string `json:"machine,omitempty"` // empty: the one that takes writes

	Role     bool             `json:"role,omitempty"`
	Pressure bool             `json:"pressure,omitempty"`
	Trim     *redis.Trim      `json:"trim,omitempty"`
	Eviction *EvictionRequest `json:"eviction,omitempty"`
}

// EvictionRequest sets what a Redis does when it is full.
type EvictionRequest struct {
	Policy string `json:"policy"`
	Force  bool   `json:"force,omitempty"`
}

// RedisAnswer is what one machine's Redis answers.
type RedisAnswer struct {
	Machine  string          `json:"machine"`
	Writable bool            `json:"writable"`
	Pressure *redis.Pressure `json:"pressure,omitempty"`
	Trimmed  *redis.Trimmed  `json:"trimmed,omitempty"`
	Eviction *redis.Eviction `json:"eviction,omitempty"`
}

// PromoteRequest makes another machine the primary of a Redis.
type PromoteRequest struct {
	Service string `json:"service,omitempty"` // empty: the only one that has a Redis
	Machine string `json:"machine,omitempty"` // empty: the candidate that has most of the data
	Force   bool   `json:"force,omitempty"`   // also one whose data are not known to be the primary's
	Reason  string `json:"reason"`
	By      string `json:"by"`
}

// Promoted says what a promotion will mean, and which machine to look for.
type Promoted struct {
	Accepted
	Service string `json:"service"`
	From    string `json:"from"`
	To      string `json:"to"`
}

// RedisBackend is what the handlers of Redis need of the agent.
type RedisBackend interface {
	Redis(ctx context.Context, r RedisRequest) ([]RedisAnswer, error)     // wherever the Redis is
	OwnRedis(ctx context.Context, r RedisRequest) ([]RedisAnswer, error)  // of this machine
	PromoteRedis(ctx context.Context, r PromoteRequest) (Promoted, error) // by the leader alone
}

// redisRoutes adds the handlers of Redis to a door.
func (s *Server) redisRoutes(door string, handle func(method, path string, h http.HandlerFunc)) {
	b := s.o.Redis
	if b == nil {
		return
	}
	do := b.Redis
	if door == "mesh" {
		do = b.OwnRedis
	}
	handle("POST", PathRedis, local(s, func(ctx context.Context, q RedisRequest) (any, error) {
		if err := q.check(); err != nil {
			return nil, err
		}
		return do(ctx, q)
	}))
	handle("POST", PathRedisPromote, s.leading(maxBody, func(_ *http.Request, body []byte) (work, error) {
		var q PromoteRequest
		err := decodeStrict(body, &q)
		if err == nil {
			err = checkTexts("redis", q.Reason, &q.By)
		}
		return func(ctx context.Context) (any, error) { return b.PromoteRedis(ctx, q) }, err
	}))
}

func (q RedisRequest) check() error {
	n := 0
	for _, set := range []bool{q.Role, q.Pressure, q.Trim != nil, q.Eviction != nil} {
		if set {
			n++
		}
	}
	if n != 1 {
		return badRequest("one of role, pressure, trim and eviction is needed, not %d", n)
	}
	return nil
}

// Do carries a request out with the Redis of a machine.
func (q RedisRequest) Do(ctx context.Context, machine string, r *redis.Redis) (RedisAnswer, error) {
	x := RedisAnswer{Machine: machine}
	st, err := r.State(ctx)
	x.Writable = st.Writable
	switch {
	case err != nil:
	case q.Pressure:
		var p redis.Pressure
		p, err = r.Pressure(ctx)
		p.Machine = machine
		x.Pressure = &p
	case q.Trim != nil:
		var t redis.Trimmed
		t, err = r.Trim(ctx, *q.Trim)
		x.Trimmed = &t
	case q.Eviction != nil:
		var e redis.Eviction
		e, err = r.Eviction(ctx, q.Eviction.Policy, q.Eviction.Force)
		e.Machine = machine
		x.Eviction = &e
	}
	if errors.Is(err, redis.ErrRefused) {
		return x, badRequest("%s", strings.TrimPrefix(err.Error(), redis.ErrRefused.Error()+": "))
	}
	if err != nil {
		return x, fmt.Errorf("ask redis of %s: %w", machine, err)
	}
	return x, nil
}

// Redis asks something of a service's Redis.
func (c *Client) Redis(ctx context.Context, r RedisRequest) ([]RedisAnswer, error) {
	return post[[]RedisAnswer](ctx, c, PathRedis, r)
}

// PromoteRedis makes another machine the primary of a Redis.
func (c *Client) PromoteRedis(ctx context.Context, r PromoteRequest) (Promoted, error) {
	return post[Promoted](ctx, c, PathRedisPromote, r)
}
