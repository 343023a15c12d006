package agent

import (
	"context"
	"fmt"
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
	"flymesh/agent/web"
	"flymesh/leader"
	"flymesh/leader/flyapi"
	"flymesh/raftstore"
	"flymesh/raftstore/state"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

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
	a.reports = leader.NewReports(o.Config.Mesh.ReportEvery, o.Config.Policy(), o.Config.Goals()...)
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
	if err := a.openRedis(); err != nil {
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
	a.cries.told = map[leader.Receiver]time.Time{}
	a.openReceivers(o)
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
		Locks: a, Jobs: a, Redis: a,
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

// lookup asks the Machines API where the others run: one app a call, each in
// its turn and another agent's app first. Agents that start together would
// otherwise spend what the API allows on the same listings; one address found
// is enough to join.
func (a *agent) lookup(ctx context.Context) ([]string, error) {
	apps := a.cfg.TokenApps()
	if len(apps) == 0 {
		return nil, nil
	}
	own := slices.Index(apps, a.self.App)
	app := apps[(own+int(a.looked.Add(1)))%len(apps)]
	ms, err := a.cloud.List(ctx, app)
	if err != nil {
		return nil, err
	}
	var addrs []string
	for _, m := range ms {
		if m.State == "started" && m.PrivateIP != "" && m.ID != a.self.ID {
			addrs = append(addrs, net.JoinHostPort(m.PrivateIP, strconv.Itoa(a.cfg.Mesh.GossipPort)))
		}
	}
	return addrs, nil
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
			Failover: leader.Failover{
				Managed: s.Redis.Failover != config.FailoverOff, Auto: s.Redis.Failover == config.FailoverAuto, After: s.Redis.FailoverAfter,
			},
		})
	}
	o.Store, o.Cloud = leaderStore{a.store}, a.cloud
	a.leader = leader.New(o)
}
