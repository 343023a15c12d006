package raftstore_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"flymesh/raftstore"
	"flymesh/raftstore/arbitertest"
	"flymesh/raftstore/epoch"
	"flymesh/raftstore/raftnet"
)

// sim is a small fleet in one bubble: machines that boot, die and are cut off,
// a gossip that tells each what it can reach, and the arbiter.
type sim struct {
	t       testing.TB
	net     *raftnet.Net
	reg     *arbitertest.Register
	profile raftstore.Profile
	log     *slog.Logger
	noArb   bool
	api     time.Duration // of each call of the arbiter
	tune    func(*raftstore.Options)

	mu       sync.Mutex
	machines []*machine
	dying    []chan struct{}
}

type machine struct {
	s    *sim
	id   string
	addr string
	app  string

	mu       sync.Mutex
	boots    int
	bootAt   time.Time
	store    *raftstore.Store // nil while down
	host     *raftnet.Host
	arb      *arbitertest.Client
	cancel   context.CancelFunc
	done     chan struct{}
	epoch    uint64
	cluster  string
	eligible bool
}

func newSim(t testing.TB, n int, profile raftstore.Profile) *sim {
	s := &sim{t: t, net: raftnet.New(500 * time.Microsecond), api: 5 * time.Millisecond, profile: profile, log: slog.New(slog.DiscardHandler)}
	if os.Getenv("RAFTSTORE_LOG") != "" {
		start := time.Now()
		s.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo,
			ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				if a.Key == slog.TimeKey {
					return slog.String("t", time.Since(start).String())
				}
				return a
			}}))
	}
	s.reg = arbitertest.NewRegister(s.fate)
	for i := range n {
		id := fmt.Sprintf("m%d", i+1)
		s.machines = append(s.machines, &machine{s: s, id: id, addr: id + ":7947", app: []string{"n8n", "redis", "embed"}[i%3], eligible: true})
	}
	return s
}

// fate is what the API would say.
func (s *sim) fate(v epoch.Voter) epoch.Fate {
	for _, m := range s.machines {
		if m.id == v.Machine {
			m.mu.Lock()
			defer m.mu.Unlock()
			switch {
			case m.store == nil:
				return epoch.Stopped
			case m.bootAt.After(v.BootAt):
				return epoch.Rebooted
			}
			return epoch.Running
		}
	}
	return epoch.Destroyed
}

// Peers implements raftstore.Peers.
func (m *machine) Peers() []raftstore.Peer {
	var l []raftstore.Peer
	for _, o := range m.s.machines {
		if o == m {
			continue
		}
		o.mu.Lock()
		if o.boots > 0 {
			l = append(l, raftstore.Peer{
				Machine: o.id, Boot: o.boot(), App: o.app, Service: o.app, Region: "ams", Addr: o.addr, BootAt: o.bootAt,
				Epoch: o.epoch, Cluster: o.cluster, Eligible: o.eligible,
				Alive: o.store != nil && m.s.net.Open(m.addr, o.addr), Since: o.bootAt,
			})
		}
		o.mu.Unlock()
	}
	return l
}

func (m *machine) boot() string { return fmt.Sprintf("%s-boot%d", m.id, m.boots) }

// start boots a machine: blank, with a new boot ID, at its old address.
func (m *machine) start() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.boots++
	m.bootAt = time.Now()
	m.epoch, m.cluster = 0, ""
	m.host = m.s.net.Listen(m.addr)
	o := raftstore.Options{
		Mesh:    "test",
		Self:    raftstore.Self{Machine: m.id, Boot: m.boot(), App: m.app, Service: m.app, Region: "ams", Addr: m.addr, BootAt: m.bootAt, Eligible: m.eligible},
		Network: m.host, Peers: m, Profile: m.s.profile, Logger: m.s.log.With("machine", m.id),
		OnAdopt: func(e uint64, c string) {
			m.mu.Lock()
			m.epoch, m.cluster = e, c
			m.mu.Unlock()
		},
	}
	if !m.s.noArb {
		m.arb = m.s.reg.Client(m.s.api)
		o.Arbiter = m.arb
	} else {
		o.Founder = m.id == "m1"
	}
	if m.s.tune != nil {
		m.s.tune(&o)
	}
	st, err := raftstore.Open(o)
	if err != nil {
		m.s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.store, m.cancel, m.done = st, cancel, make(chan struct{})
	go func(done chan struct{}) {
		if err := st.Run(ctx); err != nil && !errors.Is(err, net.ErrClosed) { // the host of a killed machine closes first
			m.s.t.Errorf("run %s: %v", m.id, err)
		}
		close(done)
	}(m.done)
}

// stop ends a machine in order.
func (m *machine) stop() {
	m.mu.Lock()
	cancel, done, up := m.cancel, m.done, m.store != nil
	m.mu.Unlock()
	if up {
		cancel()
		<-done
		m.mu.Lock()
		m.store = nil
		m.mu.Unlock()
	}
}

// kill ends a machine at once: nothing of it reaches anybody any more.
func (m *machine) kill() {
	m.mu.Lock()
	up := m.store != nil
	host, cancel, done := m.host, m.cancel, m.done
	m.store = nil
	m.mu.Unlock()
	if up {
		host.Die()
		if m.arb != nil {
			m.arb.SetDown(true)
		}
		cancel()
		m.s.mu.Lock()
		m.s.dying = append(m.s.dying, done)
		m.s.mu.Unlock()
	}
}

func (m *machine) up() *raftstore.Store {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.store
}

func (s *sim) startAll() {
	for _, m := range s.machines {
		m.start()
	}
}

func (s *sim) stopAll() {
	for _, m := range s.machines {
		m.kill()
	}
	for _, d := range s.dying {
		<-d
	}
	time.Sleep(time.Minute)
}

// leader waits for a machine whose leadership is verified.
func (s *sim) leader(limit time.Duration) *machine {
	s.t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		for _, m := range s.machines {
			if st := m.up(); st != nil && st.Status().Role == raftstore.Leader && st.Verify(context.Background()) == nil {
				return m
			}
		}
	}
	s.dump()
	s.t.Fatalf("no leader within %s", limit)
	return nil
}

// voters waits until the leader has so many living voters.
func (s *sim) voters(n int, limit time.Duration) *machine {
	s.t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		for _, m := range s.machines {
			if st := m.up(); st != nil {
				v := st.Status()
				alive := 0
				for _, x := range v.Voters {
					if x.Alive {
						alive++
					}
				}
				if v.Role == raftstore.Leader && len(v.Voters) == n && alive == n && st.Verify(context.Background()) == nil {
					return m
				}
			}
		}
	}
	s.dump()
	s.t.Fatalf("not %d voters within %s", n, limit)
	return nil
}

func (s *sim) dump() {
	s.t.Logf("record: %+v", s.reg.Record())
	for _, m := range s.machines {
		if st := m.up(); st != nil {
			s.t.Logf("%s: %+v", m.id, st.Status())
		}
	}
}
