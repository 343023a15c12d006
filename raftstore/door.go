package raftstore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// maxOpening bounds the connections that are in their handshake, maxQueries
// those that are open for queries.
const (
	maxOpening = 64
	maxQueries = 512
	busyAfter  = 50 * time.Millisecond // of waiting for others' handshakes
)

// accept takes connections until the network closes.
func (s *Store) accept() error {
	opening := make(chan struct{}, maxOpening)
	queries := make(chan struct{}, maxQueries)
	pause := 5 * time.Millisecond
	for {
		c, err := s.o.Network.Accept()
		if s.ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("accept connection: %w", err)
		}
		if err != nil {
			s.log.Warn("cannot accept a connection", "error", err)
			select {
			case <-time.After(pause):
			case <-s.ctx.Done():
			}
			pause = min(2*pause, time.Second)
			continue
		}
		pause = 5 * time.Millisecond
		select {
		case opening <- struct{}{}:
		case <-time.After(busyAfter):
			c.Close()
			s.m.refused.WithLabelValues(string(busy)).Inc()
			continue
		}
		s.goDo(func() {
			stop := context.AfterFunc(s.ctx, func() { c.Close() })
			defer stop()
			r, err := s.open(c)
			<-opening
			if err != nil {
				c.Close()
				return
			}
			s.serve(c, r, queries)
		})
	}
}

// open carries out the listener's side of the handshake.
func (s *Store) open(c net.Conn) (request, error) {
	c.SetDeadline(time.Now().Add(handshakeTimeout))
	var nonce [nonceLen]byte
	rand.Read(nonce[:])
	if _, err := c.Write(append([]byte(magic), nonce[:]...)); err != nil {
		return request{}, err
	}
	r, err := readRequest(c)
	no := accepted
	switch {
	case errors.Is(err, errMalformed):
		no = badRequest
	case err != nil:
		return request{}, err
	case r.nonce != nonce:
		no = badNonce
	default:
		no = s.judge(r)
	}
	if no != accepted {
		s.m.refused.WithLabelValues(string(no)).Inc()
		s.refused.Refused(c.RemoteAddr().String(), string(no), string(no),
			"from", r.own, "target", r.target, "epoch", r.epoch, "cluster", r.cluster)
	}
	e, cluster := s.known()
	if _, err := c.Write(reply{no, e, cluster}.encode()); err != nil {
		return request{}, err
	}
	if no != accepted {
		return request{}, no
	}
	c.SetDeadline(time.Time{})
	return r, nil
}

// judge decides whether this machine talks; for a valid invitation it joins.
func (s *Store) judge(r request) refusal {
	if r.mesh != s.o.Mesh {
		return otherMesh
	}
	switch r.kind {
	case kindQuery:
		return accepted
	case kindLeave:
		l := s.leading()
		if l == nil || l.in.server != r.target || l.in.cluster != r.cluster {
			return notLeading
		}
		return accepted
	}
	in := s.member()
	if r.kind == kindResign {
		if in == nil || in.server != r.target || in.cluster != r.cluster || !s.wedged(in) {
			return notWedged
		}
		return accepted
	}
	if in != nil && (in.server != r.target || in.epoch != r.epoch || in.cluster != r.cluster) {
		if r.epoch > in.epoch {
			s.suspect(in, r.epoch, "a machine of a newer epoch called")
		}
		switch {
		case in.server != r.target:
			return otherTarget
		case r.epoch < in.epoch:
			return oldEpoch
		}
		return otherCluster
	}
	if in == nil {
		return s.invited(r)
	}
	return accepted
}

// invited judges an invitation of a machine in no cluster, and follows it.
func (s *Store) invited(r request) refusal {
	if !s.o.Self.Eligible {
		return notInvitable
	}
	if s.selfNow().ID() != r.target {
		return otherTarget
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.o.ReadTimeout)
	defer cancel()
	named := false
	if s.o.Arbiter != nil {
		if rec, err := s.o.Arbiter.Read(ctx); err == nil {
			if !rec.Names(r.epoch, r.cluster) {
				return notNamed
			}
			named = true
		}
	}
	if !named {
		// Without the record the newest epoch heard of decides.
		if e, cluster := s.known(); r.epoch < e || r.epoch == e && cluster != "" && cluster != r.cluster {
			return oldEpoch
		}
	}
	if _, err := s.adopt(s.ctx, r.epoch, r.cluster, r.target); err != nil {
		s.log.Info("cannot follow an invitation", "error", err)
		return otherTarget
	}
	return accepted
}

// known returns the newest cluster that this machine knows as the mesh.
func (s *Store) known() (uint64, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen.Epoch, s.seen.Cluster
}

// serve goes on with an accepted connection.
func (s *Store) serve(c net.Conn, r request, queries chan struct{}) {
	switch r.kind {
	case kindRaft:
		if in := s.member(); in == nil || in.server != r.target || !in.stream.deliver(c, r.own) {
			c.Close()
		}
	case kindQuery:
		defer c.Close()
		select {
		case queries <- struct{}{}:
			s.answer(c)
			<-queries
		default:
		}
	case kindResign:
		defer c.Close()
		c.SetDeadline(time.Now().Add(handshakeTimeout))
		if in := s.member(); in != nil && in.server == r.target && s.wedged(in) {
			s.drop(s.ctx, in, "resigned: the living voters differ in who may vote")
			c.Write([]byte{1})
		}
	case kindLeave:
		defer c.Close()
		c.SetDeadline(time.Now().Add(handshakeTimeout))
		if l := s.leading(); l != nil && l.control.removed(s.ctx, r.own, leaveTimeout) {
			c.Write([]byte{1})
		}
	}
}

// dial opens a connection and carries out the dialler's side of the handshake.
func (s *Store) dial(ctx context.Context, hostport string, r request) (net.Conn, error) {
	c, err := s.o.Network.Dial(ctx, hostport)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", hostport, err)
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	err = s.greet(c, r)
	if !stop() || err != nil {
		c.Close()
		return nil, fmt.Errorf("dial %s: %w", hostport, errors.Join(err, ctx.Err()))
	}
	return c, nil
}

func (s *Store) greet(c net.Conn, r request) error {
	c.SetDeadline(time.Now().Add(handshakeTimeout))
	var hello [len(magic) + nonceLen]byte
	if _, err := io.ReadFull(c, hello[:]); err != nil {
		return err
	}
	if string(hello[:len(magic)]) != magic {
		return errMalformed
	}
	r.mesh = s.o.Mesh
	copy(r.nonce[:], hello[len(magic):])
	b, err := r.encode()
	if err != nil {
		return err
	}
	if _, err := c.Write(b); err != nil {
		return err
	}
	a, err := readReply(c)
	if err != nil {
		return err
	}
	if a.refusal != accepted {
		if in := s.member(); in != nil && a.epoch > in.epoch {
			s.suspect(in, a.epoch, "a machine that was called knows a newer epoch")
		}
		return a.refusal
	}
	c.SetDeadline(time.Time{})
	return nil
}

func (s *Store) dialRaft(ctx context.Context, in *instance, hostport, server string) (net.Conn, error) {
	return s.dial(ctx, hostport, request{kind: kindRaft, epoch: in.epoch, cluster: in.cluster, target: server, own: in.server})
}

func (s *Store) dialQuery(ctx context.Context, hostport string) (net.Conn, error) {
	e, cluster := s.known()
	return s.dial(ctx, hostport, request{kind: kindQuery, epoch: e, cluster: cluster, own: s.selfNow().ID()})
}
