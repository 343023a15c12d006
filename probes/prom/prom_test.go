package prom

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"flymesh/probes"
	"flymesh/probes/report"
)

// server answers with the handler that is set.
type server struct {
	*httptest.Server
	handler atomic.Pointer[http.Handler]
}

func serve(t *testing.T) *server {
	s := &server{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		(*s.handler.Load()).ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *server) set(h http.Handler) { s.handler.Store(&h) }

// text answers with an exposition.
func (s *server) text(body string) {
	s.set(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) }))
}

func probe(t *testing.T, p *Prom) probes.Reading {
	t.Helper()
	m, err := p.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func make1(t *testing.T, o Options) *Prom {
	t.Helper()
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// An app that is instrumented with the official library: what the probe says
// is what the requests were.
func TestRealHistogram(t *testing.T) {
	reg := prometheus.NewRegistry()
	durations := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "app_duration_seconds", Help: "h",
		Buckets: prometheus.ExponentialBuckets(0.005, 1.5, 20)}, []string{"code"})
	inFlight := prometheus.NewGauge(prometheus.GaugeOpts{Name: "app_in_flight", Help: "h"})
	queue := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "app_queue", Help: "h"}, []string{"kind"})
	reg.MustRegister(durations, inFlight, queue)
	s := serve(t)
	s.set(promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	p := make1(t, Options{URL: s.URL, Latency: "app_duration_seconds", Errors: `app_duration_seconds_count{code=~"5.."}`,
		InFlight: "app_in_flight", Queue: `app_queue{kind!="internal"}`, Scope: report.QueueService})
	if got, want := p.Fields(), probes.Latency|probes.Requests|probes.Errors|probes.InFlight|probes.Queue; got != want {
		t.Errorf("Fields = %b, want %b", got, want)
	}

	durations.WithLabelValues("200").Observe(9) // before the first scrape: not of the last minute
	queue.WithLabelValues("a").Set(3)
	queue.WithLabelValues("b").Set(4)
	queue.WithLabelValues("internal").Set(100)
	inFlight.Set(2)
	m := probe(t, p)
	if m.Latency != nil || m.Requests.OK || m.Errors.OK || len(m.Problems) != 2 {
		t.Errorf("first scrape: %+v", m)
	}

	rng := rand.New(rand.NewPCG(5, 6))
	var all []float64
	for scrape := range 4 {
		for i := range 250 {
			x := 0.1 * math.Exp(0.5*rng.NormFloat64())
			code := "200"
			if i%50 == 0 {
				code = "503" // appears between scrapes
			}
			durations.WithLabelValues(code).Observe(x)
			all = append(all, x)
		}
		m = probe(t, p)
		if want := report.Of(float64(250 * (scrape + 1))); m.Requests != want {
			t.Errorf("Requests = %v, want %v", m.Requests, want)
		}
	}
	slices.Sort(all)
	for _, q := range []float64{0.5, 0.95} {
		want := all[int(q*float64(len(all)-1))]
		got := m.Latency.Quantile(q)
		t.Logf("p%.0f %.4f, exactly %.4f", 100*q, got, want)
		if got < want/1.25 || got > want*1.25 { // inside the bucket
			t.Errorf("Quantile(%v) = %v, want about %v", q, got, want)
		}
	}
	if m.Errors != report.Of(20) || m.InFlight != report.Of(2) || m.Queue != report.Of(7) || m.QueueScope != report.QueueService {
		t.Errorf("errors %v, in flight %v, queue %v of scope %v", m.Errors, m.InFlight, m.Queue, m.QueueScope)
	}
	if len(m.Problems) != 0 {
		t.Errorf("problems %q", m.Problems)
	}
}

const app = `# TYPE process_start_time_seconds gauge
process_start_time_seconds %d
# TYPE h histogram
h_bucket{le="0.1"} %d
h_bucket{le="1.5"} %d
h_bucket{le="+Inf"} %d
h_sum 1
h_count %[4]d
# TYPE errs counter
errs{code="500"} %[5]d
`

