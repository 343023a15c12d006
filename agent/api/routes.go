package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"flymesh/raftstore/state"
)

// Bounds of what comes in and goes out.
const (
	maxBody     = 64 << 10
	maxCommand  = 1 << 20  // a proposed command
	maxAnswer   = 64 << 20 // of a forwarded request; the windows of a large fleet
	maxText     = 300      // Reason and By, in bytes
	workTimeout = 10 * time.Second
	maxDrain    = time.Hour
	drainMargin = 10 * time.Second // between a drain's deadline and the connection's
)

// routes returns the handlers of one door: socket, mesh or health.
func (s *Server) routes(door string) http.Handler {
	mux := http.NewServeMux()
	handle := func(method, path string, h http.HandlerFunc) {
		mux.HandleFunc(method+" "+path, s.count(door, path, h))
		mux.HandleFunc(path, s.count(door, path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Allow", method)
			writeJSON(w, http.StatusMethodNotAllowed, Problem{
				Error: fmt.Sprintf("%s %s: the method must be %s", r.Method, path, method), Code: CodeBadRequest})
		}))
	}
	handle("GET", PathHealth, s.serveHealth)
	handle("GET", PathMetrics, promhttp.HandlerFor(s.o.Gatherer, promhttp.HandlerOpts{
		MaxRequestsInFlight: 4, Timeout: workTimeout}).ServeHTTP)
	if door != "health" || s.o.Page == nil {
		mux.HandleFunc("/", s.count(door, "other", func(w http.ResponseWriter, r *http.Request) {
			writeProblem(w, Problem{Error: fmt.Sprintf("%.100s is not a path of this port", r.URL.Path), Code: CodeNotFound})
		}))
	}
	if door == "health" {
		if s.o.Page != nil {
			mux.HandleFunc("/", s.count(door, "page", s.o.Page.ServeHTTP))
		}
		return mux
	}

	b := s.o.Backend
	handle("GET", PathStatus, s.serveStatus)
	handle("GET", PathWhy+"{service}", s.leading(maxBody, func(r *http.Request, _ []byte) (work, error) {
		name := r.PathValue("service")
		if name == "" {
			return nil, badRequest("the service is missing: %sSERVICE", PathWhy)
		}
		return func(ctx context.Context) (any, error) { return b.Why(ctx, name) }, nil
	}))
	handle("GET", PathEvents, s.leading(maxBody, func(r *http.Request, _ []byte) (work, error) {
		after, err := parseAfter(r.URL.Query())
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context) (any, error) {
			es, err := b.Events(ctx, after)
			if es == nil {
				es = []state.Event{}
			}
			return es, err
		}, nil
	}))
	handle("POST", PathScale, s.leading(maxBody, func(_ *http.Request, body []byte) (work, error) {
		var q ScaleRequest
		if err := decodeStrict(body, &q); err != nil {
			return nil, err
		}
		if err := q.check(); err != nil {
			return nil, err
		}
		return func(ctx context.Context) (any, error) { return b.Scale(ctx, q) }, nil
	}))
	handle("POST", PathPause, s.leading(maxBody, func(_ *http.Request, body []byte) (work, error) {
		q, err := decodePause(body)
		if err == nil && q.For <= 0 {
			err = badRequest("for: %d is not a duration in nanoseconds above 0", q.For)
		}
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context) (any, error) { return b.Pause(ctx, q) }, nil
	}))
	handle("POST", PathResume, s.leading(maxBody, func(_ *http.Request, body []byte) (work, error) {
		q, err := decodePause(body)
		if err == nil && q.For != 0 {
			err = badRequest("for: %d makes no sense here; leave it out", q.For)
		}
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context) (any, error) { return b.Resume(ctx, q) }, nil
	}))
	s.raftRoutes(door, handle)
	handle("GET", PathHistory, s.leading(maxBody, s.history))
	handle("GET", PathPage, s.leading(maxBody, s.page))
	handle("GET", PathAlerts, s.leading(maxBody, func(*http.Request, []byte) (work, error) {
		return func(ctx context.Context) (any, error) { return b.Alerts(ctx) }, nil
	}))
	handle("POST", PathSilence, s.leading(maxBody, func(_ *http.Request, body []byte) (work, error) {
		var q SilenceRequest
		if err := decodeStrict(body, &q); err != nil {
			return nil, err
		}
		if err := q.check(); err != nil {
			return nil, err
		}
		return func(ctx context.Context) (any, error) { return b.Silence(ctx, q) }, nil
	}))
	s.lockRoutes(door, handle)
	s.redisRoutes(door, handle)
	if door != "mesh" {
		return mux
	}

	handle("POST", PathPropose, s.leading(maxCommand, func(_ *http.Request, body []byte) (work, error) {
		var c state.Command
		if err := decodeStrict(body, &c); err != nil {
			return nil, err
		}
		return func(ctx context.Context) (any, error) { return b.Propose(ctx, c) }, nil
	}))
	handle("GET", PathWindows, s.leading(maxBody, func(*http.Request, []byte) (work, error) {
		return func(ctx context.Context) (any, error) { return b.Windows(ctx) }, nil
	}))
	handle("GET", PathPast, s.leading(maxBody, func(*http.Request, []byte) (work, error) {
		return func(ctx context.Context) (any, error) { return b.Past(ctx) }, nil
	}))
	handle("POST", PathDrain, s.serveDrain)
	handle("POST", PathAdmit, s.serveAdmit)
	return mux
}

