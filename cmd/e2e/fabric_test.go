package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flymesh/leader/flyapi/flytest"
)

// fabric is a network of machines as on Fly: each in a network namespace of
// its own, with an address of fdaa::/16 and an MTU of 1420, on one bridge. The
// Machines API is one more station.
type fabric struct {
	prefix string
	host   string // address of this process
	mu     sync.Mutex
	used   int
	at     map[string]int // number of a machine by its ID
}

const places = 8 // machines that there is room for

// newFabric makes the namespaces, or skips the test and says why.
func newFabric(t *testing.T) *fabric {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	for _, tool := range []string{"ip", "nft", "sysctl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("network namespaces need %s", tool)
		}
	}
	f := &fabric{prefix: fmt.Sprintf("e2e%d", os.Getpid()%100000), host: "fdaa:0:18:a7b:1::2", at: map[string]int{}}
	if out, err := exec.Command("ip", "netns", "add", f.ns("fab")).CombinedOutput(); err != nil {
		t.Skipf("ip netns add is refused: %s", out)
	}
	t.Cleanup(f.remove)
	fab := f.ns("fab")
	steps := []string{
		"ip netns exec " + fab + " ip link add br0 type bridge mcast_snooping 0",
		"ip netns exec " + fab + " ip link set br0 mtu 1420 up",
		"ip link add " + f.ns("h") + " type veth peer name br0h",
		"ip link set br0h netns " + fab,
		"sysctl -qw net.ipv6.conf." + f.ns("h") + ".accept_dad=0",
		"ip link set " + f.ns("h") + " mtu 1420 up",
		"ip -6 addr add " + f.host + "/32 dev " + f.ns("h") + " nodad",
		"ip netns exec " + fab + " ip link set br0h mtu 1420 master br0 up",
	}
	for i := 1; i <= places; i++ {
		m := f.ns(fmt.Sprint("m", i))
		in := "ip netns exec " + m + " "
		steps = append(steps,
			"ip netns add "+m,
			fmt.Sprintf("ip link add %s type veth peer name br%d", m, i),
			"ip link set "+m+" netns "+m,
			fmt.Sprintf("ip link set br%d netns %s", i, fab),
			fmt.Sprintf("ip netns exec %s ip link set br%d mtu 1420 master br0 up", fab, i),
			in+"sysctl -qw net.ipv6.conf."+m+".accept_dad=0",
			in+"ip link set lo up",
			in+"ip link set "+m+" mtu 1420 up",
			in+"ip -6 addr add "+f.address(i)+"/32 dev "+m+" nodad")
	}
	steps = append(steps, "ip netns exec "+fab+" nft add table bridge fab",
		"ip netns exec "+fab+" nft add chain bridge fab cut { type filter hook forward priority 0 ; }")
	for _, s := range steps {
		if out, err := exec.Command("sh", "-c", strings.NewReplacer("{", `'{`, "}", `}'`).Replace(s)).CombinedOutput(); err != nil {
			t.Skipf("%s: %v: %s", s, err, out)
		}
	}
	return f
}

func (f *fabric) ns(name string) string { return f.prefix + name }

func (f *fabric) address(i int) string { return fmt.Sprintf("fdaa:0:18:a7b:10%d::2", i) }

// remove takes everything away; the links go with their namespaces.
func (f *fabric) remove() {
	for i := 1; i <= places; i++ {
		_ = exec.Command("ip", "netns", "del", f.ns(fmt.Sprint("m", i))).Run()
	}
	_ = exec.Command("ip", "netns", "del", f.ns("fab")).Run()
	_ = exec.Command("ip", "link", "del", f.ns("h")).Run()
}

// cut drops what goes from one station to another; 0 is the API.
func (f *fabric) cut(t *testing.T, from, to int) {
	t.Helper()
	port := func(i int) string {
		if i == 0 {
			return "br0h"
		}
		return fmt.Sprint("br", i)
	}
	out, err := exec.Command("ip", "netns", "exec", f.ns("fab"), "nft", "add", "rule", "bridge", "fab", "cut",
		"iifname", port(from), "oifname", port(to), "counter", "drop").CombinedOutput()
	if err != nil {
		t.Fatalf("cut %d to %d: %v: %s", from, to, err, out)
	}
}

func (f *fabric) heal(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("ip", "netns", "exec", f.ns("fab"), "nft", "flush", "chain", "bridge", "fab", "cut").CombinedOutput(); err != nil {
		t.Fatalf("heal: %v: %s", err, out)
	}
}

// machines is a launcher whose machines run in the namespaces of a fabric.
type machines struct {
	*flytest.Processes
	f *fabric
}

// Address gives a machine its place.
func (l machines) Address(id string) string {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	l.f.used++
	l.f.at[id] = l.f.used
	return l.f.address(l.f.used)
}

// Start boots the machine inside its namespace.
func (l machines) Start(ctx context.Context, b flytest.Boot) (flytest.Instance, error) {
	c := *b.Config
	c.Init.Exec = append([]string{"ip", "netns", "exec", l.f.ns(fmt.Sprint("m", l.f.place(b.ID)))}, c.Init.Exec...)
	b.Config = &c
	return l.Processes.Start(ctx, b)
}

func (f *fabric) place(id string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.at[id]
}

// sniffer reads every frame on the bridge.
type sniffer struct {
	fd   int
	done chan struct{}

	mu        sync.Mutex // guards what follows
	datagrams int
	largest   int // bytes of the largest IPv6 packet with UDP to or from the gossip port
	fragments int
}

// sniff opens a packet socket inside the fabric's namespace.
func (f *fabric) sniff(t *testing.T) *sniffer {
	t.Helper()
	s := &sniffer{fd: -1, done: make(chan struct{})}
	opened := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with this goroutine: its namespace is not for others
		ns, err := os.Open("/var/run/netns/" + f.ns("fab"))
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})))
		}
		if err == nil {
			tv := unix.Timeval{Usec: 200_000}
			err = unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
		}
		opened <- err
	}()
	if err := <-opened; err != nil {
		t.Fatalf("open packet socket: %v", err)
	}
	stop := make(chan struct{})
	go func() {
		defer close(s.done)
		b := make([]byte, 65536)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if n, _, err := unix.Recvfrom(s.fd, b, 0); err == nil {
				s.frame(b[:n])
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-s.done; unix.Close(s.fd) })
	return s
}

func (s *sniffer) frame(b []byte) {
	const eth, ip6 = 14, 40
	if len(b) < eth+ip6+8 || binary.BigEndian.Uint16(b[12:]) != 0x86dd {
		return
	}
	p := b[eth:]
	size := ip6 + int(binary.BigEndian.Uint16(p[4:]))
	s.mu.Lock()
	defer s.mu.Unlock()
	switch p[6] {
	case 44:
		s.fragments++
	case 17:
		if from, to := binary.BigEndian.Uint16(p[ip6:]), binary.BigEndian.Uint16(p[ip6+2:]); from == 7946 || to == 7946 {
			s.datagrams++
			s.largest = max(s.largest, size)
		}
	}
}

func (s *sniffer) seen() (datagrams, largest, fragments int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.datagrams, s.largest, s.fragments
}

// canListen waits until an address can be bound.
func canListen(t *testing.T, host string) {
	t.Helper()
	a := netip.AddrPortFrom(netip.MustParseAddr(host), 0).String()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		ln, err := net.Listen("tcp", a)
		if err == nil {
			ln.Close()
			return
		}
		if time.Now().After(end) {
			t.Fatalf("listen on %s: %v", a, err)
		}
	}
}
