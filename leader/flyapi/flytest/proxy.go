package flytest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	fly "github.com/superfly/fly-go"
)

// Route is the way into one app, as Fly Proxy gives it: an address whose
// requests go to the machines that are started, not cordoned and healthy, to
// the one with the least in flight. A request that has reached a machine is
// never sent again.
type Route struct {
	s         *Server
	app       string
	port      int
	url       string
	http      *http.Server
	transport *http.Transport
	ctx       context.Context
	stop      context.CancelFunc
	wg        sync.WaitGroup

	mu       sync.Mutex // guards the fields below; taken after the fleet's
	backends map[string]*backend
	uses     int
	refused  int
	waiting  int // requests for which a machine is being started
}

// missedChecks is how many checks in a row without any answer end a machine's
// health. An answer that is not 2xx ends it at once.
const missedChecks = 3

// backend is what a route knows of a machine.
type backend struct {
	id       string
	url      *url.URL
	run      Instance // that the health was seen of
	healthy  bool
	missed   int // checks without an answer, in a row
	checking bool
	inFlight int
	requests int
	errors   int
	used     int // the route's count of uses when it was used last
}

// Route listens on an address and routes an app's requests to a port of its machines.
func (s *Server) Route(app, listen string, internalPort int) (*Route, error) {
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, fmt.Errorf("route app %s: %w", app, err)
	}
	r := &Route{s: s, app: app, port: internalPort, url: "http://" + ln.Addr().String(), backends: make(map[string]*backend)}
	r.ctx, r.stop = context.WithCancel(context.Background())
	r.transport = &http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: 30 * time.Second, DisableCompression: true}
	r.http = &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		ln.Close()
		return nil, fmt.Errorf("route app %s: the emulator is closed", app)
	}
	s.routes = append(s.routes, r)
	r.wg.Go(func() {
		if err := r.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("route stopped serving", "app", app, "error", err)
		}
	})
	r.wg.Go(r.check)
	return r, nil
}

// URL is where the app is reached.
func (r *Route) URL() string { return r.url }

func (r *Route) close() {
	r.stop()
	r.http.Close()
	r.wg.Wait()
	r.transport.CloseIdleConnections()
}

