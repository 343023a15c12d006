package agent

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"slices"
	"time"

	"flymesh/agent/api"
	"flymesh/agent/config"
	"flymesh/agent/redis"
	"flymesh/raftstore/state"
)

// openRedis finds the Redis of this machine, if its service has one, and takes
// over its role where mesh.toml says so.
func (a *agent) openRedis() error {
	probe, ok := a.svc.RedisProbe()
	if !ok {
		return nil
	}
	addr, err := expand(probe.Addr)
	if err != nil {
		return fmt.Errorf("open redis: %w", err)
	}
	self, err := onMesh(a.self.PrivateIP, addr)
	if err != nil {
		return fmt.Errorf("open redis: %w", err)
	}
	a.redis = redis.New(redisServer(probe, addr), self, a.queues())
	if a.svc.Redis.Failover == config.FailoverOff {
		return nil
	}
	a.primary = &redisPrimary{
		redis: a.redis, locks: a.locks, service: a.svc.Name, lock: api.RedisLock(a.svc.Name), session: "redis-" + a.self.ID, self: a.self.ID,
		primary: func(ctx context.Context) (string, error) {
			p, err := a.askPrimary(ctx)
			return p.Machine, err
		},
		others: func() (ids []string) {
			for id, m := range a.members() {
				if id != a.self.ID && m.Alive && m.Service == a.svc.Name {
					ids = append(ids, id)
				}
			}
			slices.Sort(ids)
			return ids
		},
		addr: func(machine string) string { return a.redisOf(machine, addr) },
		tell: func(ctx context.Context, kind, reason string) {
			a.say(ctx, state.Command{Note: &state.Note{Kind: kind, Service: a.svc.Name, Machine: a.self.ID, Reason: reason}})
		},
		stay: func(ctx context.Context, reason string) {
			a.say(ctx, state.Command{Pin: &state.Pin{Service: a.svc.Name, Machine: a.self.ID, Reason: reason}})
		},
		log: a.log.With("component", "redis"),
	}
	a.locks.ends[a.primary.lock] = a.primary.demote
	return nil
}

func (a *agent) runRedis(ctx context.Context) error {
	if a.primary == nil {
		<-ctx.Done()
		return nil
	}
	return a.primary.run(ctx)
}

// queues are the prefixes of the queues that probes of the mesh look at.
func (a *agent) queues() (prefixes []string) {
	for _, s := range a.cfg.Services {
		for _, p := range s.Probes {
			if p.Prefix != "" {
				prefixes = append(prefixes, p.Prefix)
			}
		}
	}
	return prefixes
}

// redisOf is where another machine of this service has its Redis: at the same
// port. It is empty while the machine is not known.
func (a *agent) redisOf(machine, local string) string {
	host, _, err := net.SplitHostPort(a.members()[machine].MeshAddr)
	if err != nil {
		return ""
	}
	addr, err := onMesh(host, local)
	if err != nil {
		return ""
	}
	return addr
}

// onMesh is the address for other machines of what listens at local.
func onMesh(host, local string) (string, error) {
	_, port, err := net.SplitHostPort(local)
	if err != nil {
		return "", fmt.Errorf("read address: %w", err)
	}
	return net.JoinHostPort(host, port), nil
}

// say commits what is for people to know, wherever the leader is. Nothing waits
// for it.
func (a *agent) say(ctx context.Context, c state.Command) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaseTries)
	defer cancel()
	c.ID, c.At, c.By = rand.Text(), time.Now().UTC(), a.self.ID
	self, addr, ok := a.Route()
	var err error
	switch {
	case self:
		_, err = a.Propose(ctx, c)
	case ok:
		_, err = a.dial(addr).Propose(ctx, c)
	}
	if err != nil || !ok {
		a.log.Warn("tell the mesh failed", "error", err)
	}
}
