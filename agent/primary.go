package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"flymesh/agent/api"
	"flymesh/agent/redis"
	"flymesh/leader"
	"flymesh/raftstore/state"
)

const (
	primaryTick  = 500 * time.Millisecond
	askSteady    = 2 * time.Second // between two questions who is primary, while nothing changes
	redisTry     = 2 * time.Second // for one look at Redis, or one change of its role
	renewRetry   = time.Second     // after a renewal that nobody answered
	demoteBefore = 3 * time.Second // the end of the lease: Redis takes no writes from then on
	yieldAgain   = 3 * time.Second // before writes are paused again for a candidate that was not level
	yieldFor     = 30 * time.Second
	yieldBye     = 2 * time.Second // to give the lock back at the end of the process
)

// redisPrimary keeps the Redis of this machine in its role. It takes writes
// only while this machine holds the service's lock, a fenced one; it asks for
// the lock while its machine is the pinned primary, and follows that machine
// otherwise. So whoever is primary, the lock says that nobody else is.
type redisPrimary struct {
	redis   *redis.Redis
	locks   *lockKeeper
	service string
	lock    string
	session string // the same in every life of this machine: it may go on with what it held
	self    string
	primary func(ctx context.Context) (machine string, err error) // who is pinned
	addr    func(machine string) string                           // of its Redis; empty: not known
	others  func() []string                                       // other machines of the service that are in the mesh
	tell    func(ctx context.Context, kind, reason string)        // an event
	stay    func(ctx context.Context, reason string)              // pins this machine again
	log     *slog.Logger

	role sync.Mutex // one change of role at a time

	// Only used by run's goroutine.
	who     string    // who is pinned, as last heard
	asked   time.Time // when that was asked
	yields  time.Time // since when another machine is to be primary
	yieldAt time.Time // the next try to hand over
	warned  bool
	bared   bool // people know that this Redis has come back empty
}

// run keeps the role until ctx ends; then Redis takes no writes any more.
func (p *redisPrimary) run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { p.renew(ctx) })
	t := time.NewTicker(primaryTick)
	defer t.Stop()
	for {
		p.step(ctx)
		select {
		case <-ctx.Done():
			p.leave()
			return nil
		case <-t.C:
		}
	}
}

// renew keeps the lease while it is held, and gives the lock up where it
// cannot: the lock keeper then makes Redis a replica.
func (p *redisPrimary) renew(ctx context.Context) {
	t := time.NewTicker(sessionTick)
	defer t.Stop()
	var next time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		token, left := p.locks.lease(p.session)
		switch now := time.Now(); {
		case token == "":
			next = time.Time{}
		case left <= demoteBefore:
			p.log.Warn("the lock of Redis cannot be renewed: it takes no more writes", "lock", p.lock)
			p.locks.giveUp(p.session)
		case now.After(next):
			rctx, cancel := context.WithTimeout(ctx, min(leaseTries, left-demoteBefore))
			l, err := p.locks.renew(rctx, api.TokenRequest{Lock: p.lock, Token: token}, leader.LockRenewal)
			cancel()
			if next = now.Add(renewRetry); err == nil && l.OK {
				next = now.Add(leader.LockRenew)
			}
		}
	}
}

// step compares the role with what it should be, and brings it nearer.
func (p *redisPrimary) step(ctx context.Context) {
	st, serr := p.look(ctx)
	token, _ := p.locks.lease(p.session)
	if token == "" && serr == nil && st.Writable {
		if !p.warned {
			p.log.Warn("Redis took writes before the mesh said that it may: start it with --replicaof 127.0.0.1 1")
			p.warned = true
		}
		p.demote()
		return
	}
	who := p.whose(ctx, st, serr)
	switch {
	case who == "": // nobody says: the lease decides
	case who != p.self && token != "":
		p.yield(ctx, who, token, st, serr)
		return
	case who != p.self:
		if to := p.addr(who); serr == nil && to != "" && st.Primary != to {
			p.follow(ctx, who, to)
		}
	case serr != nil || st.Writable:
	case p.bare(ctx, st):
	case token != "":
		p.promote(ctx)
	default:
		p.acquire(ctx)
	}
	p.yields = time.Time{}
}

// bare says that this Redis has nothing while another may have something, as
// after a restart without its disk: were it the primary, the other would copy
// nothing over everything.
func (p *redisPrimary) bare(ctx context.Context, own redis.State) bool {
	if own.Keys > 0 {
		return false
	}
	for _, m := range p.others() {
		addr := p.addr(m)
		if addr == "" {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, redisTry)
		st, err := p.redis.StateOf(ctx, addr)
		cancel()
		if err == nil && st.Keys == 0 {
			continue
		}
		if !p.bared {
			p.bared = true
			text := fmt.Sprintf("this Redis is empty, and that of %s has %d keys: it takes no writes, or they would be lost; agentctl redis promote %s", m, st.Keys, p.service)
			if err != nil {
				text = fmt.Sprintf("this Redis is empty, and that of %s does not say what it has: it takes no writes until then (%v)", m, err)
			}
			p.log.Warn("Redis has come back empty", "other", m, "keys", st.Keys, "error", err)
			p.tell(ctx, "redis_empty", text)
		}
		return true
	}
	p.bared = false
	return false
}

// whose asks who is pinned: not each time while all is as it should be.
func (p *redisPrimary) whose(ctx context.Context, st redis.State, serr error) string {
	steady := serr == nil && p.yields.IsZero() && (st.Writable || st.Linked)
	if p.who != "" && steady && time.Since(p.asked) < askSteady {
		return p.who
	}
	p.asked = time.Now()
	who, err := p.primary(ctx)
	if err != nil {
		p.log.Debug("ask who is primary failed", "error", err)
		who = ""
	}
	p.who = who
	return who
}

