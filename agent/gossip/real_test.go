package gossip

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"flymesh/probes/report"
	"flymesh/raftstore/stranger/logtest"
)

// meter is the real transport with a note of the largest packet.
type meter struct {
	*sockets
	mu    sync.Mutex // guards largest
	large int
}

func (m *meter) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	m.mu.Lock()
	m.large = max(m.large, len(b))
	m.mu.Unlock()
	return m.sockets.WriteToAddress(b, a)
}

func (m *meter) largest() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.large
}

// real runs an agent on real sockets of 127.0.0.<last>.
func real(t *testing.T, last byte, change func(*Options)) (*Gossip, func() []report.Report) {
	t.Helper()
	var mu sync.Mutex
	var heard []report.Report
	o := Options{
		Meta: Meta{Machine: fmt.Sprintf("m%d", last), Boot: "b", BootAt: time.Now(), Role: Voter},
		Bind: fmt.Sprintf("127.0.0.%d", last), Loopback: true, Label: "flymesh-test",
		Keys:   func(time.Time) [][]byte { return key(1) },
		Logger: slog.New(slog.DiscardHandler),
		OnReport: func(r report.Report) {
			mu.Lock()
			defer mu.Unlock()
			heard = append(heard, r)
		},
	}
	if change != nil {
		change(&o)
	}
	g, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run does not end")
		}
	})
	return g, func() []report.Report {
		mu.Lock()
		defer mu.Unlock()
		return append([]report.Report(nil), heard...)
	}
}

