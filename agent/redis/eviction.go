package redis

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// policies that Redis knows.
var policies = []string{
	"noeviction", "allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl",
}

// Eviction is what came of a change of policy.
type Eviction struct {
	Machine string   `json:"machine"`
	Before  string   `json:"before"`
	After   string   `json:"after"`
	Notes   []string `json:"notes"`
}

// Eviction sets what the server does when it is full. A policy that takes any
// key is refused where a queue lives: jobs are keys.
func (r *Redis) Eviction(ctx context.Context, policy string, force bool) (Eviction, error) {
	if !slices.Contains(policies, policy) {
		return Eviction{}, refuse("%q is not a policy; volatile-lru is what suits a queue and chats on one server, of %s", policy, strings.Join(policies, ", "))
	}
	c, err := r.server.Open(ctx)
	if err != nil {
		return Eviction{}, err
	}
	defer c.Close()
	info, err := c.Info(ctx)
	if err != nil {
		return Eviction{}, fmt.Errorf("info: %w", err)
	}
	e := Eviction{Before: info["maxmemory_policy"], After: policy, Notes: []string{}}
	if strings.HasPrefix(policy, "allkeys-") {
		harm := ""
		for _, db := range databases(info) {
			if err := in(ctx, c, db); err != nil {
				return e, err
			}
			queues, complete, err := r.queuesIn(ctx, c)
			if err != nil {
				return e, err
			}
			for _, q := range queues {
				harm = fmt.Sprintf("a Bull queue lives here (%s, %d jobs), and %s evicts jobs without a word: of 20 waiting jobs 19 were destroyed in a test", q.Prefix, q.Jobs, policy)
			}
			if harm == "" && !complete {
				harm = fmt.Sprintf("there are too many keys to say that no Bull queue lives here, and %s would evict its jobs", policy)
			}
		}
		switch {
		case harm != "" && !force:
			return e, refuse("%s; volatile-lru evicts keys with a time to live alone; --force sets %s all the same", harm, policy)
		case harm != "":
			e.Notes = append(e.Notes, "forced: "+harm)
		}
	}
	if err := c.ConfigSet(ctx, "maxmemory-policy", policy).Err(); err != nil {
		return e, fmt.Errorf("set policy: %w", err)
	}
	if err := c.ConfigRewrite(ctx).Err(); err != nil {
		e.Notes = append(e.Notes, "it lasts until Redis restarts: give redis-server --maxmemory-policy "+policy+", too")
	}
	if limit, _ := info.Number("maxmemory"); limit == 0 {
		e.Notes = append(e.Notes, "there is no maxmemory: a policy does nothing without a limit")
	}
	if strings.HasPrefix(policy, "volatile-") {
		keys, ending := info.Keyspace()
		if keys > 0 && ending < keys/20 {
			e.Notes = append(e.Notes, fmt.Sprintf("%.0f of %.0f keys have a time to live: nothing else is evicted, so it acts almost as noeviction; agentctl redis trim --expire gives old chats one", ending, keys))
		}
	}
	return e, nil
}
