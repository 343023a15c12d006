package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"flymesh/agent/api"
	"flymesh/agent/gossip"
	"flymesh/leader"
	"flymesh/leader/decide"
	"flymesh/raftstore"
	"flymesh/raftstore/state"
)

var _ api.Backend = (*agent)(nil)

// Route says who answers what only the leader can: this node, or the leader's
// address.
func (a *agent) Route() (self bool, addr string, ok bool) {
	switch st := a.store.Status(); {
	case st.Role == raftstore.Leader:
		return true, "", true
	case st.LeaderAddr != "":
		return false, st.LeaderAddr, true
	}
	// News of the newest election may have come by gossip first.
	for _, m := range a.members() {
		if m.Alive && m.Role == gossip.Leader && m.Machine != a.self.ID {
			return false, m.MeshAddr, true
		}
	}
	return false, "", false
}

// Health is what /health says.
func (a *agent) Health() (api.Health, bool) { return a.health.health() }

// Drain is asked by the leader before it stops this machine.
func (a *agent) Drain(ctx context.Context, r api.DrainRequest) (leader.DrainResult, error) {
	if r.Undo {
		a.health.drain(false)
		return leader.DrainResult{}, nil
	}
	a.health.drain(true)
	if busy := a.locks.busy(); busy != "" {
		return leader.DrainResult{Busy: busy}, nil
	}
	return a.health.idle(ctx, r.Deadline)
}

// Admit is the leader's word that this boot may be ready, or may no longer.
func (a *agent) Admit(_ context.Context, r api.AdmitRequest) error {
	if r.Boot != a.boot {
		return fmt.Errorf("admit boot %q: this is boot %q", r.Boot, a.boot)
	}
	a.health.admit(r.Revoke)
	return nil
}