// check polls the health of every started machine until the route closes.
func (r *Route) check() {
	client := &http.Client{Timeout: r.s.opts.Proxy.Timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	tick := time.NewTicker(r.s.opts.Proxy.Every)
	defer tick.Stop()
	for {
		for _, b := range r.due() {
			r.wg.Go(func() { r.probe(client, b) })
		}
		select {
		case <-tick.C:
		case <-r.ctx.Done():
			return
		}
	}
}

// due brings the backends up to the fleet and returns those to check now.
func (r *Route) due() []*backend {
	f := r.s.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*backend
	if a := f.apps[r.app]; a != nil {
		for id, m := range a.machines {
			if m.state != fly.MachineStateStarted || !serves(m.config, r.port) {
				continue
			}
			b := r.backends[id]
			if b == nil {
				b = &backend{id: id}
				r.backends[id] = b
			}
			if b.run != m.inst || b.url == nil {
				b.run, b.healthy = m.inst, false
				b.url = &url.URL{Scheme: "http", Host: net.JoinHostPort(m.privateIP, strconv.Itoa(r.port))}
			}
			if !b.checking {
				b.checking = true
				out = append(out, b)
			}
		}
	}
	return out
}

// serves reports whether a machine takes part in a service on the port: a
// config that names services has to name this one.
func serves(c *fly.MachineConfig, port int) bool {
	return len(c.Services) == 0 || slices.ContainsFunc(c.Services, func(s fly.MachineService) bool { return s.InternalPort == port })
}

// probe asks one machine for its health.
func (r *Route) probe(client *http.Client, b *backend) {
	r.mu.Lock()
	run, at := b.run, b.url
	r.mu.Unlock()
	c := r.s.opts.Proxy
	target := "http://" + net.JoinHostPort(at.Hostname(), strconv.Itoa(c.Port)) + c.Path
	healthy, output := false, ""
	req, err := http.NewRequestWithContext(r.ctx, http.MethodGet, target, nil)
	if err == nil {
		var resp *http.Response
		if resp, err = client.Do(req); err == nil {
			text, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
			resp.Body.Close()
			healthy = resp.StatusCode >= 200 && resp.StatusCode < 300
			output = fmt.Sprintf("%d %s", resp.StatusCode, text)
		}
	}
	if err != nil {
		output = err.Error()
	}
	r.mu.Lock()
	b.checking = false
	if b.run == run {
		// Fly asks every 10 s or so and this proxy much more often: what is
		// over before Fly would have asked twice must not count here either.
		if b.missed++; err == nil {
			b.missed = 0
		}
		if err == nil || b.missed >= missedChecks {
			b.healthy = healthy
		}
	}
	r.mu.Unlock()
	r.s.fleet.checked(b.id, run, fmt.Sprintf("servicecheck-00-http-%d", r.port), healthy, output)
}

// checked keeps the outcome of a service check with the machine.
func (f *fleet) checked(id string, run Instance, name string, healthy bool, output string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.byID(id)
	if m == nil || m.inst != run {
		return
	}
	status := fly.Critical
	if healthy {
		status = fly.Passing
	}
	before := ""
	if len(m.checks) == 1 {
		before = string(m.checks[0].Status)
	}
	now := time.Now().UTC()
	m.checks = []fly.MachineCheckStatus{{Name: name, Status: status, Output: output, UpdatedAt: &now}}
	if before != string(status) {
		f.changedMachine(m)
	}
}

// pick chooses the machine for a request, or nil.
func (r *Route) pick() *backend {
	f := r.s.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	var best *backend
	for id, b := range r.backends {
		m := f.apps[r.app].machines[id]
		if m.state != fly.MachineStateStarted || m.cordoned || m.inst != b.run || !b.healthy || !serves(m.config, r.port) {
			continue
		}
		if best == nil || b.inFlight < best.inFlight || (b.inFlight == best.inFlight && b.used < best.used) {
			best = b
		}
	}
	if best == nil {
		return nil
	}
	r.uses++
	best.inFlight++
	best.requests++
	best.used = r.uses
	return best
}

// ServeHTTP sends a request to a machine and names it in the answer's
// Fly-Machine-Id header.
func (r *Route) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	b := r.pick()
	if b == nil {
		b = r.wake(req.Context())
	}
	if b == nil {
		r.mu.Lock()
		r.refused++
		r.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusServiceUnavailable)
		io.WriteString(w, `{"error":"no healthy machine"}`)
		return
	}
	defer func() {
		r.mu.Lock()
		b.inFlight--
		r.mu.Unlock()
	}()
	r.mu.Lock()
	to := b.url
	r.mu.Unlock()
	p := httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.SetURL(to)
			pr.SetXForwarded()
			pr.Out.Host = pr.In.Host
		},
		Transport: once{r.transport},
		ErrorLog:  r.http.ErrorLog,
		ModifyResponse: func(resp *http.Response) error {
			resp.Header.Set("Fly-Machine-Id", b.id)
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			r.mu.Lock()
			b.errors++
			r.mu.Unlock()
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Fly-Machine-Id", b.id)
			w.WriteHeader(http.StatusBadGateway)
			fmt.Fprintf(w, `{"error":%q}`, "machine does not answer: "+err.Error())
		},
	}
	p.ServeHTTP(w, req)
}

// once keeps http.Transport from sending a request a second time when a
// connection that was idle breaks: a body that cannot be read anew forbids it.
type once struct{ rt http.RoundTripper }

func (o once) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body == nil || req.Body == http.NoBody {
		req.Body = io.NopCloser(eof{})
	}
	req.GetBody = nil
	return o.rt.RoundTrip(req)
}

type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

// RouteInfo counts what a route has done.
type RouteInfo struct {
	App      string        `json:"app"`
	URL      string        `json:"url"`
	Refused  int           `json:"refused"` // answered 503, no healthy machine
	Machines []BackendInfo `json:"machines"`
}

// BackendInfo counts what a route has sent to one machine.
type BackendInfo struct {
	Machine  string `json:"machine"`
	Healthy  bool   `json:"healthy"`
	InFlight int    `json:"in_flight"`
	Requests int    `json:"requests"`
	Errors   int    `json:"errors"` // requests that the machine did not answer
}
