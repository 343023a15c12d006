// Package proxy is an optional reverse proxy in front of the app. It measures
// every request where clients see it: durations into the latency sketch,
// errors, requests that clients gave up, and what is in flight. Websockets and
// streams pass. It is the standard library's reverse proxy with a count around
// it.
//
// It is also a Prober: its readings stand in for those of the app. It runs in
// the mesh half, in the way of the traffic: when that half dies, the port is
// closed until it is back. The app itself goes on.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"time"

	"flymesh/probes"
	"flymesh/probes/report"
)

// retryAfter is what a client is told while the machine drains, in seconds:
// by then others take its requests.
const retryAfter = "1"

// statusGone is noted, never sent: the client had left before the answer.
const statusGone = 499

// Options say where the traffic comes in and where the app is.
type Options struct {
	Listen string // host:port
	Target string // http://host:port of the app
	Window time.Duration
	Logger *slog.Logger
}

// Proxy is a running proxy. Drain and Probe may be called from any goroutine.
type Proxy struct {
	listener net.Listener
	server   *http.Server
	forward  *httputil.ReverseProxy
	log      *slog.Logger

	tally    *tally
	draining atomic.Bool
	inFlight atomic.Int64 // without websockets: they never end by themselves
	streams  atomic.Int64 // websockets and other upgraded connections
}

// Open begins to listen. Requests are answered once Run runs.
func Open(o Options) (*Proxy, error) {
	target, err := url.Parse(o.Target)
	if err != nil {
		return nil, fmt.Errorf("open proxy to %q: %w", o.Target, err)
	}
	l, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("open proxy: %w", err)
	}
	p := &Proxy{listener: l, log: o.Logger.With("component", "proxy"), tally: newTally(o.Window)}
	quiet := log.New(io.Discard, "", 0) // failures are counted, and a broken client is no news
	p.forward = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host
			r.Out.URL.RawQuery = r.In.URL.RawQuery // also where it is not well formed: that is the app's to judge
			// Fly's proxy has set these; this one adds its own peer.
			r.Out.Header["X-Forwarded-For"] = r.In.Header["X-Forwarded-For"]
			r.SetXForwarded()
			if v := r.In.Header.Get("X-Forwarded-Proto"); v != "" {
				r.Out.Header.Set("X-Forwarded-Proto", v)
			}
			if v := r.In.Header.Get("X-Forwarded-Host"); v != "" {
				r.Out.Header.Set("X-Forwarded-Host", v)
			}
		},
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			MaxIdleConnsPerHost: 256, IdleConnTimeout: 30 * time.Second,
			DisableCompression: true, // what the client accepts goes through as it is
		},
		BufferPool:   newBuffers(),
		ErrorHandler: p.failed,
		ErrorLog:     quiet,
	}
	p.server = &http.Server{
		Handler: p, ErrorLog: quiet,
		ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
	}
	return p, nil
}

// Addr is where the proxy listens.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Run serves until ctx ends; then it lets what is in flight finish for a while.
func (p *Proxy) Run(ctx context.Context) error {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if p.server.Shutdown(grace) != nil {
			_ = p.server.Close()
		}
	})
	err := p.server.Serve(p.listener)
	if stop() { // it failed by itself
		_ = p.server.Close()
		return fmt.Errorf("serve proxy: %w", err)
	}
	<-done
	p.forward.Transport.(*http.Transport).CloseIdleConnections()
	return nil
}

// Drain makes new requests be answered 503 with Retry-After, or takes that
// back. What is in flight goes on.
func (p *Proxy) Drain(on bool) {
	if p.draining.Swap(on) != on {
		p.server.SetKeepAlivesEnabled(!on) // clients go elsewhere with their next request
	}
}

// ServeHTTP forwards one request and measures it.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if p.draining.Load() {
		w.Header().Set("Retry-After", retryAfter)
		http.Error(w, "this machine is draining", http.StatusServiceUnavailable)
		return
	}
	m := &measured{ResponseWriter: w, p: p, begin: time.Now()}
	p.inFlight.Add(1)
	defer m.end(r)
	p.forward.ServeHTTP(m, r)
	m.whole = true
}

// failed answers a request that the app did not.
func (p *Proxy) failed(w http.ResponseWriter, r *http.Request, err error) {
	m, _ := w.(*measured)
	switch {
	case r.Context().Err() != nil:
		if m != nil {
			m.status = statusGone
		}
	case errors.Is(err, context.DeadlineExceeded):
		w.WriteHeader(http.StatusGatewayTimeout)
	default:
		w.WriteHeader(http.StatusBadGateway)
	}
}

var _ probes.Prober = (*Proxy)(nil)

// Name returns "proxy".
func (p *Proxy) Name() string { return "proxy" }

// Fields returns all that is measured at the door.
func (p *Proxy) Fields() probes.Field {
	return probes.InFlight | probes.Requests | probes.Errors | probes.Latency
}

// Probe returns the counts of the window.
func (p *Proxy) Probe(context.Context) (probes.Reading, error) {
	requests, failures, latency, err := p.tally.read(time.Now())
	if err != nil {
		return probes.Reading{}, err
	}
	return probes.Reading{
		InFlight: report.Of(float64(p.inFlight.Load())), Requests: report.Of(requests), Errors: report.Of(failures), Latency: latency,
		Facts: []probes.Fact{{Name: "open_streams", Value: report.Of(float64(p.streams.Load()))}},
	}, nil
}
