package flytest

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// lease is one holder's claim on a machine.
type lease struct {
	nonce       string
	owner       string
	description string
	expires     time.Time
	version     string
}

// leaseData is a lease on the wire; expires_at is in unix seconds.
type leaseData struct {
	Nonce       string `json:"nonce,omitempty"`
	ExpiresAt   int64  `json:"expires_at"`
	Owner       string `json:"owner"`
	Description string `json:"description"`
	Version     string `json:"version,omitempty"`
}

// leaseEnvelope is the body of a lease answer.
type leaseEnvelope struct {
	Status string    `json:"status"`
	Data   leaseData `json:"data"`
}

func (l *lease) data(secret bool) leaseData {
	d := leaseData{ExpiresAt: l.expires.Unix(), Owner: l.owner, Description: l.description, Version: l.version}
	if secret {
		d.Nonce = l.nonce
	}
	return d
}

// held returns the lease if it has not expired; with the fleet's mu held.
func (m *machine) held() *lease {
	if m.lease != nil && !time.Now().Before(m.lease.expires) {
		m.lease = nil
	}
	return m.lease
}

// refused returns the 409 for one who does not hold the machine's lease; with mu held.
func (m *machine) refused(nonce string) error {
	l := m.held()
	if l == nil || l.nonce == nonce {
		return nil
	}
	return abortedf("machine ID %s lease currently held by %s, expires at %s", m.id, l.owner, l.expires.UTC().Format(time.RFC3339))
}

// grant gives a lease to the owner; with mu held.
func (f *fleet) grant(m *machine, owner, description string, ttl time.Duration) *lease {
	m.lease = &lease{nonce: f.ids.nonce(), owner: owner, description: description, expires: time.Now().Add(ttl), version: m.instanceID}
	f.touch()
	return m.lease
}

// acquire grants a lease, or extends the one that the nonce names; with mu held.
func (f *fleet) acquire(m *machine, nonce, owner, description string, ttl time.Duration) (*lease, error) {
	if l := m.held(); l != nil && l.nonce == nonce {
		l.expires = time.Now().Add(ttl)
		f.touch()
		return l, nil
	}
	if err := m.refused(""); err != nil {
		return nil, err
	}
	if nonce != "" {
		return nil, notFound("lease not found")
	}
	return f.grant(m, owner, description, ttl), nil
}

// release ends the lease that the nonce names; with mu held.
func (f *fleet) release(m *machine, nonce string) error {
	l := m.held()
	switch {
	case l == nil:
		return notFound("lease not found")
	case nonce == "":
		return failf(http.StatusBadRequest, "invalid_argument: lease nonce is required")
	case l.nonce != nonce:
		return m.refused(nonce)
	}
	m.lease = nil
	f.touch()
	return nil
}

// whenFree runs act with mu held once nobody else holds the machine's lease.
func (f *fleet) whenFree(ctx context.Context, app, id, nonce string, act func(*machine) error) error {
	return f.await(ctx, func() (bool, time.Time, error) {
		m, err := f.find(app, id)
		if err != nil {
			return false, time.Time{}, err
		}
		if m.refused(nonce) != nil {
			return false, m.lease.expires, nil
		}
		return true, time.Time{}, act(m)
	})
}

// HoldLease takes a machine's lease as somebody else would, a deploy for
// example, and returns its nonce.
func (s *Server) HoldLease(app, id, owner string, ttl time.Duration) (nonce string, err error) {
	s.fleet.mu.Lock()
	defer s.fleet.mu.Unlock()
	m, err := s.fleet.find(app, id)
	if err != nil {
		return "", fmt.Errorf("hold lease: %w", err)
	}
	l, err := s.fleet.acquire(m, "", owner, "", ttl)
	if err != nil {
		return "", fmt.Errorf("hold lease: %w", err)
	}
	return l.nonce, nil
}

// DropLease ends a lease that HoldLease took.
func (s *Server) DropLease(app, id, nonce string) error {
	s.fleet.mu.Lock()
	defer s.fleet.mu.Unlock()
	m, err := s.fleet.find(app, id)
	if err == nil {
		err = s.fleet.release(m, nonce)
	}
	if err != nil {
		return fmt.Errorf("drop lease: %w", err)
	}
	return nil
}
