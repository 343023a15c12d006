package embeddings

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"flymesh/probes"
	"flymesh/probes/report"
)

// speaker answers as one of the servers that cannot run here, from their
// documented answers.
type speaker struct {
	routes map[string]func(body map[string]any) (int, string)

	mu    sync.Mutex // guards asked
	asked map[string]int
}

func (s *speaker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	route := r.Method + " " + r.URL.Path
	s.mu.Lock()
	s.asked[route]++
	s.mu.Unlock()
	b, _ := io.ReadAll(r.Body)
	var body map[string]any
	_ = json.Unmarshal(b, &body)
	f := s.routes[route]
	if f == nil {
		http.NotFound(w, r)
		return
	}
	status, answer := f(body)
	w.WriteHeader(status)
	fmt.Fprint(w, answer)
}

func speak(t *testing.T, routes map[string]func(map[string]any) (int, string)) (*speaker, string) {
	s := &speaker{routes: routes, asked: map[string]int{}}
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	return s, h.URL
}

func always(status int, text string) func(map[string]any) (int, string) {
	return func(map[string]any) (int, string) { return status, text }
}

func TestInfinity(t *testing.T) {
	requests := 10
	_, url := speak(t, map[string]func(map[string]any) (int, string){
		"GET /models": always(200, `{"data":[{"id":"other","stats":{"queue_absolute":900}},{"id":"bge","stats":{"queue_fraction":0.0004,"queue_absolute":13,"results_pending":21,"batch_size":32}}]}`),
		"POST /embeddings": func(b map[string]any) (int, string) {
			if b["model"] != "bge" || b["input"] == nil {
				return 422, `{"detail":"no"}`
			}
			return 200, `{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.25,-0.5,0.125]}],"usage":{"prompt_tokens":5}}`
		},
		"GET /metrics": func(map[string]any) (int, string) {
			text := fmt.Sprintf(`# TYPE http_requests_total counter
http_requests_total{handler="/embeddings",method="POST",status="2xx"} %d
http_requests_total{handler="/embeddings",method="POST",status="5xx"} %d
http_requests_total{handler="/models",method="GET",status="2xx"} 99
# TYPE http_request_duration_seconds histogram
http_request_duration_seconds_bucket{handler="/embeddings",le="0.1",method="POST"} %d
http_request_duration_seconds_bucket{handler="/embeddings",le="0.5",method="POST"} %d
http_request_duration_seconds_bucket{handler="/embeddings",le="+Inf",method="POST"} %d
http_request_duration_seconds_count{handler="/embeddings",method="POST"} %d
http_request_duration_seconds_sum{handler="/embeddings",method="POST"} 1
`, requests, requests/10, requests/2, requests, requests, requests)
			requests += 50
			return 200, text
		},
	})
	e := make1(t, Options{URL: url, Dialect: "infinity", Model: "bge", Dimension: 3})
	probe(t, e)
	m := probe(t, e)
	if !*m.Ready || m.Queue != report.Of(13) || m.InFlight != report.Of(21) || m.Requests != report.Of(55) || m.Errors != report.Of(5) || len(m.Problems) != 0 {
		t.Errorf("%+v", m)
	}
	if p := m.Latency.Quantile(0.95); p < 0.1 || p > 0.5 {
		t.Errorf("p95 = %v", p)
	}
	gone := make1(t, Options{URL: url, Dialect: "infinity", Model: "e5"})
	if m := probe(t, gone); *m.Ready || m.Queue.OK || !strings.Contains(strings.Join(m.Problems, ";"), "does not list") {
		t.Errorf("another model: %+v", m)
	}
}

// Ollama is alive without a model; one whose keep_alive ended is gone.
func TestOllama(t *testing.T) {
	loaded, busy := false, false
	s, url := speak(t, map[string]func(map[string]any) (int, string){
		"GET /api/ps": func(map[string]any) (int, string) {
			if !loaded {
				return 200, `{"models":[]}`
			}
			return 200, `{"models":[{"name":"all-minilm:latest","model":"all-minilm:latest","size":46000000,"expires_at":"2318-01-01T00:00:00Z"}]}`
		},
		"POST /api/embed": func(b map[string]any) (int, string) {
			if b["keep_alive"] != -1.0 {
				return 400, `{"error":"keep_alive"}`
			}
			if busy {
				return 503, `{"error":"server busy, please try again.  maximum pending requests exceeded"}`
			}
			loaded = true
			return 200, `{"model":"all-minilm","embeddings":[[0.1,0.2]],"total_duration":14143917,"load_duration":1019500}`
		},
	})
	e := make1(t, Options{URL: url, Dialect: "ollama", Model: "all-minilm"})
	if m := probe(t, e); *m.Ready || *m.Warm || !strings.Contains(m.Reason, "not listed") {
		t.Errorf("before it is loaded: %+v", m)
	}
	if s.asked["POST /api/embed"] != 1 {
		t.Error("the probe did not make it load")
	}
	m := probe(t, e)
	if !*m.Ready || !*m.Warm || number(m, "model_bytes") != 46e6 || m.Queue.OK || m.Latency != nil {
		t.Errorf("loaded: %+v", m)
	}
	busy = true
	if m = probe(t, e); !*m.Ready || !*m.Warm || number(m, "overloaded") != 1 {
		t.Errorf("busy: %+v", m)
	}
	if m := probe(t, make1(t, Options{URL: url, Dialect: "ollama", Model: "all-minilm"})); *m.Ready || *m.Warm {
		t.Errorf("busy before any embed answered: %+v", m)
	}
	loaded = false
	if m = probe(t, e); *m.Ready || *m.Warm {
		t.Errorf("the model expired: %+v", m)
	}
}

