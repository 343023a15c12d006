package agent

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"flymesh/agent/api"
	"flymesh/agent/proxy"
	"flymesh/agent/supervise"
	"flymesh/leader"
	"flymesh/probes"
	"flymesh/probes/gate"
	"flymesh/probes/report"
)

const (
	// stepEvery is how often readiness is judged where nothing happens. A new
	// result of a probe, the end of the app and the leader's word are judged at
	// once, and a change is told at once.
	stepEvery = 500 * time.Millisecond
	// idleEvery is how often a drain looks at what is in flight.
	idleEvery = 100 * time.Millisecond
)

// failAfter is how many looks of the probes in a row must fail before a ready
// machine takes no more traffic: one lost answer is no outage. The end of the
// app's process needs no second look.
const failAfter = 2

// health is what this machine measures and whether it takes traffic: the
// probes, the readiness gate and the drain.
type health struct {
	a      *agent
	child  *supervise.Child // nil: nobody supervises
	runner *probes.Runner
	proxy  *proxy.Proxy // nil: the app takes its traffic itself

	// changed is sent to when readiness changes.
	changed chan struct{}

	mu        sync.Mutex // guards all below
	note      note
	gate      *gate.Gate
	looks     uint64 // of the probes, at the last step
	admitted  bool
	revoked   bool           // the leader took the admission back
	leaving   bool           // the machine is about to stop: no way back
	draining  bool           // the leader wants it empty
	emptied   bool           // and it was, within this drain
	role      report.AppRole // what a role-aware command runs
	readiness report.Readiness
	reason    string
	since     time.Time
}

// covers is how many report intervals counts and latencies are of: at the
// usual 5 s, those of the last minute.
const covers = 12

func newHealth(a *agent, child *supervise.Child) (*health, error) {
	root := os.Getpid()
	if child != nil {
		root = os.Getppid()
	}
	h := &health{a: a, child: child, changed: make(chan struct{}, 1), since: time.Now()}
	var list []probes.Schedule
	for _, p := range a.svc.Probes {
		pr, err := prober(p, root, covers*a.cfg.Mesh.ReportEvery, h.appRole)
		if err != nil {
			return nil, fmt.Errorf("make %s probe of service %s: %w", p.Type, a.svc.Name, err)
		}
		list = append(list, probes.Schedule{Prober: pr, Every: p.Every, Timeout: p.Timeout, Ready: p.Ready})
	}
	front, err := openProxy(a)
	if err != nil {
		return nil, err
	}
	if front != nil {
		list = append(list, probes.Schedule{Prober: front, Every: a.cfg.Mesh.ReportEvery, Timeout: a.cfg.Mesh.ReportEvery})
	}
	runner, err := probes.NewRunner(list, a.log)
	if err != nil {
		return nil, fmt.Errorf("make probes of service %s: %w", a.svc.Name, err)
	}
	gated := a.svc.Gate == "leader"
	h.runner, h.proxy = runner, front
	h.gate = gate.New(gate.Options{Gated: gated, FailAfter: failAfter, NoLeaderGrace: a.cfg.Mesh.NoLeaderGrace})
	h.note = noteOf(a.cfg.Mesh.Socket, child)
	if h.note.ready() {
		h.gate.Resume(h.since)
		h.readiness = report.Ready
		a.log.Info("readiness resumed: the app was ready and has run on")
	}
	return h, nil
}

// run probes and judges until ctx ends.
func (h *health) run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { _ = h.runner.Run(ctx) })
	var lost <-chan error // the proxy's end
	if h.proxy != nil {
		ended := make(chan error, 1)
		wg.Go(func() { ended <- h.proxy.Run(ctx) })
		lost = ended
	}
	var drains <-chan supervise.DrainRequest
	if h.child != nil {
		drains = h.child.Drains()
		wg.Go(func() {
			if err := h.child.Run(ctx, nil); err != nil {
				h.a.log.Warn("the supervisor is gone; the app and the mesh go on without it", "error", err)
			}
		})
	}
	var exited <-chan struct{}
	if h.child != nil {
		exited = h.child.AppExited()
	}
	t := time.NewTicker(stepEvery)
	defer t.Stop()
	for {
		h.step()
		select {
		case <-ctx.Done():
			return nil
		case err := <-lost:
			return err // a mesh half that starts anew listens again
		case <-t.C:
		case <-h.runner.Changed():
		case <-exited:
			exited = nil
		case d := <-drains:
			wg.Go(func() { h.leave(ctx, d) })
		}
	}
}

