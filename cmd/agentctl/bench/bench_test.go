package bench

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flymesh/agent/config"
)

func TestQuantiles(t *testing.T) {
	var ts times
	for i := range 200 {
		ts = append(ts, time.Duration(200-i)*time.Millisecond)
	}
	for q, want := range map[float64]float64{0: 0.001, 0.5: 0.1, 0.99: 0.198, 1: 0.2} {
		if got := ts.at(q); math.Abs(got-want) > 1e-9 {
			t.Errorf("quantile %v: got %v, want %v", q, got, want)
		}
	}
	if few := ts[:30]; few.at(0.99) != few.at(1) {
		t.Error("the 0.99 quantile of 30 values is not the greatest")
	}
	if !math.IsNaN(times(nil).at(0.5)) {
		t.Error("no values have a quantile")
	}
}

func TestFiguresSayWhetherAGoalIsHeld(t *testing.T) {
	s := &sheet{part: "p"}
	s.below("less", 1<<20, 2<<20, mib, "")
	s.below("more", 3<<20, 2<<20, mib, "")
	s.below("unknown", math.NaN(), 2<<20, mib, "")
	var b bytes.Buffer
	if err := printFigures(&b, s.list); err != nil {
		t.Fatal(err)
	}
	for what, want := range map[string]string{"less": "1.0 MiB < 2.0 MiB yes", "more": "3.0 MiB < 2.0 MiB NO", "unknown": "not measured < 2.0 MiB"} {
		found := false
		for line := range strings.Lines(b.String()) {
			f := strings.Join(strings.Fields(line), " ")
			found = found || f == what+" "+want
		}
		if !found {
			t.Errorf("%s: want %q in\n%s", what, want, b.String())
		}
	}
}

// The mesh of the bench has the defaults and four probes on each machine.
func TestMeshFile(t *testing.T) {
	var b bytes.Buffer
	err := meshFile.Execute(&b, map[string]any{"Profile": "default", "Redis": "127.0.0.1:6379", "Services": []benchService{{"voters", true, 3}, {"plain", false, 47}}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "mesh.toml")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	d := config.Default()
	if c.Mesh.ReportEvery != d.Mesh.ReportEvery || c.Mesh.Profile != d.Mesh.Profile || c.Mesh.GossipPort != d.Mesh.GossipPort || c.Mesh.MeshPort != d.Mesh.MeshPort {
		t.Errorf("not the defaults: %+v", c.Mesh)
	}
	for _, s := range c.Services {
		kinds := map[string]bool{}
		for _, p := range s.Probes {
			kinds[p.Type] = true
		}
		if len(kinds) != 4 || s.Policy.Baseline != s.Policy.Max {
			t.Errorf("service %s: probes %v, %d to %d machines", s.Name, kinds, s.Policy.Baseline, s.Policy.Max)
		}
	}
}

// packetOf is an IPv4 packet of so many bytes in all, cut off as the socket does.
func packetOf(proto byte, from, to string, size int) []byte {
	src, dst := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	b := make([]byte, 28)
	b[0], b[9] = 0x45, proto
	binary.BigEndian.PutUint16(b[2:], uint16(size))
	copy(b[12:], src.Addr().AsSlice())
	copy(b[16:], dst.Addr().AsSlice())
	binary.BigEndian.PutUint16(b[20:], src.Port())
	binary.BigEndian.PutUint16(b[22:], dst.Port())
	return b
}

func TestWireCountsBothEnds(t *testing.T) {
	const tcp, udp = 6, 17
	w := &wire{
		agents: map[netip.Addr]string{netip.MustParseAddr("127.1.1.1"): "a", netip.MustParseAddr("127.1.1.2"): "b"},
		ports:  map[uint16]protocol{7946: gossipTCP, 7947: meshTLS}, api: netip.MustParseAddrPort("127.0.0.1:4280"),
		by: map[string]*traffic{}, unknown: newTraffic(), owner: map[netip.AddrPort]string{}, pending: map[netip.AddrPort][]packet{},
		on: true,
	}
	w.take(packetOf(udp, "127.1.1.1:7946", "127.1.1.2:7946", 100))
	w.take(packetOf(tcp, "127.0.0.1:40001", "127.1.1.2:7947", 200)) // dialled by a, as is found out later
	w.take(packetOf(tcp, "127.1.1.2:7947", "127.0.0.1:40001", 50))
	w.take(packetOf(tcp, "127.0.0.1:40002", "127.0.0.1:4280", 300)) // dialled by b
	w.take(packetOf(tcp, "127.0.0.1:40003", "127.1.1.2:8080", 999)) // an app
	w.take(packetOf(tcp, "127.1.1.1:40004", "127.9.9.9:7947", 999)) // not of this mesh
	w.take([]byte{0x60, 0, 0})
	for a, m := range map[string]string{"127.0.0.1:40001": "a", "127.0.0.1:40002": "b"} {
		at := netip.MustParseAddrPort(a)
		ps := w.pending[at]
		delete(w.pending, at)
		w.owner[at] = m
		for _, p := range ps {
			w.dialled(at, p)
		}
	}
	got := fmt.Sprint(*w.by["a"], *w.by["b"], w.unknown, w.pending)
	want := fmt.Sprint(
		traffic{sent: map[protocol]volume{gossipUDP: {100, 1}, meshTLS: {200, 1}}, received: map[protocol]volume{meshTLS: {50, 1}}},
		traffic{sent: map[protocol]volume{meshTLS: {50, 1}, machinesAPI: {300, 1}}, received: map[protocol]volume{gossipUDP: {100, 1}, meshTLS: {200, 1}}},
		newTraffic(), map[netip.AddrPort][]packet{})
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// On a computer that allows it the packet socket sees what crosses loopback.
func TestWireSeesLoopback(t *testing.T) {
	at := netip.MustParseAddr("127.77.3.9")
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	self := c.LocalAddr().(*net.UDPAddr)
	w, err := listenWire(map[netip.Addr]string{at: "a"}, map[uint16]protocol{uint16(self.Port): gossipTCP}, netip.AddrPort{})
	if err != nil {
		t.Skipf("no packet socket here: %v", err)
	}
	w.mu.Lock()
	w.on = true
	w.mu.Unlock()
	for range 10 {
		if _, err := c.WriteToUDP(make([]byte, 972), self); err != nil {
			t.Fatal(err)
		}
	}
	seen := func() (v volume) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if x := w.by["a"]; x != nil {
			v = x.received[gossipUDP]
		}
		return v
	}
	for end := time.Now().Add(5 * time.Second); seen().packets < 10 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	if got, want := seen(), (volume{bytes: 10_000, packets: 10}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if dropped, err := w.close(); err != nil || dropped != 0 {
		t.Errorf("close: %d dropped, %v", dropped, err)
	}
}

func TestProcessFigures(t *testing.T) {
	before, err := usageOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Millisecond); time.Now().Before(end); {
	}
	after, err := usageOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if used := after.cpu - before.cpu; used <= 0 || used > 10*time.Second {
		t.Errorf("%v of a core used by a loop of 30 ms", used)
	}
	m, err := memoryOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if m.rss < 1<<20 || m.pss > m.rss || m.private > m.rss || m.own > m.rss {
		t.Errorf("memory %+v", m)
	}
	if _, err := memoryOf(1 << 30); err == nil {
		t.Error("a process that is not there has memory")
	}
}
