package raftstore_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	gometrics "github.com/hashicorp/go-metrics"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"flymesh/raftstore"
	"flymesh/raftstore/arbitertest"
	"flymesh/raftstore/epoch"
	"flymesh/raftstore/state"
)

// tcp is a Network of plain sockets.
type tcp struct{ net.Listener }

func (n tcp) Addr() string { return n.Listener.Addr().String() }
func (n tcp) Dial(ctx context.Context, hostport string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", hostport)
}

// table is a gossip that knows all.
type table struct {
	mu sync.Mutex
	l  []raftstore.Peer
}

type others struct {
	t    *table
	self string
}

func (o others) Peers() (l []raftstore.Peer) {
	o.t.mu.Lock()
	defer o.t.mu.Unlock()
	for _, p := range o.t.l {
		if p.Machine != o.self {
			l = append(l, p)
		}
	}
	return l
}

// fleet is three stores on real sockets and the real clock.
type fleet struct {
	t      *testing.T
	reg    *arbitertest.Register
	gossip *table
	dirs   [3]string // data directories; empty: in memory
	addrs  [3]string
	boots  int
	stores []*raftstore.Store
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func newFleet(t *testing.T) *fleet {
	return &fleet{t: t, gossip: &table{}, reg: arbitertest.NewRegister(func(epoch.Voter) epoch.Fate { return epoch.Running })}
}

// start boots all three, at the addresses that they had.
func (f *fleet) start() {
	f.t.Helper()
	var ctx context.Context
	ctx, f.cancel = context.WithCancel(f.t.Context())
	f.boots++
	f.stores, f.gossip.l = nil, nil
	for i := range 3 {
		if f.addrs[i] == "" {
			f.addrs[i] = "127.0.0.1:0"
		}
		l, err := net.Listen("tcp", f.addrs[i])
		if err != nil {
			f.t.Fatal(err)
		}
		f.addrs[i] = l.Addr().String()
		self := raftstore.Self{Machine: fmt.Sprintf("m%d", i), Boot: fmt.Sprintf("b%d-%d", i, f.boots), App: "app", Region: "ams", Addr: f.addrs[i], BootAt: time.Now(), Eligible: true}
		f.gossip.mu.Lock()
		f.gossip.l = append(f.gossip.l, raftstore.Peer{Machine: self.Machine, Boot: self.Boot, App: self.App, Region: "ams", Addr: self.Addr, BootAt: self.BootAt, Eligible: true, Alive: true})
		f.gossip.mu.Unlock()
		s, err := raftstore.Open(raftstore.Options{
			Mesh: "test", Self: self, Network: tcp{l}, Peers: others{f.gossip, self.Machine}, Arbiter: f.reg.Client(0),
			Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), DataDir: f.dirs[i],
			FormAfter: 50 * time.Millisecond, RecoverAfter: 4 * time.Second, ReadTimeout: 100 * time.Millisecond,
		})
		if err != nil {
			f.t.Fatal(err)
		}
		f.stores = append(f.stores, s)
		f.wg.Go(func() {
			if err := s.Run(ctx); err != nil {
				f.t.Errorf("run: %v", err)
			}
		})
	}
}

func (f *fleet) stop() {
	f.cancel()
	f.wg.Wait()
}

// leader waits for a verified leader of three living voters.
func (f *fleet) leader() *raftstore.Store {
	f.t.Helper()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		for _, s := range f.stores {
			if st := s.Status(); st.Role == raftstore.Leader && len(st.Voters) == 3 && st.Healthy && s.Verify(f.t.Context()) == nil {
				return s
			}
		}
	}
	f.t.Fatal("no leader of three voters within 15 s")
	return nil
}

// TestVolume: servers with a data directory keep ID, log and epoch when all of
// them restart at once; a wiped one comes back as another server.
func TestVolume(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	for i := range f.dirs {
		f.dirs[i] = t.TempDir()
	}
	f.start()
	l := f.leader()
	for i := range 700 { // past a snapshot's threshold
		if _, err := l.Propose(t.Context(), state.Command{At: time.Now(), By: "test", Scale: &state.Scale{Service: "register", Target: i}}); err != nil {
			t.Fatal(err)
		}
	}
	ids := map[string]bool{}
	for _, s := range f.stores {
		ids[s.Status().Server] = true
	}
	for _, wiped := range []bool{false, false, true} {
		f.stop()
		if wiped {
			f.dirs[0] = t.TempDir()
		}
		f.start()
		begin := time.Now()
		l = f.leader()
		t.Logf("restarted, one volume lost %v: leader after %s", wiped, time.Since(begin))
		if e, v := l.Status().Epoch, value(l); e != 1 || v != 699 {
			t.Errorf("epoch %d, register %d, want 1 and 699", e, v)
		}
		for i, s := range f.stores {
			if id := s.Status().Server; ids[id] == (wiped && i == 0) {
				t.Errorf("lost volume %v: server ID %s", wiped && i == 0, id)
			}
		}
	}
	f.stop()
}

// TestLoopback runs proposals and a transfer on real sockets.
func TestLoopback(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.start()
	ctx := t.Context()
	l := f.leader()
	var took []time.Duration
	for i := range 200 {
		begin := time.Now()
		r, err := l.Propose(ctx, state.Command{At: begin, By: "test", Scale: &state.Scale{Service: "register", Target: i}})
		if err != nil || r.Err() != nil {
			t.Fatalf("propose: %v, %v", err, r.Err())
		}
		took = append(took, time.Since(begin))
	}
	t.Logf("200 proposals: %s", summary(took))
	if st := l.Status(); errors.Is(l.MayStop(st.Voters[0].Machine), raftstore.ErrVoter) == false {
		t.Errorf("a voter may be stopped: %v", l.MayStop(st.Voters[0].Machine))
	}
	begin := time.Now()
	if err := l.Transfer(ctx); err != nil {
		t.Errorf("transfer: %v", err)
	}
	n := f.leader()
	t.Logf("transfer took %s", time.Since(begin))
	if n == l || value(n) != 199 {
		t.Errorf("after the transfer: same leader %v, register %d", n == l, value(n))
	}
	f.stop()
}

// TestLibraryMetrics: raft's own counters are on the registry, and no label
// holds a server ID.
func TestLibraryMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	if err := raftstore.LibraryMetrics(reg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { gometrics.NewGlobal(gometrics.DefaultConfig(""), &gometrics.BlackholeSink{}) })
	var families []*dto.MetricFamily
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 3, raftstore.Fast)
		s.startAll()
		propose(t, s.voters(3, 20*time.Second), 1)
		var err error
		if families, err = reg.Gather(); err != nil { // inside: the sink forgets by the clock
			t.Error(err)
		}
		s.stopAll()
	})
	if len(families) < 10 {
		t.Errorf("only %d metrics", len(families))
	}
	for _, f := range families {
		for _, m := range f.Metric {
			for _, l := range m.Label {
				if strings.Contains(l.GetValue(), "boot") {
					t.Errorf("%s has label %s=%q", f.GetName(), l.GetName(), l.GetValue())
				}
			}
		}
		if strings.Contains(f.GetName(), "boot") {
			t.Errorf("metric name %s holds a server ID", f.GetName())
		}
	}
}
