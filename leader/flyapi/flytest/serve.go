package flytest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

// caller is who sends a request, unless it is somebody under test who came
// over the network.
type caller struct {
	actor string   // one of the emulator's own; empty: somebody under test
	self  *selfAPI // the machine whose /.fly/api it came by
}

// call is one request on its way through the API.
type call struct {
	ctx context.Context
	r   *http.Request
	caller
	route   *route
	app     string
	id      string // of the machine
	key     string // of the metadata
	nonce   string // lease
	owner   string // who a lease taken now would belong to
	body    []byte
	machine string // for the audit log: the machine that a create made
	name    string // for the audit log: the name that a create asked for
}

// reply is an answer: body as JSON, or raw bytes.
type reply struct {
	code        int
	body        any
	raw         []byte
	contentType string
}

func ok(body any) (reply, error) { return reply{code: http.StatusOK, body: body}, nil }

// ServeHTTP answers /_emulator/ itself and everything else as the Machines API.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/_emulator/") {
		s.serveControl(w, r)
		return
	}
	s.serve(w, r, caller{})
}

// serve answers a request of the Machines API.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, from caller) {
	began := time.Now()
	requestID := s.ids.ulid(began) + "-emu"
	w.Header().Set("Fly-Request-Id", requestID)
	by := cmp.Or(from.actor, fingerprint(r))
	if from.self != nil {
		by = "machine-" + from.self.machine
	}
	c := &call{ctx: r.Context(), r: r, caller: from, nonce: r.Header.Get("fly-machine-lease-nonce"), owner: by + "@flytest"}
	found := c.match(r.Method, r.URL.Path)
	if found && from.self != nil && c.route.action == "oidc_token" {
		c.app, c.id = from.self.app, from.self.machine
	}
	line := Request{
		At: began, Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, App: c.app, Machine: c.id,
		By: by, From: host(r.RemoteAddr), UserAgent: r.UserAgent(), RequestID: requestID,
	}
	if found {
		line.Action = c.route.action
	}
	index := s.audit.begin(line)
	out := answer{}
	var rep *reply
	defer func() {
		if watch := s.opts.Watch; watch != nil && rep != nil {
			watch(Exchange{
				Method: r.Method, Path: r.URL.Path, Query: r.URL.Query(), Action: line.Action, By: by, RequestBody: c.body,
				Status: rep.code, ContentType: rep.contentType, Body: rep.raw, Fault: out.faked,
			})
		}

		s.audit.update(index, func(l *Request) {
			l.DurationMS = float64(time.Since(began).Microseconds()) / 1000
			l.Status, l.Committed, l.Fault, l.Error, l.Name = out.status, out.committed, out.fault, out.err, c.name
			if c.machine != "" {
				l.Machine = c.machine
			}
		})
	}()
	if !found {
		out.status = http.StatusNotFound
		http.Error(w, "404 page not found", http.StatusNotFound)
		return
	}
	rep = s.answer(c, &out)
	if rep == nil || r.Context().Err() != nil {
		rep = nil
		panic(http.ErrAbortHandler) // closes the connection without an answer
	}
	out.status = rep.code
	if out.committed && r.Method != http.MethodGet {
		http.SetCookie(w, &http.Cookie{Name: "fly_flaps_affinity", Value: s.cookie, Path: "/v1/apps/" + c.app})
	}
	rep.write(w)
}

// host is an address without its port.
func host(addr string) string {
	if h, _, err := net.SplitHostPort(addr); err == nil {
		return h
	}
	return addr
}

// answer is what the audit log says of the end of a request.
type answer struct {
	status    int
	committed bool
	fault     string
	faked     bool // the answer is the fault's
	err       string
}

