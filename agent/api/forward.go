package api

import (
	"bytes"
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
)

// work answers a request that has been read and checked.
type work func(ctx context.Context) (any, error)

// leading answers on the leader and forwards elsewhere. The request is checked
// first, so that a mistake is told even where nobody leads.
func (s *Server) leading(most int64, parse func(r *http.Request, body []byte) (work, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
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
		if err != nil {
			writeProblem(w, problemOf(err))
			return
		}
		resp.write(w)
	}
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
// broke later, a command's outcome is not known.
func (s *Server) forward(ctx context.Context, r *http.Request, addr string, body []byte, hops int) (*response, error) {
	if hops >= maxHops || s.o.TLS == nil || s.mesh != nil && addr == s.mesh.l.Addr().String() {
		return nil, s.noLeader(nil)
	}
	conf := s.o.TLS.Clone()
	conf.NextProtos = []string{protoHTTP}
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout}, Config: conf}
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, s.noLeader(fmt.Errorf("no leader answers at %s: %w", addr, err))
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
		return nil, lost(r.Method, addr, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, lost(r.Method, addr, err)
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
