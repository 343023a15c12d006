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
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"flymesh/agent/api"
	"flymesh/agent/config"
	"flymesh/agent/gossip"
	"flymesh/agent/identity"
	"flymesh/agent/supervise"
	"flymesh/agent/web"
	"flymesh/leader"
	"flymesh/leader/flyapi"
	"flymesh/probes/report"
	"flymesh/raftstore"
	"flymesh/raftstore/state"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
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
	server  *api.Server

	receivers []leader.Receiver
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

func open(o Options) (*agent, error) {
	svc, _ := o.Config.ServiceOf(o.Machine.App, o.Machine.Group)
	a := &agent{
		cfg: o.Config, svc: svc, self: o.Machine, boot: identity.NewBoot(), bootAt: time.Now().UTC(),
		version: o.Version, log: o.Logger.With("machine", o.Machine.ID, "service", svc.Name),
		reg: prometheus.NewRegistry(),
	}
	a.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	var err error
	if a.tls, err = o.Secret.TLS(o.Config.Mesh.Name, a.self.ID, a.boot, time.Now()); err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	if a.health, err = newHealth(a, o.Supervisor); err != nil {
		return nil, err
	}
	a.reg.MustRegister(a.health)
	a.reports = leader.NewReports(o.Config.Mesh.ReportEvery, o.Config.Policy())
	if err := raftstore.LibraryMetrics(a.reg); err != nil {
		return nil, fmt.Errorf("register library metrics: %w", err)
	}
	if err := a.openCloud(o); err != nil {
		return nil, err
	}
	holder := state.Holder{Machine: a.self.ID, App: a.self.App, Boot: a.boot}
	if a.locks, err = openLocks(holder, a.cfg.Mesh.Socket, a.log, a.lease); err != nil {
		return nil, err
	}
	if err := a.openServer(o); err != nil {
		return nil, err
	}
	if err := a.openGossip(o); err != nil {
		return nil, err
	}
	if err := a.openStore(); err != nil {
		return nil, err
	}
	a.receivers = a.openReceivers(o)
	a.openLeader()
	a.reg.MustRegister(newCollector(a), leader.NewCollector(a.leader))
	return a, nil
}

func (a *agent) openCloud(o Options) error {
	if len(o.Tokens) == 0 {
		return nil
	}
	tokens := map[string]flyapi.Token{}
	for app, t := range o.Tokens {
		tokens[app] = flyapi.NewToken(t.Reveal())
	}
	c, err := flyapi.New(flyapi.Options{
		Tokens: tokens, BaseURL: o.APIBase, UserAgent: "flymesh/" + o.Version, Logger: a.log, Registerer: a.reg,
	})
	if err != nil {
		return fmt.Errorf("open Machines API: %w", err)
	}
	a.cloud = c
	return nil
}

// eligible says whether this machine may vote: its service does, it was not
// made for a burst, and it holds every token that a leader needs.
func (a *agent) eligible() bool {
	return a.svc.Vote && !a.self.Burst && a.cloud != nil
}

func (a *agent) meshAddr() string {
	return net.JoinHostPort(a.self.PrivateIP, strconv.Itoa(a.cfg.Mesh.MeshPort))
}

// healthAddr is where /health and /metrics are. Fly's checks and its scraper do
// not come by the private network, so off loopback they are on every address.
func (a *agent) healthAddr() string {
	host := ""
	if ip, err := netip.ParseAddr(a.self.PrivateIP); err == nil && ip.IsLoopback() {
		host = a.self.PrivateIP // many machines share this kernel
	}
	return net.JoinHostPort(host, strconv.Itoa(a.cfg.Mesh.HealthPort))
}

func (a *agent) openServer(o Options) error {
	page, err := web.New(web.Options{
		Data:    func(ctx context.Context) ([]byte, error) { return a.server.PageData(ctx) },
		History: func(w http.ResponseWriter, r *http.Request) { a.server.ServeHistory(w, r) },
		Token:   o.Secret.PageToken(o.Config.Mesh.Name), Logger: a.log,
	})
	if err != nil {
		return err
	}
	s, err := api.NewServer(api.Options{
		Backend: a, Raft: a, Page: page, TLS: a.tls, Logger: a.log, Gatherer: conventional{a.reg}, Registerer: a.reg,
		Locks: a, Jobs: a,
		Socket: a.cfg.Mesh.Socket, Mesh: a.meshAddr(),
		Health: a.healthAddr(),
	})
	if err != nil {
		return fmt.Errorf("open API: %w", err)
	}
	a.server = s
	return nil
}

