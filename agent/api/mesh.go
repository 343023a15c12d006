package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"flymesh/raftstore/stranger"
)

// The protocols that share the mesh port, by ALPN.
const (
	protoRaft = "flymesh-raft/1"
	protoHTTP = "http/1.1"
)

const (
	handshakeTimeout = 5 * time.Second
	maxHandshakes    = 128 // connections that have not proved yet who they are
	maxWaiting       = 64  // accepted connections that nobody has taken yet
)

// meshListener is the mesh port: one TLS listener whose connections go to raft
// or to the HTTP handlers.
type meshListener struct {
	l       net.Listener
	tls     *tls.Config
	log     *slog.Logger
	metrics *metrics
	refused *stranger.Log
	http    *queue

	mu   sync.Mutex // guards raft
	raft *RaftNetwork
}

func listenMesh(addr string, conf *tls.Config, log *slog.Logger, m *metrics) (*meshListener, error) {
	if conf == nil || conf.ClientAuth != tls.RequireAndVerifyClientCert || conf.ClientCAs == nil {
		return nil, errors.New("listen for the mesh: the TLS settings do not verify clients")
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for the mesh: %w", err)
	}
	c := conf.Clone()
	c.NextProtos = []string{protoRaft, protoHTTP}
	return &meshListener{l: l, tls: c, log: log, metrics: m, refused: stranger.New(log), http: newQueue(l.Addr())}, nil
}

// run accepts until ctx ends. Each handshake has a goroutine and a deadline.
func (m *meshListener) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { m.l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxHandshakes)
	pause := 5 * time.Millisecond
	for {
		c, err := m.l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				c.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept mesh connection: %w", err)
		case err != nil: // out of file descriptors, most likely
			m.log.Warn("cannot accept a mesh connection", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			pause = min(2*pause, time.Second)
			continue
		}
		pause = 5 * time.Millisecond
		select {
		case slots <- struct{}{}:
		default:
			c.Close()
			m.refuse("busy", c, nil)
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			m.greet(ctx, c)
		})
	}
}

// greet carries out the handshake and hands the connection on.
func (m *meshListener) greet(ctx context.Context, c net.Conn) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	t := tls.Server(c, m.tls)
	if err := t.HandshakeContext(ctx); err != nil {
		c.Close()
		m.refuse("handshake", c, err)
		return
	}
	m.mu.Lock()
	raft := m.raft
	m.mu.Unlock()
	switch p := t.ConnectionState().NegotiatedProtocol; {
	case p == protoHTTP:
		if !m.http.put(t) {
			m.refuse("busy", c, nil)
		}
	case p == protoRaft && raft != nil:
		if !raft.put(t) {
			m.refuse("raft_full", c, nil)
		}
	default:
		t.Close()
		m.refuse("protocol", c, fmt.Errorf("protocol %q is not served", p))
	}
}

// refuse counts a refusal, and logs it if whoever called did something wrong:
// a machine of the mesh also gives up in a handshake, or comes when all is busy.
func (m *meshListener) refuse(reason string, c net.Conn, err error) {
	m.metrics.refused.WithLabelValues(reason).Inc()
	switch {
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, context.Canceled):
		m.log.Debug("mesh connection refused", "reason", reason, "from", c.RemoteAddr().String(), "error", err)
	default:
		m.refused.Refused(c.RemoteAddr().String(), reason, err.Error())
	}
}

func (m *meshListener) raftNetwork() *RaftNetwork {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.raft == nil {
		conf := m.tls.Clone()
		conf.NextProtos = []string{protoRaft}
		m.raft = &RaftNetwork{queue: newQueue(m.l.Addr()), tls: conf}
	}
	return m.raft
}

func (m *meshListener) close() {
	m.l.Close()
	m.http.Close()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.raft != nil {
		m.raft.Close()
	}
}

// RaftNetwork is raft's share of the mesh port: authenticated connections in
// both directions.
type RaftNetwork struct {
	*queue
	tls *tls.Config
}

// Dial opens a raft connection to another machine's mesh port. The deadline of
// ctx bounds connection and handshake alike.
func (r *RaftNetwork) Dial(ctx context.Context, hostport string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	d := tls.Dialer{Config: r.tls}
	c, err := d.DialContext(ctx, "tcp", hostport)
	if err != nil {
		return nil, err
	}
	if p := c.(*tls.Conn).ConnectionState().NegotiatedProtocol; p != protoRaft {
		c.Close()
		return nil, fmt.Errorf("dial %s: it speaks %q, not raft", hostport, p)
	}
	return c, nil
}

// Addr returns host:port of the mesh port.
func (r *RaftNetwork) Addr() string { return r.queue.addr.String() }

// queue is a net.Listener of connections that were accepted elsewhere.
type queue struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	mu    sync.Mutex // orders put against Close
	shut  bool
}

func newQueue(a net.Addr) *queue {
	return &queue{addr: a, conns: make(chan net.Conn, maxWaiting), done: make(chan struct{})}
}

// put hands a connection over, or closes it and says false when nobody takes
// connections any more or quickly enough.
func (q *queue) put(c net.Conn) bool {
	if q.offer(c) {
		return true
	}
	c.Close()
	return false
}

func (q *queue) offer(c net.Conn) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.shut {
		return false
	}
	select {
	case q.conns <- c:
		return true
	default:
		return false
	}
}

// Accept implements net.Listener.
func (q *queue) Accept() (net.Conn, error) {
	select {
	case <-q.done:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. It closes what nobody took, and leaves the
// port and the other protocol alone.
func (q *queue) Close() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.shut {
		return nil
	}
	q.shut = true
	close(q.done)
	for {
		select {
		case c := <-q.conns:
			c.Close()
		default:
			return nil
		}
	}
}

// Addr implements net.Listener.
func (q *queue) Addr() net.Addr { return q.addr }
