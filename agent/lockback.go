package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"flymesh/agent/api"
	"flymesh/agent/config"
	"flymesh/leader"
	"flymesh/raftstore"
	"flymesh/raftstore/state"
)

var (
	_ api.LockBackend = (*agent)(nil)
	_ leader.Holders  = agents{}
)

// Acquire asks for a lock, for a program of this machine.
func (a *agent) Acquire(ctx context.Context, r api.AcquireRequest) (api.Lease, error) {
	return a.locks.acquire(ctx, r)
}

// Renew lengthens a lease.
func (a *agent) Renew(ctx context.Context, r api.TokenRequest) (api.Lease, error) {
	return a.locks.renew(ctx, r, leader.LockRenewal)
}

// CheckLock says whether a token is still its lock's.
func (a *agent) CheckLock(ctx context.Context, r api.TokenRequest) (api.Lease, error) {
	return a.locks.renew(ctx, r, leader.LockCheck)
}

// Release gives a lock back.
func (a *agent) Release(ctx context.Context, r api.TokenRequest) (api.Lease, error) {
	return a.locks.release(ctx, r)
}

// Held says which locks this machine holds.
func (a *agent) Held(_ context.Context, epoch uint64) ([]state.Lock, error) {
	return a.locks.held(epoch), nil
}

// EndLock ends what runs under a lock on this machine.
func (a *agent) EndLock(_ context.Context, l state.Lock) (api.EndAnswer, error) {
	return a.locks.endLock(l), nil
}

// Lease answers a holder's agent where this node leads.
func (a *agent) Lease(ctx context.Context, r leader.LockRequest) (leader.LockAnswer, error) {
	ans, err := a.leader.Lock(ctx, r)
	return ans, leaderless(err)
}

// leaderless says in the API's words that this node does not lead.
func leaderless(err error) error {
	if errors.Is(err, leader.ErrNotLeading) || errors.Is(err, raftstore.ErrNotLeader) {
		return fmt.Errorf("%w: %w", api.ErrNoLeader, err)
	}
	return err
}

// Locks lists what is held.
func (a *agent) Locks(ctx context.Context) ([]leader.LockView, error) {
	if _, err := a.view(ctx); err != nil {
		return nil, err
	}
	all, ok := a.leader.Locks()
	if !ok {
		return nil, api.ErrNoLeader
	}
	return all, nil
}

// Unlock frees a lock by force.
func (a *agent) Unlock(ctx context.Context, r api.UnlockRequest) (api.Accepted, error) {
	if _, err := a.view(ctx); err != nil {
		return api.Accepted{}, err
	}
	res, err := a.leader.ForceUnlock(ctx, r.Lock, rand.Text(), r.By, r.Reason)
	if errors.Is(err, state.ErrRejected) {
		return api.Accepted{}, badRequest("%s", strings.TrimPrefix(err.Error(), state.ErrRejected.Error()+": "))
	}
	if err != nil {
		return api.Accepted{}, leaderless(err)
	}
	return api.Accepted{Index: res.Index, Text: fmt.Sprintf("lock %s is free; its token %s is worth nothing any more", r.Lock, res.Token)}, nil
}

// Pin makes a machine the primary of a pinned service.
func (a *agent) Pin(ctx context.Context, r api.PinRequest) (api.Accepted, error) {
	if err := a.known(r.Service); err != nil {
		return api.Accepted{}, err
	}
	if svc, _ := a.cfg.Service(r.Service); !svc.Policy.Pinned {
		return api.Accepted{}, badRequest("pin %s: the service has no primary; set pinned = true in [service.%s]", r.Service, r.Service)
	}
	if svc, _ := a.cfg.Service(r.Service); svc.Redis.Failover != config.FailoverOff {
		return api.Accepted{}, badRequest("pin %s: its primary moves with the data: agentctl redis promote %s %s", r.Service, r.Service, r.Machine)
	}
	v, err := a.view(ctx)
	if err != nil {
		return api.Accepted{}, err
	}
	var names []string
	found := false
	for _, m := range v.Input.Machines {
		if m.Service == r.Service && m.State == "started" && m.HostOK {
			names = append(names, m.ID)
			found = found || m.ID == r.Machine
		}
	}
	if !found {
		return api.Accepted{}, badRequest("pin %s to %s: that is not a started machine of the service; there are %s", r.Service, r.Machine, strings.Join(names, ", "))
	}
	reason := r.Reason
	if reason == "" {
		reason = "asked for by " + r.By
	}
	res, err := a.command(ctx, r.By, state.Command{Pin: &state.Pin{Service: r.Service, Machine: r.Machine, Reason: reason}})
	if err != nil {
		return api.Accepted{}, err
	}
	return api.Accepted{Index: res.Index, Text: fmt.Sprintf("machine %s is the primary of %s", r.Machine, r.Service)}, nil
}

// Held asks a machine which locks it holds.
func (g agents) Held(ctx context.Context, machine string, epoch uint64) ([]state.Lock, error) {
	if machine == g.a.self.ID {
		return g.a.locks.held(epoch), nil
	}
	c, err := g.to(machine)
	if err != nil {
		return nil, err
	}
	return c.Held(ctx, epoch)
}

// End has a machine end what runs under a lock.
func (g agents) End(ctx context.Context, machine string, l state.Lock) (bool, string, error) {
	if machine == g.a.self.ID {
		r := g.a.locks.endLock(l)
		return r.Gone, r.Why, nil
	}
	c, err := g.to(machine)
	if err != nil {
		return false, "", err
	}
	r, err := c.EndLock(ctx, l)
	return r.Gone, r.Why, err
}

// lease asks the leader about a lock.
func (a *agent) lease(ctx context.Context, r leader.LockRequest) (leader.LockAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, leaseTries)
	defer cancel()
	self, addr, ok := a.Route()
	switch {
	case self:
		return a.Lease(ctx, r)
	case !ok:
		return leader.LockAnswer{}, api.ErrNoLeader
	}
	ans, err := a.dial(addr).Lease(ctx, r)
	var re *api.ResponseError
	if err != nil && !errors.As(err, &re) {
		err = fmt.Errorf("ask leader at %s: %w", addr, err)
	}
	return ans, err
}