// step judges readiness from what the probes say now.
func (h *health) step() {
	m, problems := h.runner.Collect()
	looks := h.runner.Looks()
	up := true
	if h.child != nil {
		select {
		case <-h.child.AppExited():
			up = false
		default:
		}
	}
	ok, reason := m.Ready == nil || *m.Ready, m.Reason
	if !ok && reason == "" {
		reason = strings.Join(problems, "; ")
	}
	// A probe that warms the app up says when that is done; without one the app
	// is warm when its probes succeed.
	warm := ok
	if m.Warm != nil {
		warm = *m.Warm
	}
	leads := h.a.leaderKnown()

	h.mu.Lock()
	defer h.mu.Unlock()
	same := looks > 0 && looks == h.looks
	h.looks = looks
	closed := h.draining || h.leaving
	switching := h.role == report.Switching
	if h.proxy != nil {
		h.proxy.Drain(closed)
	}
	r, why, since := h.gate.Step(time.Now(), gate.Input{
		AppUp: up && !switching, ProbesOK: ok, Reason: reason, Same: same, WarmedUp: warm, Admitted: h.admitted, Revoked: h.revoked,
		LeaderKnown: leads, Draining: closed,
	})
	if switching && up && !closed {
		why = "the app is changing its role"
	}
	if h.note.wants(r == report.Ready) {
		if err := h.note.write(r == report.Ready); err != nil {
			h.a.log.Debug("note readiness failed", "error", err)
		}
	}
	if r != h.readiness {
		h.a.log.Info("readiness changed", "from", h.readiness.String(), "to", r.String(), "reason", why)
		select {
		case h.changed <- struct{}{}:
		default: // one is due already
		}
	}
	h.readiness, h.reason, h.since = r, why, since
}

// health is the body of /health.
func (h *health) health() (api.Health, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return api.Health{
		State: h.readiness.String(), Reason: h.reason, Since: h.since.UTC(), Machine: h.a.self.ID, Service: h.a.svc.Name,
	}, h.readiness == report.Ready
}

// fill puts what is measured into a report.
func (h *health) fill(r *report.Report) {
	m, _ := h.runner.Collect()
	m.Fill(r)
	r.Evicting = evicting(m.Facts)
	h.mu.Lock()
	defer h.mu.Unlock()
	r.AppRole, r.Readiness, r.Reason = h.role, h.readiness, h.reason
}

// problems says which measurements of this machine are missing and why.
func (h *health) problems() []string {
	_, problems := h.runner.Collect()
	out := make([]string, 0, len(problems))
	for _, p := range problems {
		out = append(out, fmt.Sprintf("machine %s: %s", h.a.self.ID, p))
	}
	return out
}

// admit follows the leader's word on this boot: that it may be ready, or that
// it may no longer.
func (h *health) admit(revoke bool) {
	h.mu.Lock()
	h.admitted, h.revoked = !revoke, revoke
	h.mu.Unlock()
	h.step()
}

func (h *health) appRole() report.AppRole {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.role
}

// runs takes in which program a role-aware command runs. One that has just
// begun is judged anew, from its start.
func (h *health) runs(r report.AppRole) {
	h.mu.Lock()
	was := h.role
	h.role = r
	h.mu.Unlock()
	if r == was {
		return
	}
	h.a.log.Info("role of the app changed", "from", was.String(), "to", r.String())
	h.step()
	select {
	case h.changed <- struct{}{}:
	default: // one is due already
	}
}

func (h *health) drain(on bool) {
	h.mu.Lock()
	h.draining, h.emptied = on, false
	h.mu.Unlock()
	h.step()
}

// idle waits until nothing is in flight, or for at most limit. An app that
// does not say how much it has in flight gets the whole time.
func (h *health) idle(ctx context.Context, limit time.Duration) (leader.DrainResult, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	t := time.NewTicker(idleEvery)
	defer t.Stop()
	var r leader.DrainResult
	for quiet := 0; ; {
		m, _ := h.runner.Collect()
		switch {
		case m.InFlight.OK && m.InFlight.X == 0 && (!m.Queue.OK || m.QueueScope == report.QueueService || m.Queue.X == 0):
			// The proxy may still have been about to send one: idle means twice
			// in a row, a measurement apart.
			if quiet++; time.Duration(quiet)*idleEvery > 2*h.a.cfg.Mesh.ReportEvery {
				h.mu.Lock()
				h.emptied = true
				h.mu.Unlock()
				return leader.DrainResult{Done: true}, nil
			}
		case m.InFlight.OK:
			quiet, r.InFlight = 0, int(m.InFlight.X)
		default:
			quiet = 0
		}
		select {
		case <-ctx.Done():
			return r, nil
		case <-t.C:
		}
	}
}

// leave answers the supervisor: the machine is about to stop. It takes no more
// traffic from now on, and the app gets its signal when it is idle.
func (h *health) leave(ctx context.Context, d supervise.DrainRequest) {
	h.mu.Lock()
	h.leaving = true
	empty := h.draining && h.emptied
	h.mu.Unlock()
	h.step()
	if !empty { // the leader has not drained it before
		_, _ = h.idle(ctx, time.Until(d.Deadline))
	}
	if err := d.Done(); err != nil {
		h.a.log.Warn("answer supervisor failed", "error", err)
	}
}