func TestRestartIsSeen(t *testing.T) {
	now := int(time.Now().Unix())
	for _, c := range []struct {
		name          string
		start         int
		a, b, n, errs int
		requests      float64
		failed        float64
	}{
		{"counting on", 1, 15, 25, 35, 7, 5, 2},
		{"fell to less", 1, 1, 2, 3, 1, 3, 1},
		{"a new process that overtook", now, 15, 25, 35, 7, 35, 7},
		{"one bucket fell", 1, 5, 31, 32, 5, 32, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := serve(t)
			p := make1(t, Options{URL: s.URL, Latency: "h", Errors: "errs"})
			s.text(fmt.Sprintf(app, 1, 10, 20, 30, 5))
			probe(t, p)
			s.text(fmt.Sprintf(app, c.start, c.a, c.b, c.n, c.errs))
			m := probe(t, p)
			if m.Requests != report.Of(c.requests) || m.Latency.Count() != c.requests || m.Errors != report.Of(c.failed) {
				t.Errorf("requests %v (sketch %v), errors %v, want %v and %v", m.Requests, m.Latency.Count(), m.Errors, c.requests, c.failed)
			}
		})
	}
}

func TestUnreachableAndChangedServersAreUnknown(t *testing.T) {
	s := serve(t)
	p := make1(t, Options{URL: s.URL, Latency: "h", Errors: "errs", InFlight: "g", Queue: "q"})
	good := fmt.Sprintf(app, 1, 10, 20, 30, 5) + "g 1\nq{a=\"b\"} 2\n"
	s.text(good)
	probe(t, p)
	if m := probe(t, p); len(m.Problems) != 0 || m.Latency == nil || m.Requests != report.Of(0) {
		t.Fatalf("an idle server: %+v", m)
	}

	for name, c := range map[string]struct {
		body string
		want []string // a part of each problem
	}{
		"other server": {"other 1\n", []string{"latency: h: the server has no", "errors: errs: the server has no", "in_flight: g: the server", "queue: q: the server"}},
		"other types":  {"h 1\n# TYPE errs histogram\nerrs_bucket{le=\"+Inf\"} 1\nerrs_sum 1\nerrs_count 1\ng NaN\nq -3\n", []string{"latency: h is no histogram but a untyped", "errors: errs is NaN", "in_flight: g is NaN", "queue: q is negative"}},
		"no edges":     {"# TYPE h histogram\nh_bucket{le=\"+Inf\"} 3\nh_sum 1\nh_count 3\n# TYPE errs counter\nerrs 1\ng 1\nq 1\n", []string{"latency: h has no buckets", "errors: the first scrape"}},
	} {
		p := make1(t, Options{URL: s.URL, Latency: "h", Errors: "errs", InFlight: "g", Queue: "q"})
		s.text(good)
		probe(t, p)
		s.text(c.body)
		m := probe(t, p)
		if len(m.Problems) != len(c.want) {
			t.Errorf("%s: problems %q, want %q", name, m.Problems, c.want)
			continue
		}
		for i, w := range c.want {
			if !strings.HasPrefix(m.Problems[i], w) {
				t.Errorf("%s: problem %q, want %q", name, m.Problems[i], w)
			}
		}
		if m.Latency != nil || m.Requests.OK {
			t.Errorf("%s: latency or requests are known: %+v", name, m)
		}
	}

	for name, h := range map[string]http.HandlerFunc{
		"500":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		"no text":  func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") },
		"too much": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat("# x\n", maxBody/4+2)) },
		"half": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "99")
			fmt.Fprint(w, "g 1\n")
		},
	} {
		s.set(h)
		if m, err := p.Probe(t.Context()); err == nil {
			t.Errorf("%s: no error but %+v", name, m)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
	s.set(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := p.Probe(ctx); err == nil {
		t.Error("a hung server gave an answer")
	}

	// Another server, which ran before: its past is not of the last minute.
	s.text(fmt.Sprintf(app, 5, 10, 20, 30, 5) + "g 1\nq 2\n")
	if m := probe(t, p); m.Requests.OK || m.Latency != nil || m.Errors.OK {
		t.Errorf("another server: %+v", m)
	}
	s.set(http.NotFoundHandler())
	if _, err := p.Probe(t.Context()); err == nil {
		t.Error("404 gave an answer")
	}
	// Back again within the minute: what happened meanwhile counts.
	s.text(fmt.Sprintf(app, 5, 11, 22, 33, 5) + "g 1\nq 2\n")
	if m := probe(t, p); m.Requests != report.Of(3) || len(m.Problems) != 0 {
		t.Errorf("back again: %+v", m)
	}
	s.Close()
	if _, err := p.Probe(t.Context()); err == nil {
		t.Error("a closed server gave an answer")
	}
}

func TestSlidingMinute(t *testing.T) {
	s := serve(t)
	p := make1(t, Options{URL: s.URL, Latency: "h"})
	at := func(n int) probes.Reading {
		s.text(fmt.Sprintf(app, 1, n, n, n, 0))
		return probe(t, p)
	}
	shift := func(d time.Duration) { // let time pass
		p.at = p.at.Add(-d)
		for i := range p.slots {
			p.slots[i].at = p.slots[i].at.Add(-d)
		}
	}
	at(0)
	at(10)
	shift(40 * time.Second)
	if m := at(15); m.Requests != report.Of(15) {
		t.Errorf("after 40 s: %v, want 15", m.Requests)
	}
	shift(30 * time.Second)
	if m := at(16); m.Requests != report.Of(6) || m.Latency.Count() != 6 {
		t.Errorf("after 70 s: %v, want 6", m.Requests)
	}
	shift(61 * time.Second)
	if m := at(500); m.Requests.OK || m.Latency != nil {
		t.Errorf("over a gap of more than a minute: %+v", m)
	}
	if m := at(501); m.Requests != report.Of(1) {
		t.Errorf("after the gap: %v, want 1", m.Requests)
	}
}

// zero returns a recorded exposition as it was before any request.
func zero(recorded string) string {
	var b strings.Builder
	for line := range strings.Lines(recorded) {
		if i := strings.LastIndex(line, " "); !strings.HasPrefix(line, "#") && !strings.Contains(line, "start_time") && i > 0 {
			line = line[:i] + " 0\n"
		}
		b.WriteString(line)
	}
	return b.String()
}

// Recorded expositions: n8n 2.41.1 main under load and an embeddings server
// with the names of text-embeddings-inference after an overload.
func TestRecordedServers(t *testing.T) {
	for _, c := range []struct {
		file    string
		options Options
		want    probes.Reading
		p95     [2]float64 // the bucket that holds it
	}{
		{"n8n-main.prom", Options{
			Latency:  `n8n_webhook_request_duration_seconds{webhook_path=~"answer|estimate"}`,
			Requests: "n8n_webhook_request_duration_seconds_count",
			Errors:   `n8n_webhook_request_duration_seconds_count{status_code=~"5.."}`,
			Queue:    "n8n_scaling_mode_queue_jobs_waiting", Scope: report.QueueService,
			InFlight: "n8n_scaling_mode_queue_jobs_active",
		}, probes.Reading{Requests: report.Of(108), Errors: report.Of(23), Queue: report.Of(39), QueueScope: report.QueueService, InFlight: report.Of(5)},
			[2]float64{1.5, 10}},
		{"embeddings.prom", Options{
			Latency: "te_request_duration", Errors: `te_request_failure{err="overloaded"}`,
			Requests: "te_request_count", Queue: "te_queue_size", InFlight: "te_inflight_requests",
		}, probes.Reading{Requests: report.Of(1300), Errors: report.Of(194), Queue: report.Of(0), InFlight: report.Of(0)},
			[2]float64{0.568, 0.852}},
	} {
		t.Run(c.file, func(t *testing.T) {
			b, err := os.ReadFile("testdata/" + c.file)
			if err != nil {
				t.Fatal(err)
			}
			s := serve(t)
			c.options.URL = s.URL
			p := make1(t, c.options)
			s.text(zero(string(b)))
			probe(t, p)
			s.text(string(b))
			m := probe(t, p)
			if p95 := m.Latency.Quantile(0.95); !(p95 > c.p95[0] && p95 <= c.p95[1]) {
				t.Errorf("p95 = %v, want in %v", p95, c.p95)
			} else {
				t.Logf("p95 = %.3f s of %v requests", p95, m.Latency.Count())
			}
			m.Latency = nil
			if diff := cmp.Diff(c.want, m); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A quantile inside a bucket stays strictly between its edges, so that "p95
// over 1.5 s" is exact where 1.5 s is an edge.
func TestEdgesStayExact(t *testing.T) {
	m := masses{}
	m.add(nil, buckets{0.003: 0, 0.3: 10, 1.5: 100, 10: 103, math.Inf(1): 105})
	s := m.sketch()
	if s.Count() != 105 {
		t.Errorf("Count = %v", s.Count())
	}
	for i := range 105 {
		q := s.Quantile(float64(i) / 104)
		lo, hi := 1.5, 10.0
		switch {
		case i < 10:
			lo, hi = 0.003, 0.3
		case i < 100:
			lo, hi = 0.3, 1.5
		case i >= 103:
			lo, hi = 19, 21
		}
		if q <= lo || q >= hi {
			t.Errorf("request %d = %v s, want in (%v, %v)", i, q, lo, hi)
		}
	}
	narrow := masses{{1, 1.001}: 5, {0, 0.001}: 1e6}
	if got := narrow.sketch().Count(); got != 1e6+5 {
		t.Errorf("Count = %v", got)
	}
}

func TestParseSelector(t *testing.T) {
	for text, want := range map[string]string{
		`requests_total{code=~"5.."`: "at 27: want , or }",
		`{code="500"}`:               "at 1: want a metric name",
		``:                           "at 1: want a metric name",
		`5xx`:                        "at 1: want a metric name",
		`a b`:                        "at 3: want { or the end",
		`a{b}`:                       "at 4: want =, !=, =~ or !~",
		`a{b=5}`:                     `at 5: want a value in "`,
		`a{b="x}`:                    "at 8: value without an end",
		`a{b="x\`:                    "at 8: value without an end",
		`a{b=~"["}`:                  "at 6: error parsing regexp",
		`a{b="x" c="y"}`:             "at 9: want , or }",
		`a{b="x"}c`:                  "at 9: want the end after }",
		`a{b="x",,}`:                 "at 9: want a label name",
		`a{le:x="1"}`:                "at 5: want =, !=, =~ or !~",
	} {
		_, err := ParseSelector(text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseSelector(%q) = %v, want %q", text, err, want)
		}
	}
	for _, c := range []struct {
		text  string
		count int // of the four series below
	}{
		{`m`, 4},
		{` m { } `, 4},
		{`m{code="500"}`, 1},
		{`m{code!="500"}`, 3},
		{`m{code=~"5.."}`, 2},
		{`m{code=~"5"}`, 0}, // whole values only
		{`m{code!~"5..", path="/a"}`, 1},
		{`m{path=""}`, 1},
		{`m{missing="",code="200"}`, 1},
		{`m{path="say \"hi\"\n"}`, 1},
		{`m{code=~"\d+"}`, 4},
	} {
		sel, err := ParseSelector(c.text)
		if err != nil {
			t.Errorf("ParseSelector(%q): %v", c.text, err)
			continue
		}
		s := serve(t)
		s.text("m{code=\"200\",path=\"/a\"} 1\nm{code=\"404\"} 1\nm{code=\"500\",path=\"/a\"} 1\nm{code=\"503\",path=\"say \\\"hi\\\"\\n\"} 1\n")
		all, err := get(t.Context(), http.DefaultClient, s.URL)
		if err != nil {
			t.Fatal(err)
		}
		got, err := all.series(sel)
		if err != nil || len(got) != c.count {
			t.Errorf("%s picks %d series (%v), want %d", c.text, len(got), err, c.count)
		}
	}
}

func FuzzParseSelector(f *testing.F) {
	f.Add(`a{b=~"5..",c!="\n"}`)
	f.Fuzz(func(t *testing.T, text string) {
		if s, err := ParseSelector(text); err == nil && s.Name == "" {
			t.Error("a selector without a name")
		}
	})
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Options{Latency: "h"}); err == nil {
		t.Error("no url was accepted")
	}
	_, err := New(Options{URL: "http://127.0.0.1:1", Latency: "h{", Queue: "{}"})
	if err == nil || !strings.Contains(err.Error(), "latency: ") || !strings.Contains(err.Error(), "queue: ") {
		t.Errorf("New reported %v, want both bad selectors", err)
	}
}
