package gossip

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// serveDNS answers A queries for the given names on a UDP socket and says
// "no such name" to all others.
func serveDNS(t *testing.T, names map[string][4]byte) *net.Resolver {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo(answer(buf[:n], names), from)
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", c.LocalAddr().String())
	}}
}

func answer(q []byte, names map[string][4]byte) []byte {
	name, i := "", 12
	for q[i] != 0 {
		name += string(q[i+1:i+1+int(q[i])]) + "."
		i += 1 + int(q[i])
	}
	kind := binary.BigEndian.Uint16(q[i+1:])
	out := append([]byte(nil), q[:i+5]...)
	ip, ok := names[name]
	flags, answers := uint16(0x8183), uint16(0)
	if ok {
		flags = 0x8180
		if kind == 1 {
			answers = 1
			out = append(out, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4)
			out = append(out, ip[:]...)
		}
	}
	binary.BigEndian.PutUint16(out[2:], flags)
	binary.BigEndian.PutUint16(out[6:], answers)
	binary.BigEndian.PutUint16(out[8:], 0)
	binary.BigEndian.PutUint16(out[10:], 0)
	return out
}

func TestDiscovery(t *testing.T) {
	dns := serveDNS(t, map[string][4]byte{
		"acme-web.internal.": {127, 0, 0, 2}, "acme-n8n.internal.": {127, 0, 0, 3},
	})
	asked := 0
	api := func(context.Context) ([]string, error) {
		asked++
		return []string{"fdaa::9", "[fdaa::8]:1"}, nil
	}
	for _, c := range []struct {
		name  string
		d     Discovery
		want  []string
		asked int
	}{
		{"all sources merge, the API is not needed", Discovery{
			Apps: []string{"acme-web", "acme-n8n", "no-such"}, Peers: []string{"127.0.0.3", "peer.example:9", "fdaa::1"}, Lookup: api,
		}, []string{"127.0.0.2:7946", "127.0.0.3:7946", "[fdaa::1]:7946", "peer.example:9"}, 0},
		{"the API when DNS names nobody else", Discovery{
			Apps: []string{"acme-web"}, Self: "127.0.0.2", Lookup: api,
		}, []string{"[fdaa::8]:1", "[fdaa::9]:7946"}, 1},
		{"an API that fails leaves the peers", Discovery{
			Peers:  []string{"127.0.0.9"},
			Lookup: func(context.Context) ([]string, error) { return nil, errors.New("down") },
		}, []string{"127.0.0.9:7946"}, 0},
		{"nothing", Discovery{}, nil, 0},
	} {
		asked = 0
		c.d.Port, c.d.Resolver = 7946, dns
		got := c.d.Seeds(t.Context())
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s: %s", c.name, d)
		}
		if asked != c.asked {
			t.Errorf("%s: the API was asked %d times, want %d", c.name, asked, c.asked)
		}
	}
}

// A source that hangs does not hold the others up for longer than the limit.
func TestDiscoveryDeadline(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	d := Discovery{Apps: []string{"a"}, Peers: []string{"127.0.0.9:1"}, Resolver: &net.Resolver{
		PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "udp", silent.LocalAddr().String())
		}}}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if d := cmp.Diff([]string{"127.0.0.9:1"}, d.Seeds(ctx)); d != "" {
		t.Error(d)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestResolve(t *testing.T) {
	dns := serveDNS(t, map[string][4]byte{"host.example.": {127, 0, 0, 7}})
	got := resolve(t.Context(), dns, []string{
		"127.0.0.1:5", "127.0.0.2", "fdaa::1", "[fdaa::1]:6", "host.example.:8", "no.such.:1", "127.0.0.1:99999", "",
	}, "7946")
	var want []netip.AddrPort
	for _, s := range []string{"127.0.0.1:5", "127.0.0.2:7946", "[fdaa::1]:7946", "[fdaa::1]:6", "127.0.0.7:8"} {
		want = append(want, netip.MustParseAddrPort(s))
	}
	if len(got) != len(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("got %v, want %v", got[i], want[i])
		}
	}
}
