package raftstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"flymesh/raftstore/epoch"
)

// Self says who this machine is.
type Self struct {
	Machine string
	Boot    string // made new at each start of the agent
	App     string
	Service string
	Region  string
	Addr    string // host:port of the mesh port
	BootAt  time.Time
	Burst   bool
	// Eligible machines may vote: they hold the API tokens, their service has
	// vote = true, and they are not burst machines.
	Eligible bool
}

// Network carries authenticated connections between the machines of the mesh.
// Run closes it when it returns.
type Network interface {
	Accept() (net.Conn, error)
	Dial(ctx context.Context, hostport string) (net.Conn, error)
	Addr() string
	Close() error
}

// Peer is another machine as gossip knows it now.
type Peer struct {
	Machine  string
	Boot     string
	App      string
	Service  string
	Region   string
	Addr     string // host:port of the mesh port
	BootAt   time.Time
	Epoch    uint64
	Cluster  string
	Eligible bool
	Burst    bool
	Alive    bool
	Since    time.Time // when it became alive or dead
}

// Peers lists every known machine but this one, also those that died recently.
type Peers interface {
	Peers() []Peer
}

// Arbiter is the register outside raft that says which cluster is the mesh,
// and the judge of what became of a voter. Each method has its own deadline
// inside.
type Arbiter interface {
	// Read returns the record, the zero one if none was ever written.
	Read(ctx context.Context) (epoch.Record, error)
	// Lease makes races rare; it is not what safety rests on.
	Lease(ctx context.Context, ttl time.Duration) (release func(context.Context) error, err error)
	// Write replaces the record, unless it finds that of another cluster of
	// the same or a later epoch. It cannot exclude one that is written between
	// its look and its write: the last writer wins.
	Write(ctx context.Context, r epoch.Record) error
	// Fates answers by machine ID; a voter of whom nothing is known may be absent.
	Fates(ctx context.Context, voters []epoch.Voter) (map[string]epoch.Fate, error)
}

// Profile is a set of raft timeouts that suits a network.
type Profile string

// The profiles: one quiet region, one region with shared CPUs, several regions.
const (
	Fast    Profile = "fast"    // heartbeat and election 500 ms, lease 250 ms
	Default Profile = "default" // 1 s, 500 ms
	Wide    Profile = "wide"    // 2 s, 1 s; voters may be in several regions
)

// timeouts returns heartbeat (which is also the election timeout) and lease.
func (p Profile) timeouts() (heartbeat, lease time.Duration, err error) {
	switch p {
	case Fast:
		return 500 * time.Millisecond, 250 * time.Millisecond, nil
	case Default, "":
		return time.Second, 500 * time.Millisecond, nil
	case Wide:
		return 2 * time.Second, time.Second, nil
	}
	return 0, 0, fmt.Errorf("raft profile %q is not fast, default or wide", string(p))
}

// Options of Open. Mesh, Self, Network, Peers and Logger are required.
type Options struct {
	Mesh    string // machines of another mesh are refused
	Self    Self
	Network Network
	Peers   Peers
	Arbiter Arbiter // nil: Founder decides who founds, and nothing recovers by itself
	Founder bool    // founds the first cluster where there is no Arbiter
	Profile Profile

	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
	// DataDir on a volume keeps log and identity over a restart; empty: in
	// memory, and each start is a new server.
	DataDir string
	// OnAdopt is told which cluster this machine now knows as the mesh, so
	// that gossip can carry it. It must not block.
	OnAdopt func(epoch uint64, cluster string)

	FormAfter    time.Duration // patience before the first formation; default 1.5 s
	RecoverAfter time.Duration // without a leader before a recovery; default 30 s
	SilentAfter  time.Duration // silence before a voter is replaced; default 30 s
	ShrinkAfter  time.Duration // too few eligible machines before voters are given up; default 30 s
	ReadTimeout  time.Duration // of one read of the record; default 2 s
}

// verifyLimit is how old the proof of leadership may be when an action starts.
const verifyLimit = 250 * time.Millisecond

// quarantine is how long a founder waits between writing the record and
// acting: whoever verified against the older record has finished by then.
func (o Options) quarantine() time.Duration { return o.ReadTimeout + 2*verifyLimit }

func (o *Options) check() error {
	if _, _, err := o.Profile.timeouts(); err != nil {
		return err
	}
	switch {
	case o.Mesh == "" || len(o.Mesh) > maxField:
		return errors.New("mesh name is missing or too long")
	case o.Self.Machine == "" || o.Self.Boot == "" || o.Self.Addr == "":
		return errors.New("machine, boot and address are required")
	case len(o.Self.Machine)+len(o.Self.Boot) > maxField-8:
		return errors.New("machine and boot ID are too long")
	case o.Network == nil || o.Peers == nil || o.Logger == nil:
		return errors.New("network, peers and logger are required")
	}
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&o.FormAfter, 1500*time.Millisecond)
	set(&o.RecoverAfter, 30*time.Second)
	set(&o.SilentAfter, 30*time.Second)
	set(&o.ShrinkAfter, 30*time.Second)
	set(&o.ReadTimeout, 2*time.Second)
	if o.OnAdopt == nil {
		o.OnAdopt = func(uint64, string) {}
	}
	return nil
}
