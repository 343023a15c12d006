package flytest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"sync"
	"time"

	fly "github.com/superfly/fly-go"
)

// strategy carries the deploy out.
func (r *deployment) strategy(ctx context.Context, ms []*fly.Machine) error {
	switch r.Strategy {
	case "bluegreen":
		return r.blueGreen(ctx, ms)
	case "immediate":
		return r.each(ctx, ms, deployAtOnce, func(m *fly.Machine) error { return r.update(ctx, m, false) })
	case "canary":
		if err := r.canary(ctx, ms); err != nil {
			return err
		}
	}
	at := int(r.MaxUnavailable)
	if r.MaxUnavailable < 1 {
		at = int(math.Floor(r.MaxUnavailable * float64(len(ms))))
	}
	return r.each(ctx, ms, min(deployAtOnce, max(1, at)), func(m *fly.Machine) error { return r.update(ctx, m, true) })
}

// each does something to every machine, to so many at once. After an error it
// begins no more.
func (r *deployment) each(ctx context.Context, ms []*fly.Machine, at int, do func(*fly.Machine) error) error {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex // guards errs
		errs []error
	)
	slots := make(chan struct{}, at)
	for _, m := range ms {
		slots <- struct{}{}
		mu.Lock()
		failed := len(errs) > 0 || ctx.Err() != nil
		mu.Unlock()
		if failed {
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := do(m); err != nil {
				mu.Lock()
				errs = append(errs, fmt.Errorf("machine %s: %w", m.ID, err))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return errors.Join(append(errs, ctx.Err())...)
}

// update gives a machine the new release in place, or replaces it where its
// host is gone: the old one may come back with the old release.
func (r *deployment) update(ctx context.Context, m *fly.Machine, healthy bool) error {
	if m.HostStatus != fly.HostStatusOk {
		n, err := r.launch(ctx, m, fly.LaunchMachineInput{})
		if err == nil && healthy {
			err = r.healthy(ctx, n.ID)
		}
		return err
	}
	c, err := r.config(m)
	if err != nil {
		return err
	}
	runs := m.State == fly.MachineStateStarted || m.State == stateStarting || m.State == stateRestarting
	in := fly.LaunchMachineInput{Config: c, Region: m.Region, Name: m.Name, SkipLaunch: !runs}
	for end := time.Now().Add(r.Timeout); ; {
		err = r.call(ctx, http.MethodPost, r.path(m.ID), r.nonce(m.ID), in, nil)
		if err == nil || time.Now().After(end) || !r.again(ctx, err) {
			break
		}
	}
	if err != nil || !runs || !healthy {
		return err
	}
	return r.healthy(ctx, m.ID)
}

// launch makes a machine like m with the new release, under a lease.
func (r *deployment) launch(ctx context.Context, m *fly.Machine, in fly.LaunchMachineInput) (*fly.Machine, error) {
	c, err := r.config(m)
	if err != nil {
		return nil, err
	}
	if r.Strategy == "bluegreen" {
		c = withMetadata(c, fly.MachineConfigMetadataKeyFlyctlBGTag, strconv.Itoa(r.release))
	}
	in.Config, in.Region, in.LeaseTTL = c, m.Region, deployLease
	n := new(fly.Machine)
	if err := r.call(ctx, http.MethodPost, "/v1/apps/"+r.app+"/machines", "", in, n); err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.leases[n.ID] = n.LeaseNonce
	r.mu.Unlock()
	return n, nil
}

// canary tries the new release on one more machine, which does not stay.
func (r *deployment) canary(ctx context.Context, ms []*fly.Machine) error {
	if len(ms) == 0 {
		return nil
	}
	n, err := r.launch(ctx, ms[0], fly.LaunchMachineInput{})
	if err != nil {
		return fmt.Errorf("canary: %w", err)
	}
	if err = r.healthy(ctx, n.ID); err != nil {
		err = fmt.Errorf("canary: %w", err)
	}
	return errors.Join(err, r.destroy(ctx, n.ID))
}

// blueGreen makes a second set of machines beside the first, with the same
// metadata, takes no traffic to it until all of it is healthy, and then
// destroys the first.
func (r *deployment) blueGreen(ctx context.Context, blue []*fly.Machine) error {
	var (
		mu    sync.Mutex // guards green
		green []*fly.Machine
	)
	err := r.each(ctx, blue, deployAtOnce, func(m *fly.Machine) error {
		runs := m.State == fly.MachineStateStarted || m.State == stateStarting
		n, err := r.launch(ctx, m, fly.LaunchMachineInput{SkipServiceRegistration: true, SkipLaunch: !runs})
		if err != nil {
			return err
		}
		mu.Lock()
		green = append(green, n)
		mu.Unlock()
		if !runs {
			return nil
		}
		return r.healthy(ctx, n.ID)
	})
	if err != nil {
		clean := context.WithoutCancel(ctx)
		return errors.Join(err, r.each(clean, green, deployAtOnce, func(m *fly.Machine) error { return r.destroy(clean, m.ID) }))
	}
	for _, set := range []struct {
		ms []*fly.Machine
		do func(*fly.Machine) error
	}{
		{green, func(m *fly.Machine) error { return r.post(ctx, m.ID, "uncordon") }},
		{blue, func(m *fly.Machine) error { return r.post(ctx, m.ID, "cordon") }},
		{blue, func(m *fly.Machine) error { return r.stop(ctx, m.ID) }},
		{blue, func(m *fly.Machine) error { return r.destroy(ctx, m.ID) }},
	} {
		if err := r.each(ctx, set.ms, deployAtOnce, set.do); err != nil {
			return err
		}
	}
	return nil
}

func (r *deployment) post(ctx context.Context, id, action string) error {
	return r.call(ctx, http.MethodPost, r.path(id)+"/"+action, r.nonce(id), nil, nil)
}

// stop stops a machine and waits until it has stopped.
func (r *deployment) stop(ctx context.Context, id string) error {
	if err := r.post(ctx, id, "stop"); err != nil {
		var e *apiError
		if !errors.As(err, &e) || e.code != http.StatusPreconditionFailed {
			return err
		}
		return nil // it does not run
	}
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	return r.s.Await(ctx, id, fly.MachineStateStopped)
}

// destroy destroys a machine, and with it its lease.
func (r *deployment) destroy(ctx context.Context, id string) error {
	nonce := r.nonce(id)
	r.mu.Lock()
	delete(r.leases, id) // nothing is left to refresh
	r.mu.Unlock()
	return r.call(ctx, http.MethodDelete, r.path(id)+"?force=true", nonce, nil, nil)
}

// healthy waits until a machine is started and every route into the app that
// it serves has seen it healthy since.
func (r *deployment) healthy(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	if err := r.s.Await(ctx, id, fly.MachineStateStarted); err != nil {
		return err
	}
	last := "no check has run"
	err := r.s.fleet.await(ctx, func() (bool, time.Time, error) {
		m := r.s.fleet.byID(id)
		if m == nil {
			return false, time.Time{}, notFound("machine not found")
		}
		if !r.s.routed(m) {
			return true, time.Time{}, nil
		}
		if len(m.checks) == 0 {
			return false, time.Time{}, nil
		}
		last = m.checks[0].Output
		return m.state == fly.MachineStateStarted && m.checks[0].Status == fly.Passing, time.Time{}, nil
	})
	if err != nil {
		return fmt.Errorf("machine does not become healthy: %s: %w", last, err)
	}
	return nil
}

// routed reports whether a route leads to the machine; with the fleet's mu held.
func (s *Server) routed(m *machine) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.routes {
		if r.app == m.app && serves(m.config, r.port) {
			return true
		}
	}
	return false
}
