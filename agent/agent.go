// Package agent wires the parts on one machine and starts and stops them in
// order: gossip, raft, probes, leader, API. It holds no logic of its own beyond
// joining what the parts say.
//
// Run is the mesh half of the sidecar. It is a child of the supervisor
// (agent/supervise), which also runs the app: whatever happens in here, the
// app goes on.
package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"flymesh/agent/api"
	"flymesh/agent/config"
	"flymesh/agent/gossip"
	"flymesh/agent/identity"
	"flymesh/agent/redis"
	"flymesh/agent/supervise"
	"flymesh/leader"
	"flymesh/leader/flyapi"
	"flymesh/probes/report"
	"flymesh/raftstore"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
)

// Options are all that an agent is made of.
type Options struct {
	Config     *config.Config
	Machine    identity.Machine
	Secret     identity.Secret
	Tokens     map[string]identity.Token // by app; a machine that holds them all may vote
	APIBase    string                    // of the Machines API; empty: the public one
	Version    string
	Supervisor *supervise.Child // nil: nobody supervises, and the app is taken to run
	Logger     *slog.Logger

	PagerDutyKey identity.Token // routing key; none: PagerDuty is not told
	WebhookKey   identity.Token // signs the webhook
}

// agent is one running mesh half.
type agent struct {
	cfg     *config.Config
	svc     config.Service // this machine's
	self    identity.Machine
	boot    string
	bootAt  time.Time
	version string
	tls     *tls.Config
	log     *slog.Logger

	reg     *prometheus.Registry
	gossip  *gossip.Gossip
	store   *raftstore.Store // on machines that may not vote it only follows who leads
	cloud   *flyapi.Client   // nil: no tokens
	reports *leader.Reports
	leader  *leader.Leader
	health  *health
	locks   *lockKeeper
	redis   *redis.Redis  // of this machine; nil: it has none
	primary *redisPrimary // nil: the mesh does not touch the role of this machine's Redis
	server  *api.Server
	looked  atomic.Uint32 // lookups made, to take the apps in turn

	receivers []leader.Receiver
	steps     []leader.StepReceiver
	cries     cries
}

// Check says what is missing for an agent to start on this machine.
func Check(o Options) error {
	if _, ok := o.Config.ServiceOf(o.Machine.App, o.Machine.Group); !ok {
		return fmt.Errorf("find service: no [service.*] of mesh.toml has app = %q and group = %q; this machine is FLY_APP_NAME=%s FLY_PROCESS_GROUP=%s",
			o.Machine.App, o.Machine.Group, o.Machine.App, o.Machine.Group)
	}
	if _, err := netip.ParseAddr(o.Machine.PrivateIP); err != nil {
		return fmt.Errorf("read FLY_PRIVATE_IP=%q: it must be this machine's address on the private network", o.Machine.PrivateIP)
	}
	return nil
}

// Run joins the mesh and takes part in it until ctx ends. Then it hands over
// what it leads, says good-bye and returns.
func Run(ctx context.Context, o Options) error {
	if err := Check(o); err != nil {
		return err
	}
	a, err := open(o)
	if err != nil {
		return err
	}
	return a.run(ctx)
}

// membersChanged forgets machines that said good-bye: nothing more is expected
// of them.
func (a *agent) membersChanged() {
	for _, m := range a.gossip.Members() {
		if m.Left {
			a.reports.Leave(m.Machine)
		}
	}
}

