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

// TestLoopback runs three stores on real sockets and the real clock.
func TestLoopback(t *testing.T) {
	reg := arbitertest.NewRegister(func(epoch.Voter) epoch.Fate { return epoch.Running })
	gossip := &table{}
	var stores []*raftstore.Store
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	for i := range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		self := raftstore.Self{Machine: fmt.Sprintf("m%d", i), Boot: fmt.Sprintf("b%d", i), App: "app", Region: "ams", Addr: l.Addr().String(), BootAt: time.Now(), Eligible: true}
		gossip.mu.Lock()
		gossip.l = append(gossip.l, raftstore.Peer{Machine: self.Machine, Boot: self.Boot, App: self.App, Region: "ams", Addr: self.Addr, BootAt: self.BootAt, Eligible: true, Alive: true})
		gossip.mu.Unlock()
		s, err := raftstore.Open(raftstore.Options{
			Mesh: "test", Self: self, Network: tcp{l}, Peers: others{gossip, self.Machine}, Arbiter: reg.Client(0), Profile: raftstore.Fast,
			Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
			FormAfter: 50 * time.Millisecond, ReadTimeout: 100 * time.Millisecond,
		})
		if err != nil {
			t.Fatal(err)
		}
		stores = append(stores, s)
		wg.Go(func() {
			if err := s.Run(ctx); err != nil {
				t.Errorf("run: %v", err)
			}
		})
	}
	find := func() *raftstore.Store {
		for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			for _, s := range stores {
				if st := s.Status(); st.Role == raftstore.Leader && len(st.Voters) == 3 && st.Healthy && s.Verify(ctx) == nil {
					return s
				}
			}
		}
		t.Fatal("no leader of three voters within 15 s")
		return nil
	}
	l := find()
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
	n := find()
	t.Logf("transfer took %s", time.Since(begin))
	if n == l || value(n) != 199 {
		t.Errorf("after the transfer: same leader %v, register %d", n == l, value(n))
	}
	cancel()
	wg.Wait()
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