func (a *agent) openGossip(o Options) error {
	ip := netip.MustParseAddr(a.self.PrivateIP)
	role := gossip.Agent
	if a.eligible() {
		role = gossip.Candidate
	}
	g, err := gossip.Open(gossip.Options{
		Meta: gossip.Meta{
			Machine: a.self.ID, Boot: a.boot, BootAt: a.bootAt, App: a.self.App, Service: a.svc.Name, Group: a.self.Group,
			Region: a.self.Region, Role: role, MeshAddr: a.meshAddr(), Version: a.version, Config: a.cfg.Hash(),
			Eligible: a.eligible(), Burst: a.self.Burst,
		},
		Bind: a.self.PrivateIP, Port: a.cfg.Mesh.GossipPort,
		Keys:  func(now time.Time) [][]byte { return o.Secret.GossipKeys(a.cfg.Mesh.Name, now) },
		Label: a.cfg.Mesh.Name, Loopback: ip.IsLoopback(), Seeds: a.discovery().Seeds,
		OnReport: a.reports.Add, OnChange: a.membersChanged, Logger: a.log, Registerer: a.reg,
	})
	if err != nil {
		return fmt.Errorf("open gossip: %w", err)
	}
	a.gossip = g
	return nil
}

// discovery finds the others by whatever mesh.toml names: DNS, the Machines
// API, an explicit list.
func (a *agent) discovery() gossip.Discovery {
	d := gossip.Discovery{Port: a.cfg.Mesh.GossipPort, Self: a.self.PrivateIP, Logger: a.log}
	for _, way := range a.cfg.Mesh.Discover {
		switch way {
		case "dns":
			d.Apps = a.cfg.Apps()
		case "peers":
			d.Peers = a.cfg.Mesh.Peers
		case "api":
			if a.cloud != nil {
				d.Lookup = a.lookup
			}
		}
	}
	return d
}

// lookup asks the Machines API where the others run.
func (a *agent) lookup(ctx context.Context) ([]string, error) {
	var addrs []string
	var errs []error
	for _, app := range a.cfg.TokenApps() {
		ms, err := a.cloud.List(ctx, app)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, m := range ms {
			if m.State == "started" && m.PrivateIP != "" && m.ID != a.self.ID {
				addrs = append(addrs, net.JoinHostPort(m.PrivateIP, strconv.Itoa(a.cfg.Mesh.GossipPort)))
			}
		}
	}
	if len(addrs) > 0 {
		return addrs, nil
	}
	return nil, errors.Join(errs...)
}

func (a *agent) openStore() error {
	var arbiter raftstore.Arbiter
	if a.cloud != nil {
		arbiter = flyapi.NewArbiter(a.cloud, a.cfg.Mesh.AnchorApp)
	}
	s, err := raftstore.Open(raftstore.Options{
		Mesh: a.cfg.Mesh.Name,
		Self: raftstore.Self{
			Machine: a.self.ID, Boot: a.boot, App: a.self.App, Service: a.svc.Name, Region: a.self.Region,
			Addr: a.meshAddr(), BootAt: a.bootAt, Burst: a.self.Burst, Eligible: a.eligible(),
		},
		Network: a.server.Raft(), Peers: raftPeers{a.gossip}, Arbiter: arbiter,
		Profile: raftstore.Profile(a.cfg.Mesh.Profile), Logger: a.log, Registerer: a.reg,
		OnAdopt: func(epoch uint64, cluster string) {
			if err := a.gossip.Update(func(m *gossip.Meta) { m.Epoch, m.Cluster = epoch, cluster }); err != nil {
				a.log.Warn("tell cluster failed", "error", err)
			}
		},
	})
	if err != nil {
		return fmt.Errorf("open raft: %w", err)
	}
	a.store = s
	return nil
}

// raftPeers shows gossip's members as raft's peers.
type raftPeers struct{ g *gossip.Gossip }

// Peers implements raftstore.Peers.
func (p raftPeers) Peers() []raftstore.Peer {
	self := p.g.Self().Machine
	var out []raftstore.Peer
	for _, m := range p.g.Members() {
		if m.Machine == self {
			continue
		}
		out = append(out, raftstore.Peer{
			Machine: m.Machine, Boot: m.Boot, App: m.App, Service: m.Service, Region: m.Region, Addr: m.MeshAddr,
			BootAt: m.BootAt, Epoch: m.Epoch, Cluster: m.Cluster, Eligible: m.Eligible, Burst: m.Burst,
			Alive: m.Alive, Since: m.Since,
		})
	}
	return out
}

func (a *agent) openLeader() {
	o := leader.Options{
		Self: a.self.ID, Policy: a.cfg.Policy(), Reports: a.reports, Agents: agents{a}, Holders: agents{a}, Jobs: leaderJobs(a.cfg.Jobs),
		Round: a.cfg.Mesh.ReportEvery, DrainTimeout: a.cfg.Mesh.DrainTimeout,
		StartTimeout: a.cfg.Mesh.StartTimeout, ReadyTimeout: a.cfg.Mesh.ReadyTimeout, PinGrace: a.cfg.Mesh.PinGrace,
		Logger: a.log, Metrics: leader.NewMetrics(a.reg), Alerting: a.alerting(),
	}
	for _, s := range a.cfg.Services {
		o.Services = append(o.Services, leader.Service{
			Policy: s.Policy, App: s.App, Group: s.Group, Gated: s.Gate == "leader", Owner: s.Owner,
			Suspend: s.StopMode == "suspend", Regions: s.Regions,
		})
	}
	o.Store, o.Cloud = leaderStore{a.store}, a.cloud
	a.leader = leader.New(o)
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
