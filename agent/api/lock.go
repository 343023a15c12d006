package api

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"time"

	"flymesh/agent/process"
	"flymesh/leader"
	"flymesh/raftstore/state"
)

// Paths of locks. The first five are for programs of the same machine, in any
// language: they are on the unix socket alone.
const (
	PathLockAcquire = "/v1/locks/acquire" // POST AcquireRequest -> Lease
	PathLockRenew   = "/v1/locks/renew"   // POST TokenRequest -> Lease
	PathLockRelease = "/v1/locks/release" // POST TokenRequest -> Lease
	PathLockCheck   = "/v1/locks/check"   // GET ?lock=NAME&token=TOKEN -> Lease
	PathPin         = "/v1/pin"           // POST PinRequest -> Accepted
	PathLocks       = "/v1/locks"         // GET -> []leader.LockView
	PathUnlock      = "/v1/unlock"        // POST UnlockRequest -> Accepted: by force
	PathLease       = "/v1/lease"         // POST leader.LockRequest -> leader.LockAnswer (mesh port only)
	PathHeld        = "/v1/held"          // POST HeldRequest -> []state.Lock, by the machine itself (mesh port only)
	PathLockEnd     = "/v1/held/end"      // POST state.Lock -> EndAnswer, by the machine itself (mesh port only)
)

// What the work under a lock finds in its environment. The agent knows its
// processes by token and socket.
const (
	LockNameEnv   = "FLYMESH_LOCK"
	LockTokenEnv  = process.TokenEnv     // as it was granted: 1-42
	LockFenceEnv  = "FLYMESH_LOCK_FENCE" // the same as one number
	LockSocketEnv = process.SocketEnv    // of the agent that knows
)

// AcquireRequest asks for a lock once; ask again until it is granted.
type AcquireRequest struct {
	Lock    string           `json:"lock"`
	Session string           `json:"session"`           // random; the same in every try and for the whole hold
	Policy  state.LockPolicy `json:"policy,omitempty"`  // fenced, if empty
	PID     int              `json:"pid,omitempty"`     // of who does the work: when it has died, the lock is free at once
	Wrapper bool             `json:"wrapper,omitempty"` // PID may be killed when the lease has ended
	Reason  string           `json:"reason,omitempty"`
}

// TokenRequest names a hold.
type TokenRequest struct {
	Lock  string `json:"lock"`
	Token string `json:"token"`
}

// Lease is the answer to the holder. OK false: not obtained, or lost for good.
// The lease counts from when the request was sent.
type Lease struct {
	OK      bool   `json:"ok"`
	Lock    string `json:"lock"`
	Token   string `json:"token,omitempty"`
	Fence   uint64 `json:"fence,omitempty"` // the token as a number, for a database to compare
	LeaseMS int64  `json:"lease_ms,omitempty"`
	Renew   int64  `json:"renew_ms,omitempty"` // renew this often
	Grace   int64  `json:"grace_ms,omitempty"` // begin to stop this long before the lease ends
	Socket  string `json:"socket,omitempty"`   // of the agent, for LockSocketEnv
	Holder  string `json:"holder,omitempty"`   // the machine that has it instead
	Why     string `json:"why,omitempty"`
}

// UnlockRequest frees a lock by force.
type UnlockRequest struct {
	Lock   string `json:"lock"`
	Reason string `json:"reason"`
	By     string `json:"by"`
}

// PinRequest makes a machine a service's primary.
type PinRequest struct {
	Service string `json:"service"`
	Machine string `json:"machine"`
	Reason  string `json:"reason"`
	By      string `json:"by"`
}

// HeldRequest asks which locks a machine holds.
type HeldRequest struct {
	Epoch uint64 `json:"epoch"`
}

// EndAnswer says whether the work under a lock has ended.
type EndAnswer struct {
	Gone bool   `json:"gone"`
	Why  string `json:"why,omitempty"`
}