// view returns the newest round, or ErrNoLeader where this node does not lead.
// A leader that was elected a moment ago is given time for its first round.
func (a *agent) view(ctx context.Context) (leader.View, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	for {
		if v, ok := a.leader.View(); ok {
			return v, nil
		}
		if a.store.Status().Role != raftstore.Leader {
			return leader.View{}, api.ErrNoLeader
		}
		select {
		case <-ctx.Done():
			return leader.View{}, fmt.Errorf("%w: its first round is not over", api.ErrNoLeader)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Status tells the whole mesh.
func (a *agent) Status(ctx context.Context) (api.Status, error) {
	v, err := a.view(ctx)
	if err != nil {
		return api.Status{}, err
	}
	return a.leaderStatus(v), nil
}

// Why tells the newest verdict on a service.
func (a *agent) Why(ctx context.Context, service string) (decide.Verdict, error) {
	if err := a.known(service); err != nil {
		return decide.Verdict{}, err
	}
	v, err := a.view(ctx)
	if err != nil {
		return decide.Verdict{}, err
	}
	for _, d := range v.Verdicts {
		if d.Service == service {
			return d, nil
		}
	}
	return decide.Verdict{}, fmt.Errorf("no verdict on service %q yet", service)
}

// Events tells what happened after an index.
func (a *agent) Events(ctx context.Context, after uint64) ([]state.Event, error) {
	if _, err := a.view(ctx); err != nil {
		return nil, err
	}
	all := a.store.State().Events
	i, _ := slices.BinarySearchFunc(all, after+1, func(e state.Event, x uint64) int {
		if e.Index < x {
			return -1
		}
		return 1
	})
	return all[i:], nil
}

// Scale records a size that a person asked for. It bypasses the cooldown, never
// the cap or the primary.
func (a *agent) Scale(ctx context.Context, r api.ScaleRequest) (api.Accepted, error) {
	if err := a.known(r.Service); err != nil {
		return api.Accepted{}, err
	}
	v, err := a.view(ctx)
	if err != nil {
		return api.Accepted{}, err
	}
	svc, _ := a.cfg.Service(r.Service)
	running := 0
	for _, m := range v.Input.Machines {
		if m.Service == r.Service && m.State == "started" {
			running++
		}
	}
	from := running
	if m := a.store.State().Service(r.Service).Manual; m != nil && r.Target == nil {
		from = m.Target // a second +1 while the first is under way means two
	}
	target := from + r.Delta
	if r.Target != nil {
		target = *r.Target
	}
	switch p := svc.Policy; {
	case target > p.Max:
		return api.Accepted{}, badRequest("scale %s to %d: the cap is %d machines (service.%s.max)", r.Service, target, p.Max, r.Service)
	case target < 1:
		return api.Accepted{}, badRequest("scale %s to %d: at least 1 machine stays", r.Service, target)
	case p.Mode == decide.Off || svc.Owner == "proxy":
		return api.Accepted{}, badRequest("scale %s: flymesh does not own this service (mode %q, owner %q)", r.Service, p.Mode, svc.Owner)
	}
	res, err := a.command(ctx, r.By, state.Command{Scale: &state.Scale{Service: r.Service, Target: target, Reason: r.Reason}})
	if err != nil {
		return api.Accepted{}, err
	}
	return api.Accepted{Index: res.Index, Text: fmt.Sprintf("%s goes from %d to %d machines, one at a time", r.Service, running, target)}, nil
}

// Pause stops scaling of a service for a while.
func (a *agent) Pause(ctx context.Context, r api.PauseRequest) (api.Accepted, error) {
	if err := a.known(r.Service); err != nil {
		return api.Accepted{}, err
	}
	if r.For <= 0 || r.For > 7*24*time.Hour {
		return api.Accepted{}, badRequest("pause %s for %s: a pause lasts more than 0 and at most 168h", r.Service, r.For)
	}
	until := time.Now().UTC().Add(r.For)
	res, err := a.command(ctx, r.By, state.Command{Pause: &state.Pause{Service: r.Service, Until: until, Reason: r.Reason}})
	if err != nil {
		return api.Accepted{}, err
	}
	return api.Accepted{Index: res.Index, Text: fmt.Sprintf("%s is not scaled until %s", r.Service, until.Format(time.RFC3339))}, nil
}

// Resume ends a pause.
func (a *agent) Resume(ctx context.Context, r api.PauseRequest) (api.Accepted, error) {
	if err := a.known(r.Service); err != nil {
		return api.Accepted{}, err
	}
	res, err := a.command(ctx, r.By, state.Command{Resume: &state.Resume{Service: r.Service}})
	if err != nil {
		return api.Accepted{}, err
	}
	return api.Accepted{Index: res.Index, Text: r.Service + " is scaled again"}, nil
}

// Propose commits a command that another machine of the mesh sends.
func (a *agent) Propose(ctx context.Context, c state.Command) (state.Result, error) {
	r, err := a.store.Propose(ctx, c)
	if errors.Is(err, raftstore.ErrNotLeader) {
		return r, fmt.Errorf("%w: %w", api.ErrNoLeader, err)
	}
	return r, err
}

// Windows returns the history of reports for a new voter.
func (a *agent) Windows(context.Context) ([]byte, error) { return a.reports.Export() }

// command commits what a person asked for.
func (a *agent) command(ctx context.Context, by string, c state.Command) (state.Result, error) {
	c.ID, c.At, c.By = rand.Text(), time.Now().UTC(), by
	r, err := a.Propose(ctx, c)
	if err != nil {
		return r, err
	}
	if err := r.Err(); err != nil {
		return r, badRequest("%s", strings.TrimPrefix(err.Error(), state.ErrRejected.Error()+": "))
	}
	return r, nil
}

func (a *agent) known(service string) error {
	if _, ok := a.cfg.Service(service); ok {
		return nil
	}
	var names []string
	for _, s := range a.cfg.Services {
		names = append(names, s.Name)
	}
	return badRequest("service %q is not in mesh.toml; it has %s", service, strings.Join(names, ", "))
}

func badRequest(format string, args ...any) error {
	return &api.RequestError{Text: fmt.Sprintf(format, args...)}
}