// count keeps the number of requests; the path comes from a closed set.
func (s *Server) count(door, path string, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c := &codeWriter{ResponseWriter: w, code: http.StatusOK}
		h(c, r)
		s.metrics.requests.WithLabelValues(door, path, strconv.Itoa(c.code)).Inc()
	}
}

type codeWriter struct {
	http.ResponseWriter
	code int
}

// WriteHeader implements http.ResponseWriter.
func (c *codeWriter) WriteHeader(code int) {
	c.code = code
	c.ResponseWriter.WriteHeader(code)
}

// Unwrap lets http.ResponseController reach the connection.
func (c *codeWriter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func (s *Server) serveHealth(w http.ResponseWriter, _ *http.Request) {
	h, ready := s.o.Backend.Health()
	status := http.StatusOK
	if !ready {
		status = http.StatusServiceUnavailable
	}
	w.Header().Set("Cache-Control", "no-store")
	writeJSON(w, status, h)
}

func (s *Server) serveDrain(w http.ResponseWriter, r *http.Request) {
	var q DrainRequest
	body, err := readBody(w, r, maxBody)
	if err == nil {
		err = decodeStrict(body, &q)
	}
	if err == nil && (q.Deadline < 0 || q.Deadline > maxDrain) {
		err = badRequest("deadline: %d is not a duration in nanoseconds from 0 to %d (1h)", q.Deadline, maxDrain)
	}
	if err != nil {
		writeProblem(w, problemOf(err))
		return
	}
	// A drain answers when it is over, however long that takes.
	rc := http.NewResponseController(w)
	if err := rc.SetWriteDeadline(time.Now().Add(q.Deadline + 2*drainMargin)); err != nil {
		s.log.Warn("drain: write deadline not set", "error", err)
	}
	ctx, cancel := context.WithTimeout(r.Context(), q.Deadline+drainMargin)
	defer cancel()
	res, err := s.o.Backend.Drain(ctx, q)
	s.answer(w, r, res, err)
}

func (s *Server) serveAdmit(w http.ResponseWriter, r *http.Request) {
	var q AdmitRequest
	body, err := readBody(w, r, maxBody)
	if err == nil {
		err = decodeStrict(body, &q)
	}
	if err == nil && q.Boot == "" {
		err = badRequest("boot: it is missing; it must be the boot ID that was admitted")
	}
	if err != nil {
		writeProblem(w, problemOf(err))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), workTimeout)
	defer cancel()
	s.answer(w, r, struct{}{}, s.o.Backend.Admit(ctx, q))
}

// answer writes a value or the problem that came instead.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, v any, err error) {
	if err != nil {
		p := problemOf(err)
		if p.Code == CodeInternal {
			s.log.Warn("request failed", "path", r.URL.Path, "error", err)
		}
		writeProblem(w, p)
		return
	}
	if raw, ok := v.([]byte); ok {
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Write(raw) // the client is gone if this fails
		return
	}
	writeJSON(w, http.StatusOK, v)
}

func readBody(w http.ResponseWriter, r *http.Request, most int64) ([]byte, error) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, most))
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return nil, badRequest("the body is longer than %d bytes", most)
	}
	if err != nil {
		return nil, badRequest("read body: %v", err)
	}
	return b, nil
}

func parseAfter(q url.Values) (uint64, error) {
	for k := range q {
		if k != "after" {
			return 0, badRequest("unknown key %q in the query; it can be after=INDEX", k)
		}
	}
	if !q.Has("after") {
		return 0, nil
	}
	n, err := strconv.ParseUint(q.Get("after"), 10, 64)
	if err != nil {
		return 0, badRequest("after: %q is not the index of an event, such as 17", q.Get("after"))
	}
	return n, nil
}

func (q *ScaleRequest) check() error {
	switch {
	case q.Target != nil && q.Delta != 0:
		return badRequest("delta and target are both there; give one of them")
	case q.Target == nil && q.Delta == 0:
		return badRequest("delta or target is missing: such as delta 1 or target 3")
	case q.Target != nil && *q.Target < 0:
		return badRequest("target: %d is not a number of machines", *q.Target)
	}
	return checkTexts(q.Service, q.Reason, &q.By)
}

func decodePause(body []byte) (PauseRequest, error) {
	var q PauseRequest
	if err := decodeStrict(body, &q); err != nil {
		return q, err
	}
	return q, checkTexts(q.Service, q.Reason, &q.By)
}

func checkTexts(service, reason string, by *string) error {
	switch {
	case service == "":
		return badRequest("service is missing: the name of one in mesh.toml")
	case len(service) > maxText:
		return badRequest("service: it is longer than %d bytes", maxText)
	case len(reason) > maxText:
		return badRequest("reason: it is longer than %d bytes", maxText)
	case len(*by) > maxText:
		return badRequest("by: it is longer than %d bytes", maxText)
	}
	if *by = strings.TrimSpace(*by); *by == "" {
		*by = "api"
	}
	return nil
}
