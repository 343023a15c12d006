package raftstore

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// transport is raft's network transport without the asynchronous heartbeat
// path: heartbeats handled beside the main loop can change term and state
// unsynchronised (hashicorp/raft #695). Embedding keeps pre-vote, which raft
// finds by a type assertion.
type transport struct {
	*raft.NetworkTransport
}

var (
	_ raft.Transport   = transport{}
	_ raft.WithPreVote = transport{}
	_ raft.WithClose   = transport{}
)

// A voter that was added is in its own configuration before it is in that of a
// voter which lacks the entry. Raft asks who is in one's configuration before
// it looks at logs, so if the leader dies just then, neither can get the votes
// of the other for ever, though a majority lives. The log alone decides here,
// as in section 4.2.2 of Ongaro's thesis: a removed server lacks the entry that
// removed it, and whoever hears a leader refuses before that.

// RequestVote implements raft.Transport. Raft takes a candidate without ID for
// one of its configuration.
func (t transport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	anybody := *args
	anybody.ID = nil
	return t.NetworkTransport.RequestVote(id, target, &anybody, resp)
}

// RequestPreVote implements raft.WithPreVote. Here raft wants an ID: who is
// refused asks again by the one that the asked voter surely knows, its own.
func (t transport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	err := t.NetworkTransport.RequestPreVote(id, target, args, resp)
	if err != nil || resp.Granted {
		return err
	}
	known := *args
	known.ID = []byte(id)
	*resp = raft.RequestPreVoteResponse{}
	return t.NetworkTransport.RequestPreVote(id, target, &known, resp)
}

// SetHeartbeatHandler implements raft.Transport and does nothing, so
// heartbeats go through the main loop like every other request.
func (transport) SetHeartbeatHandler(func(raft.RPC)) {}

func newTransport(s *stream, log hclog.Logger) transport {
	return transport{raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: s, MaxPool: 3, Timeout: 5 * time.Second, Logger: log,
		// One append in flight: the pipeline can starve a follower for ever
		// after one rejected append (hashicorp/raft #612).
		MaxRPCsInFlight: 1,
	})}
}

// stream is the raft.StreamLayer of one instance. The door hands it
// connections whose handshake was meant for this very server; it opens its own
// with the same handshake. Close ends them all.
type stream struct {
	addr raft.ServerAddress
	dial func(ctx context.Context, hostport, server string) (net.Conn, error)

	in    chan net.Conn
	ended chan string // remote server IDs of delivered connections that ended; some may be missing
	done  chan struct{}

	mu    sync.Mutex
	conns map[*trackedConn]string // remote server ID; nil after Close
}

var _ raft.StreamLayer = (*stream)(nil)

func newStream(addr raft.ServerAddress, dial func(context.Context, string, string) (net.Conn, error)) *stream {
	return &stream{
		addr: addr, dial: dial, in: make(chan net.Conn), ended: make(chan string, 16), done: make(chan struct{}),
		conns: map[*trackedConn]string{},
	}
}

// deliver passes an accepted connection to raft and reports whether it took it.
func (s *stream) deliver(c net.Conn, from string) bool {
	t, ok := s.track(c, from, true)
	if !ok {
		return false
	}
	select {
	case s.in <- t:
		return true
	case <-s.done:
		t.Close()
		return false
	}
}

// Accept implements net.Listener.
func (s *stream) Accept() (net.Conn, error) {
	select {
	case c := <-s.in:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}

// Addr implements net.Listener.
func (s *stream) Addr() net.Addr { return serverAddr(s.addr) }

// Dial implements raft.StreamLayer.
func (s *stream) Dial(a raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), min(timeout, dialTimeout))
	defer cancel()
	go func() { // an instance that stops does not wait for its dials
		select {
		case <-s.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	hostport, server, ok := strings.Cut(string(a), "|")
	if !ok {
		return nil, errors.New("dial server: address without a server ID")
	}
	c, err := s.dial(ctx, hostport, server)
	if err != nil {
		return nil, err
	}
	t, ok := s.track(c, server, false)
	if !ok {
		return nil, net.ErrClosed
	}
	return t, nil
}

// Close implements net.Listener.
func (s *stream) Close() error {
	s.mu.Lock()
	conns := s.conns
	s.conns = nil
	if conns != nil {
		close(s.done)
	}
	s.mu.Unlock()
	for c := range conns {
		c.Conn.Close()
	}
	return nil
}

// recycle closes the connections with one server.
func (s *stream) recycle(server string) {
	s.mu.Lock()
	var cs []*trackedConn
	for c, id := range s.conns {
		if id == server {
			cs = append(cs, c)
		}
	}
	s.mu.Unlock()
	for _, c := range cs {
		c.Close()
	}
}

func (s *stream) track(c net.Conn, server string, delivered bool) (*trackedConn, bool) {
	t := &trackedConn{Conn: c, s: s, delivered: delivered}
	s.mu.Lock()
	ok := s.conns != nil
	if ok {
		s.conns[t] = server
	}
	s.mu.Unlock()
	if !ok {
		c.Close()
	}
	return t, ok
}

type trackedConn struct {
	net.Conn
	s         *stream
	delivered bool // the remote server opened it
}

// Close implements net.Conn. Raft closes what was delivered when it ends.
func (c *trackedConn) Close() error {
	c.s.mu.Lock()
	server, open := c.s.conns[c]
	delete(c.s.conns, c)
	c.s.mu.Unlock()
	if open && c.delivered {
		select {
		case c.s.ended <- server:
		default:
		}
	}
	return c.Conn.Close()
}

// serverAddr is "host:port|server ID": the address names the incarnation, so
// that a blank node at an old address answers for nobody but itself.
type serverAddr string

// Network implements net.Addr.
func (serverAddr) Network() string { return "flymesh" }

// String implements net.Addr.
func (a serverAddr) String() string { return string(a) }

func addressOf(hostport, server string) raft.ServerAddress {
	return raft.ServerAddress(hostport + "|" + server)
}