func (p *redisPrimary) look(ctx context.Context) (redis.State, error) {
	ctx, cancel := context.WithTimeout(ctx, redisTry)
	defer cancel()
	return p.redis.State(ctx)
}

func (p *redisPrimary) acquire(ctx context.Context) {
	l, err := p.locks.acquire(ctx, api.AcquireRequest{Lock: p.lock, Session: p.session, Policy: state.Fenced, Reason: "takes writes"})
	switch {
	case err != nil:
		p.log.Debug("ask for the lock of Redis failed", "error", err)
	case l.OK:
		p.promote(ctx)
	default:
		p.log.Debug("the lock of Redis is not free", "reason", l.Why)
	}
}

// promote lets Redis take writes, under the lock.
func (p *redisPrimary) promote(ctx context.Context) {
	p.role.Lock()
	defer p.role.Unlock()
	token, left := p.locks.lease(p.session)
	if token == "" || left < demoteBefore+redisTry {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, redisTry)
	defer cancel()
	st, err := p.redis.Promote(ctx)
	if err != nil {
		p.log.Warn("promote Redis failed", "error", err)
		return
	}
	p.log.Info("Redis takes writes", "token", token, "offset", st.Offset)
	p.tell(ctx, "redis_primary", fmt.Sprintf("takes writes from offset %d of history %08x on, under token %s", st.Offset, st.History, token))
}

// demote makes Redis a replica of nobody: it keeps its data and takes no
// writes. gone says that it takes none.
func (p *redisPrimary) demote() (gone bool, why string) {
	p.role.Lock()
	defer p.role.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), redisTry)
	defer cancel()
	st, err := p.redis.State(ctx)
	if err == nil && st.Writable {
		st, err = p.redis.Follow(ctx, redis.Nobody)
		if err == nil {
			p.log.Info("Redis takes no more writes", "offset", st.Offset)
		}
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED): // no Redis runs; the next one is looked at before it may take writes
		return true, ""
	case err != nil:
		return false, "Redis does not say that it takes no writes: " + err.Error()
	}
	return true, ""
}

// follow makes Redis a replica of the primary.
func (p *redisPrimary) follow(ctx context.Context, who, to string) {
	p.role.Lock()
	defer p.role.Unlock()
	ctx, cancel := context.WithTimeout(ctx, redisTry)
	defer cancel()
	if _, err := p.redis.Follow(ctx, to); err != nil {
		p.log.Warn("make Redis a replica failed", "primary", who, "error", err)
		return
	}
	p.log.Info("Redis copies its primary", "primary", who, "addr", to)
}

// yield ends the writes here, so that another machine may take them: when its
// Redis has every one of them. If that does not come about, this machine stays
// the primary, and says so.
func (p *redisPrimary) yield(ctx context.Context, who, token string, st redis.State, serr error) {
	now := time.Now()
	if p.yields.IsZero() {
		p.yields, p.yieldAt = now, now
	}
	switch {
	case serr != nil: // whether it takes writes is for the lock keeper to find out, or for the platform to end
		p.locks.giveUp(p.session)
	case !st.Writable:
		p.locks.giveUp(p.session)
	case now.Before(p.yieldAt):
	case now.Sub(p.yields) > yieldFor:
		p.yields = time.Time{}
		p.stay(ctx, fmt.Sprintf("the Redis of %s did not become level within %s: this machine stays the primary", who, yieldFor))
	default:
		to := p.addr(who)
		if to == "" {
			return
		}
		if err := p.handOver(ctx, who, to, token); err != nil {
			p.yieldAt = time.Now().Add(yieldAgain)
			p.log.Warn("hand over failed", "to", who, "error", err)
		}
	}
}

func (p *redisPrimary) handOver(ctx context.Context, who, to, token string) error {
	p.role.Lock()
	defer p.role.Unlock()
	st, err := p.redis.HandOver(ctx, to)
	if err != nil {
		return err
	}
	p.log.Info("Redis has handed over", "to", who, "offset", st.Offset)
	ctx, cancel := context.WithTimeout(ctx, leaseTries)
	defer cancel()
	if _, err := p.locks.release(ctx, api.TokenRequest{Lock: p.lock, Token: token}); err != nil {
		p.locks.giveUp(p.session) // tried again by the lock keeper
	}
	p.tell(ctx, "redis_handed_over", fmt.Sprintf("takes no writes since offset %d; the Redis of %s has every one of them", st.Offset, who))
	return nil
}

// leave gives the lock back because this process ends, so that nobody has to
// wait for the lease.
func (p *redisPrimary) leave() {
	token, _ := p.locks.lease(p.session)
	if token == "" {
		return
	}
	if gone, _ := p.demote(); !gone {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), yieldBye)
	defer cancel()
	_, _ = p.locks.release(ctx, api.TokenRequest{Lock: p.lock, Token: token}) // or the lease ends
}

// lease returns the token of a session that is held, and how long it is still
// good for; "": it is not held, or given up.
func (k *lockKeeper) lease(id string) (token string, left time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.sessions[id]
	if s == nil || s.ended {
		return "", 0
	}
	return s.Token, time.Until(s.deadline)
}

// giveUp ends a session: what it did is ended, and then the lock given back.
func (k *lockKeeper) giveUp(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if s := k.sessions[id]; s != nil {
		s.ended = true
	}
}
