// Package raftnet is an in-memory network for tests of raftstore, made for
// testing/synctest bubbles: hosts, connections, cut links, hosts that go down.
// A cut link is a black hole: what is written waits, as in TCP's
// retransmission, until the link heals, the deadline passes or a side closes. A
// rejected link answers: its connections break and new ones are refused.
package raftnet

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Net is one network. Its methods may be called from any goroutine.
type Net struct {
	latency time.Duration

	mu      sync.Mutex
	hosts   map[string]*Host
	cut     map[[2]string]bool // from, to
	reject  map[[2]string]bool // both ways
	changed chan struct{}      // closed at each change
}

// New returns a network whose every message takes the latency.
func New(latency time.Duration) *Net {
	return &Net{latency: latency, hosts: map[string]*Host{}, cut: map[[2]string]bool{}, reject: map[[2]string]bool{}, changed: make(chan struct{})}
}

// Host listens at an address and dials from it.
type Host struct {
	net  *Net
	addr string
	in   chan net.Conn

	mu    sync.Mutex
	done  chan struct{}
	conns map[*conn]struct{}
}

// Listen brings a host up at an address that no other host has.
func (n *Net) Listen(addr string) *Host {
	h := &Host{net: n, addr: addr, in: make(chan net.Conn), done: make(chan struct{}), conns: map[*conn]struct{}{}}
	n.mu.Lock()
	n.hosts[addr] = h
	n.change()
	n.mu.Unlock()
	return h
}

// Cut stops traffic from one address to another, in this direction only.
func (n *Net) Cut(from, to string) { n.set(from, to, true) }

// Heal lets traffic from one address to another flow again.
func (n *Net) Heal(from, to string) { n.set(from, to, false) }

// Isolate cuts an address from all others, both ways.
func (n *Net) Isolate(addr string, others ...string) {
	for _, o := range others {
		if o != addr {
			n.Cut(addr, o)
			n.Cut(o, addr)
		}
	}
}

// Reject breaks the connections between two addresses and refuses new ones,
// as a firewall that resets does, or a host whose process has ended.
func (n *Net) Reject(a, b string) {
	n.mu.Lock()
	n.reject[[2]string{a, b}], n.reject[[2]string{b, a}] = true, true
	ha, hb := n.hosts[a], n.hosts[b]
	n.mu.Unlock()
	ha.hangUp(b)
	hb.hangUp(a)
}

// HealAll lets all traffic flow.
func (n *Net) HealAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	clear(n.reject)
	n.change()
}

// Open reports whether traffic flows both ways between two addresses.
func (n *Net) Open(a, b string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.cut[[2]string{a, b}] && !n.cut[[2]string{b, a}] && !n.reject[[2]string{a, b}]
}

func (n *Net) set(from, to string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]string{from, to}] = cut
	n.change()
}

func (n *Net) change() {
	close(n.changed)
	n.changed = make(chan struct{})
}

var errMoved = errors.New("the deadline has moved")

// pass waits until from reaches to.
func (n *Net) pass(from, to string, done <-chan struct{}, deadline <-chan time.Time, moved <-chan struct{}) error {
	for {
		n.mu.Lock()
		cut, changed := n.cut[[2]string{from, to}], n.changed
		n.mu.Unlock()
		if !cut {
			return nil
		}
		select {
		case <-changed:
		case <-done:
			return net.ErrClosed
		case <-deadline:
			return os.ErrDeadlineExceeded
		case <-moved:
			return errMoved
		}
	}
}

// Addr returns the host's address.
func (h *Host) Addr() string { return h.addr }

// Accept waits for the next connection.
func (h *Host) Accept() (net.Conn, error) {
	select {
	case c := <-h.in:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close takes the host down: its connections break at once.
func (h *Host) Close() error {
	h.mu.Lock()
	conns := h.conns
	h.conns = nil
	if conns != nil {
		close(h.done)
	}
	h.mu.Unlock()
	for c := range conns {
		c.Close()
	}
	h.net.mu.Lock()
	if h.net.hosts[h.addr] == h {
		delete(h.net.hosts, h.addr)
	}
	h.net.mu.Unlock()
	return nil
}

// Dial connects to an address; nobody there refuses at once.
func (h *Host) Dial(ctx context.Context, addr string) (net.Conn, error) {
	for _, way := range [][2]string{{h.addr, addr}, {addr, h.addr}} {
		if err := h.net.pass(way[0], way[1], ctx.Done(), nil, nil); err != nil {
			return nil, ctx.Err()
		}
		time.Sleep(h.net.latency)
	}
	h.net.mu.Lock()
	to := h.net.hosts[addr]
	if h.net.reject[[2]string{h.addr, addr}] {
		to = nil
	}
	h.net.mu.Unlock()
	if to == nil {
		return nil, syscall.ECONNREFUSED
	}
	a, b := net.Pipe()
	mine, theirs := h.wrap(a, addr), to.wrap(b, h.addr)
	if mine == nil || theirs == nil {
		a.Close()
		b.Close()
		return nil, syscall.ECONNREFUSED
	}
	select {
	case to.in <- theirs:
		return mine, nil
	case <-to.done:
	case <-h.done:
	case <-ctx.Done():
	}
	mine.Close()
	theirs.Close()
	return nil, syscall.ECONNREFUSED
}

// hangUp breaks the connections with one address.
func (h *Host) hangUp(remote string) {
	if h == nil {
		return
	}
	var l []*conn
	h.mu.Lock()
	for c := range h.conns {
		if c.remote == remote {
			l = append(l, c)
		}
	}
	h.mu.Unlock()
	for _, c := range l {
		c.Close()
	}
}

func (h *Host) wrap(c net.Conn, remote string) *conn {
	w := &conn{Conn: c, host: h, remote: remote, done: make(chan struct{}), moved: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.conns == nil {
		return nil
	}
	h.conns[w] = struct{}{}
	return w
}

type conn struct {
	net.Conn
	host   *Host
	remote string
	once   sync.Once
	done   chan struct{}

	mu       sync.Mutex
	deadline time.Time     // of writes
	moved    chan struct{} // closed when the deadline changes
}

func (c *conn) Write(b []byte) (int, error) {
	time.Sleep(c.host.net.latency)
	for {
		c.mu.Lock()
		at, moved := c.deadline, c.moved
		c.mu.Unlock()
		var deadline <-chan time.Time
		if !at.IsZero() {
			t := time.NewTimer(time.Until(at))
			defer t.Stop()
			deadline = t.C
		}
		switch err := c.host.net.pass(c.host.addr, c.remote, c.done, deadline, moved); err {
		case nil:
			return c.Conn.Write(b)
		case errMoved:
		default:
			return 0, err
		}
	}
}

func (c *conn) Close() error {
	c.once.Do(func() {
		close(c.done)
		c.host.mu.Lock()
		delete(c.host.conns, c)
		c.host.mu.Unlock()
	})
	return c.Conn.Close()
}

func (c *conn) SetDeadline(t time.Time) error {
	c.SetWriteDeadline(t)
	return c.Conn.SetDeadline(t)
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	c.deadline = t
	close(c.moved)
	c.moved = make(chan struct{})
	c.mu.Unlock()
	return c.Conn.SetWriteDeadline(t)
}

func (c *conn) LocalAddr() net.Addr  { return addr(c.host.addr) }
func (c *conn) RemoteAddr() net.Addr { return addr(c.remote) }

type addr string

func (addr) Network() string  { return "mem" }
func (a addr) String() string { return string(a) }

// Die ends a host as a crash does: nothing that its process still writes
// arrives, and its peers see broken connections.
func (h *Host) Die() { h.Close() }
