package api

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// hopsHeader counts how often a request was forwarded. Two agents that each
// take the other for the leader must not pass it round.
const (
	hopsHeader = "Flymesh-Hops"
	maxHops    = 2
)

// Deadlines of forwarding. A machine that is gone does not refuse, it is
// silent; a person waits for the answer.
const (
	dialTimeout    = 2 * time.Second
	forwardTimeout = 8 * time.Second
	statusTimeout  = 4 * time.Second

	routeEvery = 200 * time.Millisecond // how soon it is seen that another leads
)

// errMoved means that another machine leads than the one that was asked: a
// frozen leader does not end its connections.
var errMoved = errors.New("another machine leads now")

// work answers a request that has been read and checked.
type work func(ctx context.Context) (any, error)

// leading answers on the leader and forwards elsewhere. The request is checked
// first, so that a mistake is told even where nobody leads.
func (s *Server) leading(most int64, parse func(r *http.Request, body []byte) (work, error)) http.HandlerFunc {
	var serve http.HandlerFunc
	serve = func(w http.ResponseWriter, r *http.Request) {
		var do work
		body, err := readBody(w, r, most)
		if err == nil {
			do, err = parse(r, body)
		}
		hops := 0
		if err == nil {
			hops, err = hopsOf(r)
		}
		if err != nil {
			writeProblem(w, problemOf(err))
			return
		}
		self, addr, ok := s.o.Backend.Route()
		if self {
			ctx, cancel := context.WithTimeout(r.Context(), workTimeout)
			defer cancel()
			v, err := do(ctx)
			if errors.Is(err, ErrNoLeader) {
				err = s.noLeader(nil)
			}
			s.answer(w, r, v, err)
			return
		}
		if !ok {
			writeProblem(w, problemOf(s.noLeader(nil)))
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), forwardTimeout)
		defer cancel()
		resp, err := s.forward(ctx, r, addr, body, hops)
		switch {
		case errors.Is(err, errMoved):
			serve(w, r)
		case err != nil:
			writeProblem(w, problemOf(err))
		default:
			resp.write(w)
		}
	}
	return serve
}

// serveStatus answers like the other leader requests, but never fails for want
// of a leader: then it tells what this agent knows itself.
func (s *Server) serveStatus(w http.ResponseWriter, r *http.Request) {
	hops, err := hopsOf(r)
	if err != nil {
		writeProblem(w, problemOf(err))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), statusTimeout)
	defer cancel()
	self, addr, ok := s.o.Backend.Route()
	warning := ""
	switch {
	case self:
		st, err := s.o.Backend.Status(ctx)
		if err == nil {
			writeJSON(w, http.StatusOK, st.whole())
			return
		}
		if !errors.Is(err, ErrNoLeader) {
			warning = err.Error()
		}
	case ok:
		resp, err := s.forward(ctx, r, addr, nil, hops)
		if err == nil && resp.status == http.StatusOK {
			resp.write(w)
			return
		}
		if errors.Is(err, errMoved) {
			s.serveStatus(w, r)
			return
		}
		if err == nil {
			err = fmt.Errorf("%s answers %d", addr, resp.status)
		}
		warning = err.Error()
	}
	st := s.o.Backend.LocalStatus()
	st.Leader = nil
	if warning != "" {
		st.Warnings = append(st.Warnings, warning)
	}
	writeJSON(w, http.StatusOK, st.whole())
}

// whole makes absent lists empty ones, for scripts.
func (st Status) whole() Status {
	if st.Services == nil {
		st.Services = []ServiceStatus{}
	}
	if st.Machines == nil {
		st.Machines = []MachineStatus{}
	}
	if st.Warnings == nil {
		st.Warnings = []string{}
	}
	if st.Quorum.Voters == nil {
		st.Quorum.Voters = []string{}
	}
	return st
}

