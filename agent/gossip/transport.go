package gossip

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// transport wraps the real or the in-memory network. It counts packets, and
// puts on each stream the deadline that memberlist leaves out when it writes.
type transport struct {
	memberlist.NodeAwareTransport
	metrics *metrics
	abort   context.CancelFunc // ends dials and streams under way
	closing context.Context
	packets chan *memberlist.Packet
	ended   chan struct{} // closed by Shutdown

	mu      sync.Mutex // guards senders
	senders map[netip.AddrPort]bool
}

// maxSenders bounds the remembered senders: enough to find one that is of the
// mesh, and no gift to whoever makes addresses up.
const maxSenders = 32

func newTransport(t memberlist.NodeAwareTransport, m *metrics) *transport {
	ctx, cancel := context.WithCancel(context.Background())
	w := &transport{
		NodeAwareTransport: t, metrics: m, closing: ctx, abort: cancel,
		packets: make(chan *memberlist.Packet), ended: make(chan struct{}), senders: map[netip.AddrPort]bool{},
	}
	go w.forward()
	return w
}

// forward passes packets on and remembers who sent them. They are not
// decrypted yet: a sender is somebody to ask, and proves nothing.
func (t *transport) forward() {
	in := t.NodeAwareTransport.PacketCh()
	for {
		select {
		case <-t.ended:
			return
		case p := <-in:
			if a, err := netip.ParseAddrPort(p.From.String()); err == nil {
				t.mu.Lock()
				if len(t.senders) < maxSenders {
					t.senders[netip.AddrPortFrom(a.Addr().Unmap(), a.Port())] = true
				}
				t.mu.Unlock()
			}
			select {
			case <-t.ended:
				return
			case t.packets <- p:
			}
		}
	}
}

// heardFrom returns who has sent packets, and forgets them.
func (t *transport) heardFrom() []netip.AddrPort {
	t.mu.Lock()
	defer t.mu.Unlock()
	as := slices.Collect(maps.Keys(t.senders))
	clear(t.senders)
	return as
}

// PacketCh implements memberlist.Transport.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// Shutdown implements memberlist.Transport. Packets are passed on to the end:
// the listener waits for each to be taken before it stops.
func (t *transport) Shutdown() error {
	defer close(t.ended)
	return t.NodeAwareTransport.Shutdown()
}

// FinalAdvertiseAddr implements memberlist.Transport: what it is bound to.
func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.NodeAwareTransport.FinalAdvertiseAddr("", 0)
}

// WriteTo implements memberlist.Transport.
func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

// WriteToAddress implements memberlist.NodeAwareTransport.
func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	t.metrics.packets.Inc()
	t.metrics.bytes.Add(float64(len(b)))
	return t.NodeAwareTransport.WriteToAddress(b, a)
}

// DialTimeout implements memberlist.Transport.
func (t *transport) DialTimeout(addr string, d time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, d)
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (t *transport) DialAddressTimeout(a memberlist.Address, d time.Duration) (net.Conn, error) {
	var c net.Conn
	var err error
	if _, ok := t.NodeAwareTransport.(*sockets); ok {
		dialer := net.Dialer{Timeout: d}
		c, err = dialer.DialContext(t.closing, "tcp", a.Addr)
	} else {
		c, err = t.NodeAwareTransport.DialAddressTimeout(a, d)
	}
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Now().Add(d)); err != nil {
		c.Close()
		return nil, fmt.Errorf("set deadline: %w", err)
	}
	return &stream{c, context.AfterFunc(t.closing, func() { c.Close() })}, nil
}

// stream is a connection that also ends when the transport is to close.
type stream struct {
	net.Conn
	forget func() bool
}

// Close implements net.Conn.
func (s *stream) Close() error {
	s.forget()
	return s.Conn.Close()
}