func poll(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

func living(g *Gossip) int { return len(g.members.living()) }

// fullReport is a report that needs all of the space that there is.
func fullReport(t *testing.T, machine string) report.Report {
	t.Helper()
	v := report.Of(1.0 / 3)
	r := report.Report{
		Machine: machine, Boot: strings.Repeat("f", 32), Seq: 1 << 40, Epoch: 1 << 40, Service: strings.Repeat("s", 60),
		Region: "fra", Version: strings.Repeat("v", 60), Config: "01234567", Uptime: time.Hour,
		CPU: v, Steal: v, Memory: v, Queue: v, InFlight: v, Requests: v, Errors: v,
		Reason: strings.Repeat("r", 160),
	}
	// The more buckets, the larger, until the resolution is halved: the largest
	// of all is close to the limit.
	large, best := 0, r
	for buckets := 10; buckets < 600; buckets += 3 {
		r.Latency = report.NewSketch()
		for i := range buckets {
			r.Latency.AddCount(math.Pow(1.03, float64(i-200)), 1000+float64(i))
		}
		b, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > large {
			large, best = len(b), r
		}
	}
	if large < report.MaxSize*99/100 {
		t.Fatalf("the largest report has %d bytes of %d: not a hard case", large, report.MaxSize)
	}
	return best
}

// Three agents on real sockets, with the longest label, find each other, carry
// full reports and send no packet that an IPv6 path could split.
func TestRealSockets(t *testing.T) {
	label := strings.Repeat("x", MaxLabel)
	log := newLogger(slog.New(slog.DiscardHandler))
	var meters []*meter
	var gs []*Gossip
	var heard []func() []report.Report
	seed := ""
	for i := range 3 {
		last := byte(21 + i)
		nt, err := listen(netip.AddrFrom4([4]byte{127, 0, 0, last}), 0, log)
		if err != nil {
			t.Fatal(err)
		}
		m := &meter{sockets: nt}
		s := seed
		g, h := real(t, last, func(o *Options) {
			o.Label, o.Transport = label, m
			o.Meta.App, o.Meta.Service = strings.Repeat("a", 150), strings.Repeat("s", 150)
			o.Seeds = func(context.Context) []string { return []string{s} }
		})
		meters, gs, heard = append(meters, m), append(gs, g), append(heard, h)
		if seed == "" {
			seed = g.Addr().String()
		}
	}
	for _, g := range gs {
		poll(t, "three members", func() bool { return living(g) == 3 })
	}
	for _, g := range gs {
		if err := g.Report(fullReport(t, g.Self().Machine), false); err != nil {
			t.Fatal(err)
		}
		if err := g.Report(fullReport(t, g.Self().Machine), true); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range heard {
		poll(t, "six reports", func() bool { return len(h()) == 6 })
	}
	for i, m := range meters {
		t.Logf("agent %d: largest datagram %d bytes of %d", i, m.largest(), maxDatagram)
		if m.largest() > maxDatagram {
			t.Errorf("agent %d sent a datagram of %d bytes, at most %d are safe", i, m.largest(), maxDatagram)
		}
		if m.largest() < report.MaxSize*99/100 {
			t.Errorf("agent %d: no full report was measured", i)
		}
	}
}

// Who has another key or label is not let in and reads nothing.
func TestStrangersStayOut(t *testing.T) {
	g, heard := real(t, 31, nil)
	seeds := func(context.Context) []string { return []string{g.Addr().String()} }
	wrongKey, _ := real(t, 32, func(o *Options) {
		o.Keys, o.Seeds = func(time.Time) [][]byte { return key(2) }, seeds
	})
	wrongLabel, _ := real(t, 33, func(o *Options) { o.Label, o.Seeds = "another", seeds })
	friend, _ := real(t, 34, func(o *Options) { o.Seeds = seeds })
	poll(t, "the friend joins", func() bool { return living(g) == 2 && living(friend) == 2 })
	for _, s := range []*Gossip{wrongKey, wrongLabel} {
		// Both have tried by now: the friend that came later is in.
		poll(t, "the stranger has tried", func() bool { return testutil.ToFloat64(s.metrics.joins.WithLabelValues("failed")) > 0 })
		n := nodeOf("m31", g.Addr())
		if err := s.list.SendBestEffort(n, []byte{kindReport}); err != nil {
			t.Fatal(err)
		}
		if living(s) != 1 {
			t.Errorf("%s sees %d members", s.Self().Machine, living(s))
		}
	}
	if living(g) != 2 || len(heard()) != 0 {
		t.Errorf("%d members and %d reports, want 2 and 0", living(g), len(heard()))
	}
}

// Strangers that try 10,000 times are told of once each, and leave neither
// goroutines nor memory behind.
func TestFloodOfStrangers(t *testing.T) {
	log := &logtest.Log{}
	g, heard := real(t, 71, func(o *Options) { o.Logger = log.Logger() })
	at := g.Addr().String()
	wrongKey, _ := real(t, 72, func(o *Options) { o.Keys = func(time.Time) [][]byte { return key(2) } })
	wrongLabel, _ := real(t, 73, func(o *Options) { o.Label = "another" })
	r := rand.New(rand.NewPCG(1, 2))
	udp, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 74)}, net.UDPAddrFromAddrPort(g.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	garbage := func() []byte {
		b := make([]byte, 1+r.IntN(200))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		if r.IntN(2) == 0 { // with the right label in front
			b = append([]byte{244, byte(len("flymesh-test"))}, append([]byte("flymesh-test"), b...)...)
		}
		return b
	}
	stream := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 75)}, Timeout: 5 * time.Second}
	try := func(i int) {
		switch {
		case i%50 == 0: // memberlist itself, over both sockets
			s := []*Gossip{wrongKey, wrongLabel}[i/50%2]
			if _, err := s.list.Join([]string{at}); err == nil {
				t.Error("a stranger joins")
			}
			if err := s.list.SendBestEffort(nodeOf("m71", g.Addr()), []byte{kindReport}); err != nil {
				t.Fatal(err)
			}
		case i%4 == 0:
			c, err := stream.Dial("tcp", at)
			if err != nil {
				t.Fatal(err)
			}
			c.Write(garbage())
			c.Close()
		default:
			if _, err := udp.Write(garbage()); err != nil {
				t.Fatal(err)
			}
		}
	}
	heap := func() uint64 {
		runtime.GC()
		var ms runtime.MemStats
		runtime.ReadMemStats(&ms)
		return ms.HeapAlloc
	}
	for i := range 200 {
		try(i)
	}
	goroutines, memory := runtime.NumGoroutine(), heap()
	for i := range 10_000 {
		try(i)
	}
	poll(t, "its goroutines end", func() bool { return runtime.NumGoroutine() <= goroutines+5 })
	if now := heap(); now > memory+4<<20 {
		t.Errorf("%d bytes in use before, %d after", memory, now)
	}
	for _, host := range []string{"127.0.0.72", "127.0.0.74", "127.0.0.75"} {
		if n := log.Count("remote=" + host + ":"); n == 0 || n > 2 { // the second is the newest of a sum
			t.Errorf("%s is told of %d times", host, n)
		}
	}
	t.Log(log)
	if n := log.Count("level=WARN"); n > 6 {
		t.Errorf("%d lines", n)
	}
	if living(g) != 1 || len(heard()) != 0 {
		t.Errorf("%d members and %d reports, want 1 and 0", living(g), len(heard()))
	}
}

