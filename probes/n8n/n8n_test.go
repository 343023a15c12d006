package n8n

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"flymesh/probes"
	"flymesh/probes/redis"
	"flymesh/probes/redis/redistest"
	"flymesh/probes/report"
)

// recorded is a main or worker that answers what n8n 2.41.1 was recorded to.
type recorded struct {
	mu        sync.Mutex
	metrics   string
	readiness int
	starting  bool          // the page of the time before migrations end
	canary    int           // status of the canary webhook
	hang      time.Duration // before the canary answers
}

func (r *recorded) set(f func(*recorded)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r)
}

func (r *recorded) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	c := recorded{metrics: r.metrics, readiness: r.readiness, starting: r.starting, canary: r.canary, hang: r.hang}
	r.mu.Unlock()
	switch {
	case c.starting:
		fmt.Fprint(w, "n8n is starting up. Please wait") // any path, status 200
	case q.URL.Path == "/metrics":
		fmt.Fprint(w, c.metrics)
	case q.URL.Path == "/healthz/readiness":
		w.WriteHeader(c.readiness)
		fmt.Fprint(w, `{"status":"ok"}`)
	case q.URL.Path == "/webhook/ping" && q.Method == http.MethodPost:
		select {
		case <-time.After(c.hang):
		case <-q.Context().Done():
			return
		}
		w.WriteHeader(c.canary)
	default:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"code":404,"message":"The requested webhook is not registered."}`)
	}
}

func serve(t *testing.T, file string) (*recorded, string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	r := &recorded{metrics: string(b), readiness: 200, canary: 200}
	h := httptest.NewServer(r)
	t.Cleanup(h.Close)
	return r, h.URL
}

func make1(t *testing.T, o Options) *N8N {
	t.Helper()
	n, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func probe(t *testing.T, n *N8N) probes.Reading {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 1200*time.Millisecond)
	defer cancel()
	m, err := n.Probe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func number(m probes.Reading, name string) float64 {
	for _, f := range m.Facts {
		if f.Name == name {
			return f.Value.X
		}
	}
	return -1
}

// without takes the series of a family out, as before the first request.
func without(text string, families ...string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		drop := false
		for _, f := range families {
			drop = drop || strings.HasPrefix(line, f+"_")
		}
		if !drop {
			b.WriteString(line)
		}
	}
	return b.String()
}

// share is counted from the recorded text itself: of the requests on the
// paths, how many took at most le seconds.
func share(text, family, le, paths string) float64 {
	sum := func(pattern string) (n float64) {
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			x, _ := strconv.ParseFloat(m[1], 64)
			n += x
		}
		return n
	}
	below := sum(`(?m)^` + family + `_bucket\{le="` + regexp.QuoteMeta(le) + `",[^}]*` + paths + `[^}]*\} (\d+)`)
	return below / sum(`(?m)^`+family+`_count\{[^}]*`+paths+`[^}]*\} (\d+)`)
}

const (
	webhooks   = "n8n_webhook_request_duration_seconds"
	executions = "n8n_workflow_execution_duration_seconds"
)

func TestMainFromARecording(t *testing.T) {
	s := redistest.Start(t)
	addr, c := s.Addr, s.Client(t)
	r, url := serve(t, "testdata/main.prom")
	full := r.metrics
	for i := range 39 {
		c.LPush(t.Context(), "bull:jobs:wait", i)
	}
	for _, tt := range []struct {
		webhooks []string
		paths    string
		requests float64
		errors   float64
	}{
		{[]string{"answer", "estimate"}, `webhook_path="(?:answer|estimate)"`, 23 + 42, 0},
		{[]string{"/fail"}, `webhook_path="fail"`, 23, 23},
		{nil, `webhook_path=`, 20 + 23 + 23 + 42, 23},
	} {
		n := make1(t, Options{URL: url, Redis: redis.Server{Addr: addr}, Webhooks: tt.webhooks})
		r.set(func(r *recorded) { r.metrics = without(full, webhooks, executions) })
		if m := probe(t, n); m.Latency != nil || m.Requests.OK || m.Errors.OK || len(m.Problems) == 0 {
			t.Errorf("first scrape: %+v", m)
		}
		r.set(func(r *recorded) { r.metrics = full })
		m := probe(t, n)
		p95 := m.Latency.Quantile(0.95)
		under := share(full, webhooks, "1.5", tt.paths)
		t.Logf("%v: %.0f requests (recorded %.0f), %.0f errors (recorded %.0f), p95 %.2f s; recorded share within 1.5 s %.3f; execution p95 %.3f s, share within 30 s %.3f; lag %.4f; depth %.0f",
			tt.webhooks, m.Requests.X, tt.requests, m.Errors.X, tt.errors, p95, under, number(m, "execution_p95_seconds"), share(full, executions, "30", "workflow_id="),
			number(m, "event_loop_lag_p99_seconds"), m.Queue.X)
		if m.Requests != report.Of(tt.requests) || m.Errors != report.Of(tt.errors) || len(m.Problems) != 0 {
			t.Errorf("%v: %+v", tt.webhooks, m)
		}
		if (p95 <= 1.5) != (under >= 0.95) {
			t.Errorf("%v: p95 %.3f is on the wrong side of 1.5 s: %.3f of the requests are within", tt.webhooks, p95, under)
		}
		if e := number(m, "execution_p95_seconds"); e < 1 || e > 2.5 || number(m, "execution_samples") != 88 {
			t.Errorf("execution p95 %v of %v", e, number(m, "execution_samples"))
		}
		if math.Abs(number(m, "event_loop_lag_p99_seconds")-0.012574719) > 1e-9 || m.Queue != report.Of(39) || m.QueueScope != report.QueueService || !*m.Ready {
			t.Errorf("%+v", m)
		}
	}
	// A restart begins all counts anew: what it counted then is all there is.
	n := make1(t, Options{URL: url, Redis: redis.Server{Addr: addr}})
	probe(t, n)
	r.set(func(r *recorded) {
		r.metrics = strings.Replace(full, "n8n_process_start_time_seconds 1795427864", fmt.Sprintf("n8n_process_start_time_seconds %d", time.Now().Unix()), 1)
	})
	if m := probe(t, n); m.Requests != report.Of(108) || m.Errors != report.Of(23) {
		t.Errorf("after a restart: %v requests, %v errors", m.Requests, m.Errors)
	}
}

// Readiness says yes while webhooks do not work; the probe must not.
func TestMainReadiness(t *testing.T) {
	s := redistest.Start(t)
	addr, c := s.Addr, s.Client(t)
	r, url := serve(t, "testdata/main.prom")
	n := make1(t, Options{URL: url, Redis: redis.Server{Addr: addr}, Canary: "/webhook/ping"})
	is := func(what string, ready bool, reason string) {
		t.Helper()
		m := probe(t, n)
		if m.Ready == nil || *m.Ready != ready || !strings.Contains(m.Reason, reason) || ready && m.Reason != "" {
			t.Errorf("%s: ready %v, %q", what, *m.Ready, m.Reason)
		}
	}
	is("all well", true, "")
	r.set(func(r *recorded) { r.starting = true })
	is("migrations", false, "starting up")
	r.set(func(r *recorded) { r.starting, r.readiness = false, 503 })
	is("database down", false, "readiness: status 503")
	r.set(func(r *recorded) { r.readiness, r.canary = 200, 404 })
	is("webhooks not registered", false, "canary webhook /webhook/ping is not registered")
	r.set(func(r *recorded) { r.canary = 500 })
	is("the canary fails", false, "status 500")
	r.set(func(r *recorded) { r.canary, r.hang = 200, time.Minute })
	is("no worker answers and nothing waits", false, "canary webhook")
	c.LPush(t.Context(), "bull:jobs:wait", "1")
	is("the queue is behind: the worker's fault", true, "")
	// n8n itself sees no timeout; the canary does.
	m := probe(t, n)
	t.Logf("3 canaries given up: %.0f errors of %.0f requests", m.Errors.X, m.Requests.X)
	if m.Errors != report.Of(3) {
		t.Errorf("errors %v after three timeouts", m.Errors)
	}
	r.set(func(r *recorded) { r.hang = 0 })
	s.Stop()
	is("Redis down, n8n says 200", false, "redis: ")
	if m := probe(t, n); m.Queue.OK || len(m.Problems) == 0 {
		t.Errorf("queue without Redis: %+v", m)
	}
}

func TestWorkerFromARecording(t *testing.T) {
	s := redistest.Start(t)
	addr, c := s.Addr, s.Client(t)
	r, url := serve(t, "testdata/worker.prom")
	n := make1(t, Options{Role: Worker, URL: url, Redis: redis.Server{Addr: addr}})
	if n.Fields() != probes.Queue {
		t.Errorf("fields %b", n.Fields())
	}
	c.LPush(t.Context(), "bull:jobs:wait", "1", "2")
	c.LPush(t.Context(), "bull:jobs:active", "3", "4", "5", "6", "7")
	m := probe(t, n)
	if !*m.Ready || m.Queue != report.Of(2) || number(m, "active_jobs") != 5 || m.Latency != nil || len(m.Problems) != 0 {
		t.Errorf("%+v", m)
	}
	if math.Abs(number(m, "event_loop_lag_p99_seconds")-0.011247615) > 1e-9 || number(m, "execution_p95_seconds") != -1 {
		t.Errorf("facts %+v", m.Facts)
	}
	r.set(func(r *recorded) { r.readiness = 503 })
	if m := probe(t, n); *m.Ready || m.Queue != report.Of(2) {
		t.Errorf("readiness 503: %+v", m)
	}
}

// An n8n that is gone or has become something else is unknown, not idle.
func TestGoneOrChanged(t *testing.T) {
	addr := redistest.Start(t).Addr
	n := make1(t, Options{URL: "http://127.0.0.1:1", Redis: redis.Server{Addr: addr}})
	if m := probe(t, n); *m.Ready || m.Latency != nil || m.Requests.OK || len(m.Problems) == 0 || m.Queue != report.Of(0) {
		t.Errorf("gone: %+v", m)
	}
	r, url := serve(t, "testdata/main.prom")
	r.metrics = strings.ReplaceAll(r.metrics, webhooks, "n8n_hooks_seconds")
	n = make1(t, Options{URL: url, Redis: redis.Server{Addr: addr}})
	probe(t, n)
	if m := probe(t, n); m.Latency != nil || m.Requests.OK || m.Errors.OK || !strings.Contains(strings.Join(m.Problems, ";"), "no such metric") {
		t.Errorf("renamed: %+v", m)
	}
	for _, o := range []Options{{}, {URL: "http://a/b", Redis: redis.Server{Addr: addr}}, {URL: "http://a"}, {URL: "http://a", Redis: redis.Server{Addr: addr}, Role: "web"},
		{URL: "http://a", Redis: redis.Server{Addr: addr}, Canary: "ping"}} {
		if _, err := New(o); err == nil {
			t.Errorf("New(%+v) did not fail", o)
		}
	}
	if f := make1(t, Options{URL: "http://a", Redis: redis.Server{Addr: addr}, Elsewhere: true}).Fields(); f != probes.Queue {
		t.Errorf("fields %b with another source of requests", f)
	}
}
