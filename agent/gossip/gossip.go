// Package gossip finds the other agents and carries their reports: an adapter
// on hashicorp/memberlist.
//
// Every agent knows every member and its Meta. Reports go to the voters and
// stand-bys alone, one packet each, so that a fleet of N costs O(N) packets.
// What gossip says of a member is news, not proof: "dead" means that nobody
// reached it, and is never by itself a ground for an action.
//
// Open makes the member list live; Run owns all goroutines and must be called
// once. All methods may be called from any goroutine and none waits for the
// network. OnReport and OnChange are each called from one goroutine.
package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"flymesh/probes/report"
)

// Options of Open. Meta, Keys and Bind are required; the rest has the zero
// value's meaning.
type Options struct {
	Meta Meta
	Bind string // IP address to listen on and to tell others; must be one of this machine's
	Port int    // UDP and TCP; 0: any free one

	// Keys returns the AES-256 keys of the moment; the first encrypts, all
	// decrypt. It is asked again every keyRefresh, so that keys can follow the
	// day.
	Keys  func(now time.Time) [][]byte
	Label string // separates meshes that share a network; at most MaxLabel bytes

	// Seeds returns addresses host:port or host of others, itself included or
	// not. It may be slow and may fail by returning nothing.
	Seeds func(ctx context.Context) []string

	Transport memberlist.NodeAwareTransport // nil: UDP and TCP on Bind:Port
	Loopback  bool                          // members live on 127.0.0.0/8 or ::1, not on 6PN (fdaa::/16)

	OnReport   func(report.Report) // one goroutine, in order of arrival; own reports too
	OnChange   func()              // after any change of Members; changes may be joined into one call
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// MaxLabel is the longest label in bytes: a report of full size, encrypted and
// labelled, must fit maxDatagram.
const MaxLabel = 32

// maxDatagram is the largest UDP payload that no IPv6 path splits: the
// smallest MTU less the IPv6 and UDP headers.
const maxDatagram = 1280 - 48

// Timing. Detection of a silent member takes about 2 to 5 s with these.
const (
	probeInterval  = 500 * time.Millisecond
	probeTimeout   = 250 * time.Millisecond
	gossipInterval = 200 * time.Millisecond
	// exchangeInterval is how often a member exchanges the whole list with
	// another, twice that from 33 members on. At 50 members of the default 30 s
	// that would be a third of all traffic; what it repairs, lost news, is rare.
	exchangeInterval = time.Minute
	streamTimeout    = 5 * time.Second // dial, and each exchange on a stream
	updateTimeout    = 2 * time.Second
	leaveTimeout     = time.Second
	rejoinEvery      = 20 * time.Second
	joinBackoff      = 200 * time.Millisecond // first; doubles to joinBackoffMax while nobody is found
	joinBackoffMax   = 5 * time.Second
	seedTimeout      = 5 * time.Second
	keyRefresh       = 10 * time.Minute // the ring also holds the next day's keys
	settleEvery      = 5 * time.Second
	rememberDead     = 10 * time.Minute
)

// Gossip is one agent's place in the member list.
type Gossip struct {
	opts    Options
	log     *slog.Logger
	list    *memberlist.Memberlist
	keyring *memberlist.Keyring
	net     *transport
	metrics *metrics

	members *members
	update  chan struct{}      // capacity 1: own Meta changed
	changed chan struct{}      // capacity 1: the table changed
	inbox   chan report.Report // heard reports, for OnReport
	urgent  chan struct{}      // semaphore of urgent sends
	sends   sync.WaitGroup     // urgent sends under way

	mu     sync.Mutex // guards closed against sends
	closed bool
}

// Open starts the member list with this agent alone in it. Run must follow.
func Open(o Options) (*Gossip, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Seeds == nil {
		o.Seeds = func(context.Context) []string { return nil }
	}
	if len(o.Label) > MaxLabel {
		return nil, fmt.Errorf("open gossip: label %q is longer than %d bytes", o.Label, MaxLabel)
	}
	raw, err := o.Meta.Encode()
	if err != nil {
		return nil, fmt.Errorf("open gossip: %w", err)
	}
	ip, err := netip.ParseAddr(o.Bind)
	if err != nil || ip.IsUnspecified() {
		return nil, fmt.Errorf("open gossip: bind %q is not the address of one interface", o.Bind)
	}
	allowed := "fdaa::/16"
	if o.Loopback {
		allowed = "127.0.0.0/8 or ::1"
	}
	cidrs, err := memberlist.ParseCIDRs(cidrsFor(o.Loopback))
	if err != nil {
		return nil, fmt.Errorf("open gossip: %w", err)
	}
	if c := (memberlist.Config{CIDRsAllowed: cidrs}); c.IPAllowed(ip.AsSlice()) != nil {
		return nil, fmt.Errorf("open gossip: bind %s is not in %s", ip, allowed)
	}
	keyring, err := newKeyring(o.Keys, time.Now())
	if err != nil {
		return nil, fmt.Errorf("open gossip: %w", err)
	}

	g := &Gossip{
		opts: o, log: o.Logger, keyring: keyring, metrics: newMetrics(o.Registerer),
		update: make(chan struct{}, 1), changed: make(chan struct{}, 1),
		inbox: make(chan report.Report, inboxSize), urgent: make(chan struct{}, maxUrgent),
	}
	g.members = newMembers(o.Meta, raw, g.log, g.metrics, func() { signal(g.changed) })
	mlog := newLogger(g.log)
	inner := o.Transport
	if inner == nil {
		if inner, err = listen(ip, o.Port, mlog); err != nil {
			return nil, fmt.Errorf("open gossip: listen on %s port %d: %w", ip, o.Port, err)
		}
	}
	g.net = newTransport(inner, g.metrics)
	addr, port, err := g.net.FinalAdvertiseAddr("", 0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open gossip: %w", err), g.net.Shutdown())
	}

	c := memberlist.DefaultLANConfig()
	c.Name = o.Meta.Machine
	c.Transport = g.net
	c.Label = o.Label
	c.BindAddr, c.BindPort = ip.String(), port
	c.AdvertiseAddr, c.AdvertisePort = addr.String(), port
	c.TCPTimeout = streamTimeout
	c.ProbeInterval, c.ProbeTimeout = probeInterval, probeTimeout
	c.SuspicionMult = 3
	c.GossipInterval = gossipInterval
	c.PushPullInterval = exchangeInterval
	c.UDPBufferSize = 1200
	c.EnableCompression = false
	c.RequireNodeNames = true
	c.CIDRsAllowed = cidrs
	c.DeadNodeReclaimTime = 5 * time.Second
	c.HandoffQueueDepth = 4096
	c.Keyring = keyring
	c.Delegate = &delegate{g}
	c.Events = g.members
	c.Logger = mlog
	if g.list, err = memberlist.Create(c); err != nil {
		return nil, errors.Join(fmt.Errorf("open gossip: %w", err), g.net.Shutdown())
	}
	return g, nil
}

func cidrsFor(loopback bool) []string {
	if loopback {
		return []string{"127.0.0.0/8", "::1/128"}
	}
	return []string{"fdaa::/16"}
}

// Addr returns the address that the others reach this member at.
func (g *Gossip) Addr() netip.AddrPort { return g.members.selfAddr() }

// Run joins the mesh, keeps it joined and delivers reports and changes until
// ctx ends; then it tells the others that it leaves and closes the sockets.
func (g *Gossip) Run(ctx context.Context) error {
	// Updates and delivery go on while the departure is announced.
	defer context.AfterFunc(ctx, g.net.abort)()
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var group errgroup.Group
	group.Go(func() error { g.keepMeta(work); return nil })
	group.Go(func() error { g.deliver(work); return nil })
	group.Go(func() error { g.notify(work); return nil })
	group.Go(func() error { g.keepKeys(work); return nil })
	g.keepJoined(ctx)

	err := g.leave()
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	stop()
	err = errors.Join(err, g.list.Shutdown())
	g.sends.Wait()
	return errors.Join(err, group.Wait())
}

// leave tells the others that this is an end in good order and no failure:
// first by the Meta, because the leave message itself does not reach the
// receivers' event callbacks, then by memberlist's leave.
func (g *Gossip) leave() error {
	begin := time.Now()
	if !g.Self().Leaving && !g.alone() {
		if err := g.members.setSelf(func(m *Meta) { m.Leaving = true }); err != nil {
			return fmt.Errorf("leave gossip: %w", err)
		}
		if err := g.list.UpdateNode(leaveTimeout / 2); err != nil {
			g.log.Debug("leaving not announced", "error", err)
		}
	}
	if err := g.list.Leave(leaveTimeout - time.Since(begin)); err != nil {
		g.log.Debug("leave not confirmed", "error", err)
	}
	return nil
}

// Members returns copies of all members, this one and those that died in the
// last ten minutes included, in order of machine ID; one entry a machine, of
// its newest boot.
func (g *Gossip) Members() []Member { return g.members.all(time.Now()) }

// Self returns this member's Meta.
func (g *Gossip) Self() Meta { return g.members.selfMeta() }

// Update changes this member's Meta and has it passed on soon; changes that
// come close together are passed on as one. The identity (machine, boot) stays
// what it is. It fails, and changes nothing, when the result cannot be encoded.
func (g *Gossip) Update(change func(*Meta)) error {
	if err := g.members.setSelf(change); err != nil {
		return fmt.Errorf("update meta: %w", err)
	}
	signal(g.update)
	return nil
}

// keepMeta passes changes of the own Meta on. UpdateNode blocks until the news
// has been sent often enough, hence a goroutine of its own.
func (g *Gossip) keepMeta(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.update:
		}
		if err := g.list.UpdateNode(updateTimeout); err != nil {
			// The news stays queued inside memberlist; only the wait ended.
			g.log.Debug("meta not passed on yet", "error", err)
		}
	}
}

// notify calls OnChange, never from within memberlist.
func (g *Gossip) notify(ctx context.Context) {
	settle := time.NewTicker(settleEvery)
	defer settle.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-settle.C:
			g.members.settle(now)
			continue
		case <-g.changed:
		}
		if g.opts.OnChange != nil {
			g.opts.OnChange()
		}
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