// Garbage from somebody who has the key is dropped and counted.
func TestGarbageIsDropped(t *testing.T) {
	reg := prometheus.NewRegistry()
	g, heard := real(t, 41, func(o *Options) { o.Registerer = reg })
	other, _ := real(t, 42, func(o *Options) {
		o.Seeds = func(context.Context) []string { return []string{g.Addr().String()} }
	})
	poll(t, "join", func() bool { return living(g) == 2 })
	n := nodeOf("m41", g.Addr())
	for _, b := range [][]byte{{0}, {9}, {kindReport}, {kindReport, 1, 2, 3}, bytes.Repeat([]byte{kindReport}, 4000)} {
		if err := other.list.SendReliable(n, b); err != nil {
			t.Fatal(err)
		}
	}
	poll(t, "five drops", func() bool { return testutil.ToFloat64(g.metrics.dropped.WithLabelValues("garbage")) == 5 })
	if err := other.Report(report.Report{Machine: "m42", Boot: "b"}, false); err != nil {
		t.Fatal(err)
	}
	poll(t, "a true report still arrives", func() bool { return len(heard()) == 1 })
}

// A peer that accepts connections and never answers holds neither Run nor its
// end up.
func TestSilentPeer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan struct{}, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			signal(accepted)
		}
	}()
	begin := time.Now()
	t.Run("run", func(t *testing.T) {
		real(t, 51, func(o *Options) {
			o.Seeds = func(context.Context) []string { return []string{l.Addr().String()} }
		})
		<-accepted
	})
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("ending took %v", took)
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"no keys":           func(o *Options) { o.Keys = nil },
		"empty keys":        func(o *Options) { o.Keys = func(time.Time) [][]byte { return nil } },
		"short key":         func(o *Options) { o.Keys = func(time.Time) [][]byte { return [][]byte{make([]byte, 16)} } },
		"long label":        func(o *Options) { o.Label = strings.Repeat("x", MaxLabel+1) },
		"every address":     func(o *Options) { o.Bind = "0.0.0.0" },
		"not an address":    func(o *Options) { o.Bind = "localhost" },
		"outside of 6PN":    func(o *Options) { o.Loopback = false },
		"meta cannot be":    func(o *Options) { o.Meta.Role = "" },
		"loopback and 6PN":  func(o *Options) { o.Bind = "fdaa::1" },
		"port of no socket": func(o *Options) { o.Port = -1 },
	} {
		o := Options{
			Meta: Meta{Machine: "m", Boot: "b", Role: Agent}, Bind: "127.0.0.1", Loopback: true,
			Keys: func(time.Time) [][]byte { return key(1) },
		}
		change(&o)
		if g, err := Open(o); err == nil {
			t.Errorf("%s: opened at %s", name, g.Addr())
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}

func TestUpdateRefuses(t *testing.T) {
	g, _ := real(t, 61, nil)
	before := g.Self()
	for name, change := range map[string]func(*Meta){
		"another boot": func(m *Meta) { m.Boot = "x" },
		"too long":     func(m *Meta) { m.App = strings.Repeat("x", 300) },
	} {
		if err := g.Update(change); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if g.Self() != before {
		t.Errorf("meta changed to %+v", g.Self())
	}
}