// run starts the parts in order and stops them in reverse: each has its own
// context that ends when the ones started after it have returned.
func (a *agent) run(ctx context.Context) error {
	parts := []struct {
		name string
		run  func(context.Context) error
	}{
		{"gossip", a.gossip.Run},
		{"api", a.server.Run},
		{"reports", a.reports.Run},
		{"raft", a.store.Run},
		{"locks", a.locks.run},
		{"redis", a.runRedis},
		{"leader", a.runLeader},
		{"leaderless", a.runLeaderless},
		{"probes", a.health.run},
		{"reporter", a.runReporter},
		{"roles", a.runRoles},
	}
	var stops []func() error
	failed := make(chan error, len(parts))
	for _, p := range parts {
		pctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		var g errgroup.Group
		g.Go(func() error {
			err := p.run(pctx)
			if pctx.Err() == nil {
				if err == nil {
					err = errors.New("returned early")
				}
				failed <- fmt.Errorf("run %s: %w", p.name, err)
			}
			return err
		})
		stops = append(stops, func() error {
			cancel()
			if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
				return fmt.Errorf("stop %s: %w", p.name, err)
			}
			return nil
		})
	}
	a.log.Info("agent runs", "boot", a.boot, "version", a.version, "config", a.cfg.Hash(), "eligible", a.eligible())
	var errs []error
	select {
	case <-ctx.Done():
	case err := <-failed:
		errs = append(errs, err)
	}
	for _, stop := range slices.Backward(stops) {
		if err := stop(); err != nil && len(errs) == 0 {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (a *agent) runLeader(ctx context.Context) error {
	return a.leader.Run(ctx, terms(ctx, a.store.Terms()))
}

// runReporter sends this machine's report each report interval, and at once
// when its readiness changes.
func (a *agent) runReporter(ctx context.Context) error {
	t := time.NewTicker(a.cfg.Mesh.ReportEvery)
	defer t.Stop()
	var seq uint64
	send := func(urgent, leaving bool) {
		seq++
		if err := a.gossip.Report(a.report(seq, leaving), urgent); err != nil {
			a.log.Warn("send report failed", "error", err)
		}
	}
	for {
		select {
		case <-ctx.Done():
			send(true, true)
			return nil
		case <-a.health.changed:
			send(true, false)
		case <-t.C:
			send(false, false)
		}
	}
}

func (a *agent) report(seq uint64, leaving bool) report.Report {
	r := report.Report{
		Machine: a.self.ID, Boot: a.boot, Seq: seq, Epoch: a.gossip.Self().Epoch, Service: a.svc.Name,
		Region: a.self.Region, Version: a.version, Config: a.cfg.Hash(), Uptime: time.Since(a.bootAt), Leaving: leaving,
	}
	a.health.fill(&r)
	r.Busy = r.Busy || a.locks.busy() != ""
	r.Cried = a.cries.at()
	return r
}

// runRoles tells the others what this machine is in raft, and fetches the
// history of reports when it begins to hear them.
func (a *agent) runRoles(ctx context.Context) error {
	if !a.eligible() { // it never gets a part in raft
		<-ctx.Done()
		return nil
	}
	t := time.NewTicker(250 * time.Millisecond)
	defer t.Stop()
	needHistory := true
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		role := a.roleOf(a.store.Role())
		if a.gossip.Self().Role != role {
			if err := a.gossip.Update(func(m *gossip.Meta) { m.Role = role }); err != nil {
				a.log.Warn("tell role failed", "error", err)
			}
		}
		if needHistory && role.Hears() {
			needHistory = !a.fetchHistory(ctx)
		}
	}
}

// roleOf is the raft role as gossip tells it.
func (a *agent) roleOf(r raftstore.Role) gossip.Role {
	switch r {
	case raftstore.Leader:
		return gossip.Leader
	case raftstore.Voter, raftstore.Candidate:
		return gossip.Voter
	case raftstore.Nonvoter:
		return gossip.Nonvoter
	}
	if a.eligible() {
		return gossip.Candidate
	}
	return gossip.Agent
}

// fetchHistory copies the leader's windows. A leader has nobody to ask.
func (a *agent) fetchHistory(ctx context.Context) bool {
	self, addr, ok := a.Route()
	if self {
		return true
	}
	if !ok {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	b, err := a.dial(addr).Windows(ctx)
	if err == nil {
		err = a.reports.Import(b)
	}
	if err == nil {
		err = a.fetchPast(ctx, addr)
	}
	if err != nil {
		a.log.Debug("copy history failed", "from", addr, "error", err)
		return false
	}
	a.log.Info("history copied", "from", addr, "bytes", len(b))
	return true
}

// dial returns a client of another machine's mesh port.
func (a *agent) dial(addr string) *api.Client { return api.NewMeshClient(addr, a.tls) }
