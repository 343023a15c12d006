package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// protocol is what a packet belongs to, by the port that is listened on.
type protocol string

// The protocols that are told apart. What goes to an app or to the Redis of
// the probes stays on the machine and is no traffic of the mesh.
const (
	gossipUDP   protocol = "gossip udp"
	gossipTCP   protocol = "gossip tcp"
	meshTLS     protocol = "mesh tls"
	machinesAPI protocol = "machines api"
	elsewhere   protocol = "" // not counted
)

// volume is what went over the wire: IP packets with all their headers.
type volume struct{ bytes, packets float64 }

func (v *volume) add(bytes int) { v.bytes += float64(bytes); v.packets++ }

// traffic is one agent's.
type traffic struct{ sent, received map[protocol]volume }

func newTraffic() traffic {
	return traffic{sent: map[protocol]volume{}, received: map[protocol]volume{}}
}

func (t traffic) count(p packet) {
	side := t.received
	if p.sent {
		side = t.sent
	}
	v := side[p.proto]
	v.add(p.bytes)
	side[p.proto] = v
}

// wire counts every IPv4 packet on the loopback interface through a packet
// socket. The kernel shows each packet once, with the length that it has on
// the wire but for the link layer. A connection is the agent's that listens at
// one end, and at the other the one whose socket it is.
type wire struct {
	fd     int
	agents map[netip.Addr]string // machine by address
	ports  map[uint16]protocol   // on the machines' addresses
	api    netip.AddrPort

	mu      sync.Mutex
	on      bool
	by      map[string]*traffic
	unknown traffic                   // of sockets that were gone before they were looked for
	owner   map[netip.AddrPort]string // of dialled connections; "": looked for in vain
	pending map[netip.AddrPort][]packet
	done    chan struct{}
}

type packet struct {
	proto protocol
	bytes int
	sent  bool
}

// listenWire needs CAP_NET_RAW.
func listenWire(agents map[netip.Addr]string, ports map[uint16]protocol, api netip.AddrPort) (*wire, error) {
	proto := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_IP))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(proto))
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	w := &wire{
		fd: fd, agents: agents, ports: ports, api: api, by: map[string]*traffic{}, unknown: newTraffic(),
		owner: map[netip.AddrPort]string{}, pending: map[netip.AddrPort][]packet{}, done: make(chan struct{}),
	}
	lo, err := net.InterfaceByName("lo")
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: lo.Index})
	}
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
	}
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	go w.run(fd)
	return w, nil
}

// run reads packets until close. The buffer holds the headers; the rest of a
// packet is cut off.
func (w *wire) run(fd int) {
	defer close(w.done)
	b := make([]byte, 128)
	for {
		n, _, err := unix.Recvfrom(fd, b, 0)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		case err != nil:
			return
		default:
			w.take(b[:n])
		}
		w.mu.Lock()
		closed := w.fd < 0
		w.mu.Unlock()
		if closed {
			return
		}
	}
}

func (w *wire) take(b []byte) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return
	}
	head, size := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	isTCP := b[9] == unix.IPPROTO_TCP
	if !isTCP && b[9] != unix.IPPROTO_UDP || len(b) < head+4 {
		return
	}
	src := netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:16])), binary.BigEndian.Uint16(b[head:]))
	dst := netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:20])), binary.BigEndian.Uint16(b[head+2:]))
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.on {
		return
	}
	if !isTCP {
		if p := w.ports[dst.Port()]; p == gossipTCP && w.agents[dst.Addr()] != "" {
			w.count(w.agents[src.Addr()], packet{gossipUDP, size, true})
			w.count(w.agents[dst.Addr()], packet{gossipUDP, size, false})
		}
		return
	}
	if p := w.service(dst); p != elsewhere {
		w.count(w.agents[dst.Addr()], packet{p, size, false})
		w.dialled(src, packet{p, size, true})
	} else if p := w.service(src); p != elsewhere {
		w.count(w.agents[src.Addr()], packet{p, size, true})
		w.dialled(dst, packet{p, size, false})
	}
}

func (w *wire) service(a netip.AddrPort) protocol {
	if a == w.api {
		return machinesAPI
	}
	if w.agents[a.Addr()] == "" {
		return elsewhere
	}
	return w.ports[a.Port()]
}

// count notes a packet of a machine; "" is the API's end.
func (w *wire) count(machine string, p packet) {
	if machine == "" {
		return
	}
	t := w.by[machine]
	if t == nil {
		n := newTraffic()
		t = &n
		w.by[machine] = t
	}
	t.count(p)
}

// dialled notes a packet of the end that dialled. Whose socket that is is
// looked up by resolve.
func (w *wire) dialled(a netip.AddrPort, p packet) {
	switch m, ok := w.owner[a]; {
	case !ok:
		w.pending[a] = append(w.pending[a], p)
	case m == "":
		w.unknown.count(p)
	default:
		w.count(m, p)
	}
}

// measure counts for the given time. halves are the processes whose sockets
// are looked up.
func (w *wire) measure(d time.Duration, halves map[string]process) {
	w.mu.Lock()
	w.on = true
	w.mu.Unlock()
	end := time.Now().Add(d)
	for left := d; left > 0; left = time.Until(end) {
		time.Sleep(min(left, 500*time.Millisecond))
		w.resolve(halves, false)
	}
	w.mu.Lock()
	w.on = false
	w.mu.Unlock()
	w.resolve(halves, true)
}

// resolve finds the owners of sockets that were new. What is not found twice
// is given up.
func (w *wire) resolve(halves map[string]process, last bool) {
	w.mu.Lock()
	n := len(w.pending)
	w.mu.Unlock()
	if n == 0 {
		return
	}
	inodes := socketInodes()
	owners := map[string]string{}
	for machine, p := range halves {
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.pid)) // the pattern is good
		for _, fd := range fds {
			if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, "socket:[") {
				owners[strings.Trim(to[len("socket:"):], "[]")] = machine
			}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for a, ps := range w.pending {
		inode, open := inodes[a]
		machine := owners[inode]
		if open && machine == "" && !last {
			continue // opened between the two looks
		}
		w.owner[a] = machine
		delete(w.pending, a)
		for _, p := range ps {
			w.dialled(a, p)
		}
		if !open {
			delete(w.owner, a) // the port may be used again by another
		}
	}
}

// socketInodes lists the TCP sockets of this host by their local address.
func socketInodes() map[netip.AddrPort]string {
	out := map[netip.AddrPort]string{}
	b, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return out
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 10 {
			continue
		}
		host, port, ok := strings.Cut(f[1], ":")
		ip, err1 := strconv.ParseUint(host, 16, 32)
		p, err2 := strconv.ParseUint(port, 16, 16)
		if !ok || err1 != nil || err2 != nil || f[9] == "0" {
			continue
		}
		var a [4]byte
		binary.NativeEndian.PutUint32(a[:], uint32(ip))
		out[netip.AddrPortFrom(netip.AddrFrom4(a), uint16(p))] = f[9]
	}
	return out
}

// close ends the counting and says how many packets the kernel dropped.
func (w *wire) close() (dropped int, err error) {
	s, err := unix.GetsockoptTpacketStats(w.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	w.mu.Lock()
	fd := w.fd
	w.fd = -1
	w.mu.Unlock()
	<-w.done
	if e := unix.Close(fd); err == nil {
		err = e
	}
	if err != nil {
		return 0, fmt.Errorf("close packet socket: %w", err)
	}
	return int(s.Drops), nil
}
