// Package memnet is a network in memory for memberlist, made for
// testing/synctest bubbles: latency, loss, one-way cuts and machines that
// vanish. It uses package time alone, so that a bubble's clock drives it.
package memnet

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Network joins Transports. All methods may be called from any goroutine.
type Network struct {
	mu      sync.Mutex // guards all below
	peers   map[netip.AddrPort]*Transport
	cuts    map[link]bool
	latency time.Duration
	loss    float64
	rand    *rand.Rand
}

type link struct{ from, to netip.AddrPort }

// New returns a network with the given one-way latency and a seed for losses.
func New(latency time.Duration, seed uint64) *Network {
	return &Network{
		peers: map[netip.AddrPort]*Transport{}, cuts: map[link]bool{},
		latency: latency, rand: rand.New(rand.NewPCG(seed, 0)),
	}
}

// SetLoss makes each packet be lost with probability p. Streams lose nothing.
func (n *Network) SetLoss(p float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss = p
}

// Cut lets nothing pass from one address to another any more. Streams that are
// cut never work again.
func (n *Network) Cut(from, to netip.AddrPort) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cuts[link{from, to}] = true
}

// Heal takes all cuts back.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cuts)
}

// Split cuts two groups apart in both directions.
func (n *Network) Split(a, b []netip.AddrPort) {
	for _, x := range a {
		for _, y := range b {
			n.Cut(x, y)
			n.Cut(y, x)
		}
	}
}

// Kill makes a machine vanish without a word: nothing leaves or reaches it.
func (n *Network) Kill(addr netip.AddrPort) {
	n.mu.Lock()
	t := n.peers[addr]
	n.mu.Unlock()
	if t != nil {
		t.vanish()
	}
}

// Transport attaches a machine at an address, in place of one that was there.
func (n *Network) Transport(addr netip.AddrPort) *Transport {
	t := &Transport{
		net: n, addr: addr, packets: make(chan *memberlist.Packet, 1024),
		streams: make(chan net.Conn, 16), down: make(chan struct{}),
	}
	n.mu.Lock()
	old := n.peers[addr]
	n.peers[addr] = t
	n.mu.Unlock()
	if old != nil {
		old.vanish()
	}
	return t
}

// passes says whether a link works now.
func (n *Network) passes(from, to netip.AddrPort) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.cuts[link{from, to}]
}

// route finds the receiver of a packet; nil: lost on the way.
func (n *Network) route(from, to netip.AddrPort) (*Transport, time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cuts[link{from, to}] || n.loss > 0 && n.rand.Float64() < n.loss {
		return nil, 0
	}
	return n.peers[to], n.latency
}

// Transport is one machine's connection to the network.
type Transport struct {
	net     *Network
	addr    netip.AddrPort
	packets chan *memberlist.Packet
	streams chan net.Conn
	down    chan struct{} // closed: the machine is gone
	once    sync.Once
}

var _ memberlist.NodeAwareTransport = (*Transport)(nil)

func (t *Transport) vanish() { t.once.Do(func() { close(t.down) }) }

func (t *Transport) gone() bool {
	select {
	case <-t.down:
		return true
	default:
		return false
	}
}

// FinalAdvertiseAddr implements memberlist.Transport.
func (t *Transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return net.IP(t.addr.Addr().AsSlice()), int(t.addr.Port()), nil
}

// WriteTo implements memberlist.Transport.
func (t *Transport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

// WriteToAddress implements memberlist.NodeAwareTransport. Like UDP it never
// tells that a packet was lost.
func (t *Transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	now := time.Now()
	to, err := netip.ParseAddrPort(a.Addr)
	if err != nil {
		return now, fmt.Errorf("send packet: %w", err)
	}
	peer, latency := t.net.route(t.addr, to)
	if peer == nil || t.gone() {
		return now, nil
	}
	b = append([]byte(nil), b...)
	time.AfterFunc(latency, func() {
		if peer.gone() {
			return
		}
		select {
		case peer.packets <- &memberlist.Packet{Buf: b, From: addr{t.addr}, Timestamp: time.Now()}:
		default: // the receive buffer is full
		}
	})
	return now, nil
}

// PacketCh implements memberlist.Transport.
func (t *Transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh implements memberlist.Transport.
func (t *Transport) StreamCh() <-chan net.Conn { return t.streams }

// DialTimeout implements memberlist.Transport.
func (t *Transport) DialTimeout(addr string, d time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, d)
}

// DialAddressTimeout implements memberlist.NodeAwareTransport. A machine that
// is gone or cut off answers nothing, so the dial takes its full time.
func (t *Transport) DialAddressTimeout(a memberlist.Address, d time.Duration) (net.Conn, error) {
	to, err := netip.ParseAddrPort(a.Addr)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	t.net.mu.Lock()
	peer, latency := t.net.peers[to], t.net.latency
	t.net.mu.Unlock()
	silent := fmt.Errorf("dial %s: %w", to, os.ErrDeadlineExceeded)
	if peer == nil || peer.gone() || t.gone() || !t.net.passes(t.addr, to) || !t.net.passes(to, t.addr) {
		select {
		case <-time.After(d):
			return nil, silent
		case <-t.down:
			return nil, net.ErrClosed
		}
	}
	time.Sleep(2 * latency)
	here, there := net.Pipe()
	select {
	case peer.streams <- &stream{Conn: there, from: peer, to: t}:
		return &stream{Conn: here, from: t, to: peer}, nil
	case <-peer.down:
		return nil, silent
	case <-t.down:
		return nil, net.ErrClosed
	}
}

// Shutdown implements memberlist.Transport.
func (t *Transport) Shutdown() error {
	t.vanish()
	return nil
}

// stream is one end of a connection.
type stream struct {
	net.Conn
	from, to *Transport

	mu   sync.Mutex // guards dead
	dead bool
}

// Write delivers after the latency. What is written into a cut or to a machine
// that is gone is swallowed, and so is all that follows.
func (s *stream) Write(b []byte) (int, error) {
	s.mu.Lock()
	if s.from.gone() || s.to.gone() || !s.from.net.passes(s.from.addr, s.to.addr) {
		s.dead = true
	}
	dead := s.dead
	s.mu.Unlock()
	if dead {
		return len(b), nil
	}
	s.from.net.mu.Lock()
	latency := s.from.net.latency
	s.from.net.mu.Unlock()
	time.Sleep(latency)
	return s.Conn.Write(b)
}

// LocalAddr implements net.Conn.
func (s *stream) LocalAddr() net.Addr { return addr{s.from.addr} }

// RemoteAddr implements net.Conn.
func (s *stream) RemoteAddr() net.Addr { return addr{s.to.addr} }

type addr struct{ netip.AddrPort }

// Network implements net.Addr.
func (addr) Network() string { return "memnet" }