// noLeader says in one sentence since when nobody leads and who says so.
func (s *Server) noLeader(cause error) error {
	st := s.o.Backend.LocalStatus()
	text := ErrNoLeader.Error()
	if len(st.Warnings) > 0 {
		text = st.Warnings[0]
	}
	if cause != nil {
		text = cause.Error()
	}
	return &noLeaderError{fmt.Sprintf("%s (machine %s answers)", text, st.From)}
}

type noLeaderError struct{ text string }

func (e *noLeaderError) Error() string { return e.text }

// Unwrap makes the error an ErrNoLeader.
func (e *noLeaderError) Unwrap() error { return ErrNoLeader }

// response is a forwarded answer, read in full.
type response struct {
	status int
	kind   string // Content-Type
	body   []byte
}

func (r *response) write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", r.kind)
	w.WriteHeader(r.status)
	w.Write(r.body) // the client is gone if this fails
}

// forward sends the request to another agent's mesh port. If the connection
// could not be made nothing was done, and the error is ErrNoLeader; if it
// broke later, a command's outcome is not known. It gives up when another
// machine leads, with errMoved for a question.
func (s *Server) forward(ctx context.Context, r *http.Request, addr string, body []byte, hops int) (*response, error) {
	if hops >= maxHops || s.o.TLS == nil || s.mesh != nil && addr == s.mesh.l.Addr().String() {
		return nil, s.noLeader(nil)
	}
	ctx, moved := context.WithCancelCause(ctx)
	defer moved(nil)
	go s.watchRoute(ctx, addr, moved)
	conf := s.o.TLS.Clone()
	conf.NextProtos = []string{protoHTTP}
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout}, Config: conf}
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, unlessMoved(ctx, r, s.noLeader(fmt.Errorf("no leader answers at %s: %w", addr, err)))
	}
	tr := &http.Transport{
		DisableKeepAlives: true, MaxResponseHeaderBytes: maxHeader,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}
	defer tr.CloseIdleConnections()
	defer conn.Close()
	// The connection is TLS already; the transport must not add its own.
	q, err := http.NewRequestWithContext(ctx, r.Method, "http://"+addr+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("forward request: %w", err)
	}
	q.Header.Set(hopsHeader, strconv.Itoa(hops+1))
	q.Header.Set("Content-Type", "application/json")
	resp, err := tr.RoundTrip(q)
	if err != nil {
		return nil, unlessMoved(ctx, r, lost(r.Method, addr, cmp.Or(context.Cause(ctx), err)))
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, unlessMoved(ctx, r, lost(r.Method, addr, cmp.Or(context.Cause(ctx), err)))
	}
	return &response{resp.StatusCode, resp.Header.Get("Content-Type"), b}, nil
}

// lost says what a broken connection means: nothing for a question, an unknown
// outcome for a command.
func lost(method, addr string, err error) error {
	if method == http.MethodGet {
		return &noLeaderError{fmt.Sprintf("the agent at %s stopped answering: %v", addr, err)}
	}
	return &unknownError{fmt.Sprintf(
		"the agent at %s stopped answering, so the command may or may not have been carried out; see the events: %v", addr, err)}
}

// watchRoute calls moved once the leader is not at addr any more.
func (s *Server) watchRoute(ctx context.Context, addr string, moved context.CancelCauseFunc) {
	t := time.NewTicker(routeEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if self, now, ok := s.o.Backend.Route(); self || ok && now != addr {
			moved(errMoved)
			return
		}
	}
}

// unlessMoved is err, or errMoved for a question that another machine can
// answer.
func unlessMoved(ctx context.Context, r *http.Request, err error) error {
	if r.Method == http.MethodGet && errors.Is(context.Cause(ctx), errMoved) {
		return errMoved
	}
	return err
}

func hopsOf(r *http.Request) (int, error) {
	h := r.Header.Get(hopsHeader)
	if h == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(h)
	if err != nil || n < 0 || n > maxHops {
		return 0, badRequest("header %s: %q is not a number from 0 to %d", hopsHeader, h, maxHops)
	}
	return n, nil
}