// LockBackend is what the lock handlers need of the agent.
type LockBackend interface {
	// These four are for this machine's programs; the agent asks the leader.
	Acquire(ctx context.Context, r AcquireRequest) (Lease, error)
	Renew(ctx context.Context, r TokenRequest) (Lease, error)
	Release(ctx context.Context, r TokenRequest) (Lease, error)
	CheckLock(ctx context.Context, r TokenRequest) (Lease, error)
	// Role is for this machine's role-aware command.
	Role(ctx context.Context, r RoleRequest) (RoleAnswer, error)

	Held(ctx context.Context, epoch uint64) ([]state.Lock, error)
	EndLock(ctx context.Context, l state.Lock) (EndAnswer, error)

	// The rest is answered by the leader alone.
	Locks(ctx context.Context) ([]leader.LockView, error)
	Lease(ctx context.Context, r leader.LockRequest) (leader.LockAnswer, error)
	Unlock(ctx context.Context, r UnlockRequest) (Accepted, error)
	Pin(ctx context.Context, r PinRequest) (Accepted, error)
	Primary(ctx context.Context, service string) (Primary, error)
}

// lockRoutes adds the handlers of locks to a door.
func (s *Server) lockRoutes(door string, handle func(method, path string, h http.HandlerFunc)) {
	s.jobRoutes(door, handle)
	b := s.o.Locks
	if b == nil {
		return
	}
	s.roleRoutes(door, handle)
	handle("GET", PathLocks, s.leading(maxBody, func(*http.Request, []byte) (work, error) {
		return func(ctx context.Context) (any, error) { return b.Locks(ctx) }, nil
	}))
	handle("POST", PathUnlock, s.leading(maxBody, func(_ *http.Request, body []byte) (work, error) {
		var q UnlockRequest
		err := decodeStrict(body, &q)
		if err == nil {
			err = checkTexts(q.Lock, q.Reason, &q.By)
		}
		return func(ctx context.Context) (any, error) { return b.Unlock(ctx, q) }, err
	}))
	handle("POST", PathPin, s.leading(maxBody, func(_ *http.Request, body []byte) (work, error) {
		var q PinRequest
		err := decodeStrict(body, &q)
		if err == nil {
			err = checkTexts(q.Service, q.Reason, &q.By)
		}
		if err == nil && (q.Machine == "" || len(q.Machine) > maxText) {
			err = badRequest("machine is missing: the ID of one of the service's machines")
		}
		return func(ctx context.Context) (any, error) { return b.Pin(ctx, q) }, err
	}))
	if door == "socket" {
		handle("POST", PathLockAcquire, local(s, func(ctx context.Context, q AcquireRequest) (any, error) {
			if err := q.check(); err != nil {
				return nil, err
			}
			return b.Acquire(ctx, q)
		}))
		for path, do := range map[string]func(context.Context, TokenRequest) (Lease, error){PathLockRenew: b.Renew, PathLockRelease: b.Release} {
			handle("POST", path, local(s, func(ctx context.Context, q TokenRequest) (any, error) {
				if err := q.check(); err != nil {
					return nil, err
				}
				return do(ctx, q)
			}))
		}
		handle("GET", PathLockCheck, func(w http.ResponseWriter, r *http.Request) {
			q := TokenRequest{Lock: r.URL.Query().Get("lock"), Token: r.URL.Query().Get("token")}
			if err := q.check(); err != nil {
				writeProblem(w, problemOf(err))
				return
			}
			ctx, cancel := context.WithTimeout(r.Context(), workTimeout)
			defer cancel()
			v, err := b.CheckLock(ctx, q)
			s.answer(w, r, v, err)
		})
		return
	}
	handle("POST", PathLease, s.leading(maxBody, func(_ *http.Request, body []byte) (work, error) {
		var q leader.LockRequest
		err := decodeStrict(body, &q)
		if err == nil && !slices.Contains(leader.LockVerbs[:], q.Verb) {
			err = badRequest("verb: %q is none of %v", q.Verb, leader.LockVerbs)
		}
		return func(ctx context.Context) (any, error) { return b.Lease(ctx, q) }, err
	}))
	handle("POST", PathHeld, local(s, func(ctx context.Context, q HeldRequest) (any, error) { return b.Held(ctx, q.Epoch) }))
	handle("POST", PathLockEnd, local(s, func(ctx context.Context, q state.Lock) (any, error) {
		if state.Fence(q.Token) == 0 { // it names what is killed
			return nil, badRequest("token: %q is not one as it was granted, such as 1-42", q.Token)
		}
		return b.EndLock(ctx, q)
	}))
}