// answer passes a request through the token check, the rate limiter and the
// faults to its handler. It returns nil where the client gets no answer.
func (s *Server) answer(c *call, out *answer) *reply {
	if err := s.authorize(c); err != nil && c.actor == "" {
		return errorReply(err, out)
	}
	if !s.opts.NoLimits && c.actor == "" {
		of := c.id
		if of == "" {
			of = c.app
		}
		if !s.limits.allow(c.route.action, of) {
			return errorReply(failf(http.StatusTooManyRequests, "rate limit exceeded"), out)
		}
	}
	// net/http notices that a client went away only once the body is read.
	body, err := io.ReadAll(http.MaxBytesReader(nil, c.r.Body, 1<<20))
	if err != nil {
		return errorReply(failf(http.StatusBadRequest, "read body: %v", err), out)
	}
	c.body = body
	var (
		fault Fault
		hit   bool
	)
	if c.actor == "" {
		fault, hit = s.faults.take(c.r.Method, c.r.URL.Path, c.route.action, c.app, c.id)
	}
	if hit {
		out.fault = fault.String()
		if fault.Late {
			c.ctx = context.WithoutCancel(c.ctx)
		}
		if !s.pause(c, time.Duration(fault.Delay)) {
			return nil
		}
		if fault.Drop == "before" || (fault.Status != 0 && fault.Drop == "") {
			out.faked = true
			return fault.answer()
		}
	}
	rep, err := c.route.handle(s, c)
	switch {
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return nil
	case err != nil:
		rep = *errorReply(err, out)
	default:
		out.committed = true
	}
	if hit {
		if !s.pause(c, time.Duration(fault.AnswerDelay)) {
			return nil
		}
		if fault.Drop == "after" {
			out.faked = true
			return fault.answer()
		}
	}
	return &rep
}

// pause returns false if the client or the emulator went away meanwhile.
func (s *Server) pause(c *call, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.ctx.Done():
	case <-s.fleet.ctx.Done():
	}
	return false
}

// authorize checks the token against the app's.
func (s *Server) authorize(c *call) error {
	if c.self != nil {
		return c.self.authorize(c)
	}
	if s.opts.Tokens == nil {
		return nil
	}
	have := tokens(c.r.Header.Get("Authorization"))
	known := false
	for app, token := range s.opts.Tokens {
		for _, t := range tokens(token) {
			if !slices.Contains(have, t) {
				continue
			}
			if known = true; c.app == "" || c.app == app {
				return nil
			}
		}
	}
	if known {
		return failf(http.StatusForbidden, "unauthorized: token is not for app %s", c.app)
	}
	return failf(http.StatusUnauthorized, "Authenticate: token validation error")
}

// tokens splits "Bearer TOKEN", "FlyV1 TOKEN,TOKEN" or the tokens alone.
func tokens(s string) []string {
	if scheme, list, ok := strings.Cut(s, " "); ok && (scheme == "Bearer" || scheme == "FlyV1") {
		s = list
	}
	return strings.Split(strings.TrimSpace(s), ",")
}

// fingerprint names the token of a request without showing it.
func fingerprint(r *http.Request) string {
	h := r.Header.Get("Authorization")
	if h == "" {
		return "anonymous"
	}
	sum := sha256.Sum256([]byte(h))
	return "token-" + hex.EncodeToString(sum[:4])
}

func errorReply(err error, out *answer) *reply {
	out.err = err.Error()
	var e *apiError
	if !errors.As(err, &e) {
		e = failf(http.StatusInternalServerError, "internal: %v", err)
	}
	return &reply{code: e.code, body: map[string]string{"error": e.text}}
}

func (p *reply) write(w http.ResponseWriter) {
	if p.body != nil {
		var buf bytes.Buffer
		if err := json.NewEncoder(&buf).Encode(p.body); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		p.raw, p.contentType = buf.Bytes(), "application/json; charset=utf-8"
	}
	if p.contentType != "" {
		w.Header().Set("Content-Type", p.contentType)
	}
	w.WriteHeader(p.code)
	w.Write(p.raw) // a client that went away is no error of ours
}

// read decodes a JSON body into v; an empty body leaves v as it is.
func (c *call) read(v any) error {
	if len(c.body) == 0 {
		return nil
	}
	if err := json.Unmarshal(c.body, v); err != nil {
		return failf(http.StatusBadRequest, "invalid JSON: %v", err)
	}
	return nil
}