// An embed that is not one vector of finite numbers loads nothing.
func TestBadVectors(t *testing.T) {
	for answer, want := range map[string]string{
		`[[0.1,NaN]]`:     "read embed",
		`[[0.1,null]]`:    "", // JSON null is 0
		`[[0,0,0]]`:       "sums up to 0",
		`[[]]`:            "gave 1 vectors",
		`[]`:              "gave 0 vectors",
		`{"error":"x"}`:   "read embed",
		`[[1e999]]`:       "read embed",
		`[[0.1],[0.2]]`:   "gave 2 vectors",
		`<html>ok</html>`: "read embed",
	} {
		_, url := speak(t, map[string]func(map[string]any) (int, string){"POST /embed": always(200, answer)})
		m := probe(t, make1(t, Options{URL: url}))
		if *m.Ready != (want == "") || want != "" && !strings.Contains(m.Reason, want) {
			t.Errorf("%s: ready %v, %q", answer, *m.Ready, m.Reason)
		}
	}
}

// A changed dimension is a changed model, even where none was configured.
func TestDimensionStays(t *testing.T) {
	answer := `[[1,2,3]]`
	_, url := speak(t, map[string]func(map[string]any) (int, string){"POST /embed": func(map[string]any) (int, string) { return 200, answer }})
	e := make1(t, Options{URL: url})
	if m := probe(t, e); !*m.Ready {
		t.Fatalf("%+v", m)
	}
	answer = `[[1,2]]`
	if m := probe(t, e); *m.Ready || *m.Warm {
		t.Errorf("%+v", m)
	}
}

// A loaded server that does not answer in time stays loaded only while it
// has work to show for it.
func TestSlowIsNotGone(t *testing.T) {
	hang := make(chan struct{})
	var queue atomic.Int64
	var slow atomic.Bool
	_, url := speak(t, map[string]func(map[string]any) (int, string){
		"GET /metrics": func(map[string]any) (int, string) {
			return 200, fmt.Sprintf("# TYPE te_queue_size gauge\nte_queue_size %d\n", queue.Load())
		},
		"POST /embed": func(map[string]any) (int, string) {
			if slow.Load() {
				<-hang
			}
			return 200, `[[1,2]]`
		},
	})
	defer close(hang)
	e := make1(t, Options{URL: url})
	e.client.Timeout = 0
	if m := probe(t, e); !*m.Ready {
		t.Fatalf("%+v", m)
	}
	short := func() probes.Reading {
		ctx, cancel := contextFor(t, 150*time.Millisecond)
		defer cancel()
		m, err := e.Probe(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	slow.Store(true)
	queue.Store(40)
	if m := short(); !*m.Ready || !*m.Warm || m.Queue != report.Of(40) {
		t.Errorf("busy: %+v", m)
	}
	queue.Store(0)
	if m := short(); *m.Ready || *m.Warm {
		t.Errorf("hung: %+v", m)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, o := range []Options{{}, {URL: "http://127.0.0.1:1/path"}, {URL: "http://a", Dialect: "bert"}, {URL: "http://a", Dialect: "openai"},
		{URL: "ftp://a"}, {URL: "http://a", Dimension: -1}} {
		if _, err := New(o); err == nil {
			t.Errorf("New(%+v) did not fail", o)
		}
	}
	for _, d := range Dialects {
		e := make1(t, Options{URL: "http://127.0.0.1:1", Dialect: d, Model: "m", Elsewhere: true})
		if f := e.Fields(); f&(probes.Latency|probes.Requests|probes.Errors|probes.InFlight) != 0 {
			t.Errorf("%s: fields %b with another source", d, f)
		}
	}
}