// local answers a request that is for this machine's own agent.
func local[Q any](s *Server, do func(ctx context.Context, q Q) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var q Q
		body, err := readBody(w, r, maxBody)
		if err == nil {
			err = decodeStrict(body, &q)
		}
		if err != nil {
			writeProblem(w, problemOf(err))
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), workTimeout)
		defer cancel()
		v, err := do(ctx, q)
		s.answer(w, r, v, err)
	}
}

func (q *AcquireRequest) check() error {
	if q.Policy == "" {
		q.Policy = state.Fenced
	}
	switch {
	case q.Lock == "" || len(q.Lock) > 100:
		return badRequest("lock: it must be a name of 1 to 100 bytes")
	case len(q.Session) < 8 || len(q.Session) > 100:
		return badRequest("session: it must be a random text of 8 to 100 bytes, the same in every try")
	case q.Policy != state.Fenced && q.Policy != state.Expiry:
		return badRequest("policy: %q is not fenced or expiry", q.Policy)
	case q.PID < 0 || q.Wrapper && q.PID == 0:
		return badRequest("pid: %d is not a process", q.PID)
	case len(q.Reason) > maxText:
		return badRequest("reason: it is longer than %d bytes", maxText)
	}
	return nil
}

func (q TokenRequest) check() error {
	if q.Lock == "" || state.Fence(q.Token) == 0 {
		return badRequest("lock and token are needed, the token as it was granted, such as 1-42")
	}
	return nil
}

// Acquire asks the agent for a lock, once.
func (c *Client) Acquire(ctx context.Context, r AcquireRequest) (Lease, error) {
	return post[Lease](ctx, c, PathLockAcquire, r)
}

// Renew lengthens a lease.
func (c *Client) Renew(ctx context.Context, r TokenRequest) (Lease, error) {
	return post[Lease](ctx, c, PathLockRenew, r)
}

// Release gives a lock back. The work must have ended.
func (c *Client) Release(ctx context.Context, r TokenRequest) (Lease, error) {
	return post[Lease](ctx, c, PathLockRelease, r)
}

// CheckLock asks whether a token is still the lock's.
func (c *Client) CheckLock(ctx context.Context, r TokenRequest) (Lease, error) {
	return get[Lease](ctx, c, PathLockCheck+"?"+url.Values{"lock": {r.Lock}, "token": {r.Token}}.Encode())
}

// Locks lists the locks that are held.
func (c *Client) Locks(ctx context.Context) ([]leader.LockView, error) {
	return get[[]leader.LockView](ctx, c, PathLocks)
}

// Unlock frees a lock by force.
func (c *Client) Unlock(ctx context.Context, r UnlockRequest) (Accepted, error) {
	return post[Accepted](ctx, c, PathUnlock, r)
}

// Pin makes a machine a service's primary.
func (c *Client) Pin(ctx context.Context, r PinRequest) (Accepted, error) {
	return post[Accepted](ctx, c, PathPin, r)
}

// Lease asks the leader about a lock, for a holder.
func (c *Client) Lease(ctx context.Context, r leader.LockRequest) (leader.LockAnswer, error) {
	return post[leader.LockAnswer](ctx, c, PathLease, r)
}

// Held asks a machine which locks it holds.
func (c *Client) Held(ctx context.Context, epoch uint64) ([]state.Lock, error) {
	return post[[]state.Lock](ctx, c, PathHeld, HeldRequest{Epoch: epoch})
}

// EndLock has a machine end what runs under a lock.
func (c *Client) EndLock(ctx context.Context, l state.Lock) (EndAnswer, error) {
	return post[EndAnswer](ctx, c, PathLockEnd, l)
}

// LeaseOf turns the leader's answer into what holders get.
func LeaseOf(lock string, a leader.LockAnswer) Lease {
	v := Lease{OK: a.OK, Lock: lock, Token: a.Token, Fence: state.Fence(a.Token), Why: a.Why}
	if a.Holder != nil {
		v.Holder = a.Holder.Machine
	}
	if a.Lease > 0 {
		v.LeaseMS, v.Renew, v.Grace = a.Lease.Milliseconds(), leader.LockRenew.Milliseconds(), leader.LockGrace.Milliseconds()
	}
	return v
}

// Left is how long a lease lasts from when its request was sent.
func (l Lease) Left() time.Duration { return time.Duration(l.LeaseMS) * time.Millisecond }
