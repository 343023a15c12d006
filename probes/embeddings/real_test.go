package embeddings

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"flymesh/probes"
)

// server is a real embeddings server of one test: ONNX Runtime with a model of
// MiniLM's shape.
type server struct {
	url string
	cmd *exec.Cmd
}

var modelOnce sync.Once

// model generates the model once; it ends with the test binary's directory.
func model(t *testing.T) string {
	t.Helper()
	for _, need := range []string{"node", "testdata/node_modules/onnxruntime-node/package.json"} {
		_, err := exec.LookPath(need)
		if strings.Contains(need, "/") {
			_, err = os.Stat(need)
		}
		if err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is missing: make tools installs it", need)
			}
			t.Skipf("%s is missing: make tools installs it", need)
		}
	}
	path := filepath.Join(os.TempDir(), fmt.Sprintf("flymesh-model-%d.onnx", os.Getpid()))
	modelOnce.Do(func() {
		if out, err := exec.Command("node", "testdata/model.mjs", path, "3").CombinedOutput(); err != nil {
			t.Fatalf("generate model: %v\n%s", err, out)
		}
	})
	return path
}

func TestMain(m *testing.M) {
	code := m.Run()
	_ = os.Remove(filepath.Join(os.TempDir(), fmt.Sprintf("flymesh-model-%d.onnx", os.Getpid())))
	os.Exit(code)
}

func start(t *testing.T, env ...string) *server {
	t.Helper()
	file := model(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(addr)
	s := &server{url: "http://" + addr, cmd: exec.Command("node", "testdata/server.mjs", file, port)}
	s.cmd.Env = append(os.Environ(), env...)
	var out bytes.Buffer
	s.cmd.Stdout, s.cmd.Stderr = &out, &out
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		if t.Failed() {
			t.Logf("server said: %s", &out)
		}
	})
	return s
}

func probe(t *testing.T, e *Embeddings) probes.Reading {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	m, err := e.Probe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func make1(t *testing.T, o Options) *Embeddings {
	t.Helper()
	e, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func contextFor(t *testing.T, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), d)
}

func number(m probes.Reading, name string) float64 {
	for _, f := range m.Facts {
		if f.Name == name {
			return f.Value.X
		}
	}
	return -1
}

// ready polls until the model is loaded; no reading before may say so.
func (s *server) ready(t *testing.T, e *Embeddings) (reasons []string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		m := probe(t, e)
		if *m.Ready {
			return slices.Compact(reasons)
		}
		if *m.Warm || time.Now().After(deadline) {
			t.Fatalf("warm %v: %+v", *m.Warm, m)
		}
		reasons = append(reasons, m.Reason)
	}
}

// result is what the load generator itself saw.
type result struct {
	mu      sync.Mutex
	seconds []float64
	status  map[int]int
	broken  int
	sent    atomic.Int32 // requests that were written to the end
}

// embed sends one text of some 40 words.
func (r *result) embed(url string) {
	body := `{"inputs":"` + strings.Repeat("the tall tower of the old town ", 6) + strconv.Itoa(time.Now().Nanosecond()) + `"}`
	begin := time.Now()
	trace := &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { r.sent.Add(1) }}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(context.Background(), trace), http.MethodPost, url+"/embed", strings.NewReader(body))
	if err != nil {
		panic(err) // the URL is a listener's
	}
	resp, err := http.DefaultClient.Do(req)
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.broken++
		return
	}
	r.status[resp.StatusCode]++
	if resp.StatusCode == http.StatusOK {
		r.seconds = append(r.seconds, time.Since(begin).Seconds())
	}
}

// load runs clients that ask one after the other for the time.
func load(url string, clients int, d time.Duration, during func()) *result {
	r := &result{status: map[int]int{}}
	end := time.Now().Add(d)
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for time.Now().Before(end) {
				r.embed(url)
			}
		})
	}
	if during != nil {
		during()
	}
	wg.Wait()
	slices.Sort(r.seconds)
	return r
}

func (r *result) p95() float64 {
	if len(r.seconds) == 0 {
		return 0
	}
	return r.seconds[len(r.seconds)*95/100]
}

// tally is the server's own count of embeds by status.
func (s *server) tally(t *testing.T) map[int]int {
	t.Helper()
	resp, err := http.Get(s.url + "/count")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	n := map[int]int{}
	if err := json.NewDecoder(resp.Body).Decode(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// From the first moment through load to the drain.
func TestRealServerThroughItsLife(t *testing.T) {
	s := start(t, "LOAD_DELAY_MS=400", "MAX_CONCURRENT=64")
	e := make1(t, Options{URL: s.url, Dimension: 384})
	reasons := s.ready(t, e)
	t.Logf("not loaded: %q", reasons)
	if len(reasons) == 0 || !strings.Contains(reasons[len(reasons)-1], "model is loading") {
		t.Errorf("reasons %q", reasons)
	}
	if m := probe(t, e); number(m, "dimension") != 384 || !*m.Warm {
		t.Errorf("loaded: %+v", m)
	}

	before := s.tally(t)
	var peak probes.Reading
	r := load(s.url, 24, 1500*time.Millisecond, func() {
		for range 10 {
			if m := probe(t, e); m.Queue.X > peak.Queue.X {
				peak = m
			} else if !*m.Ready {
				t.Errorf("not ready under load: %s", m.Reason)
			}
		}
	})
	m := probe(t, e)
	seen := s.tally(t)[200] - before[200]
	t.Logf("load: clients saw %d answers, p95 %.3f s; probe: %.0f requests, %.0f errors, p95 %.3f s (server side); most waiting %.0f, in flight then %.0f",
		r.status[200], r.p95(), m.Requests.X, m.Errors.X, m.Latency.Quantile(0.95), peak.Queue.X, peak.InFlight.X)
	// The window also holds the probe's own embeds since the first scrape.
	if got := int(m.Requests.X); got < r.status[200] || got > seen+before[200]+2 {
		t.Errorf("%d requests; the clients sent %d, the server counts %d", got, r.status[200], seen)
	}
	if peak.Queue.X < 1 || peak.InFlight.X < peak.Queue.X || m.Errors.X != 0 || len(m.Problems) != 0 {
		t.Errorf("peak %+v, end %+v", peak, m)
	}
	// The server's clock starts when it has read the request: it flatters.
	if p := m.Latency.Quantile(0.95); p > r.p95()*1.25 || p < 0.01 {
		t.Errorf("p95 %.3f, the clients saw %.3f", p, r.p95())
	}

	// Drain: what is in flight is answered, nothing new, and it is told.
	last, n := &result{status: map[int]int{}}, s.tally(t)
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() { last.embed(s.url) })
	}
	for deadline := time.Now().Add(5 * time.Second); last.sent.Load() < 40; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the requests are not sent")
		}
	}
	for deadline := time.Now().Add(5 * time.Second); s.tally(t)[200] == n[200] && time.Now().Before(deadline); {
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	m = probe(t, e)
	wg.Wait()
	t.Logf("drain: %v answered, %d broken; probe: %s", last.status, last.broken, m.Reason)
	if *m.Ready || *m.Warm || last.status[200]+last.status[503] != 40 || last.broken != 0 || last.status[200] == 0 {
		t.Errorf("ready %v, warm %v, statuses %v, %d broken", *m.Ready, *m.Warm, last.status, last.broken)
	}
}

// A refusal counts as an error and does not unload the model.
func TestRealServerOverloaded(t *testing.T) {
	s := start(t, "MAX_CONCURRENT=6", "EARLY=0")
	e := make1(t, Options{URL: s.url})
	reasons := s.ready(t, e)
	if len(reasons) == 0 || !strings.Contains(reasons[0], "refused") {
		t.Errorf("before it listens: %q", reasons)
	}
	refusedProbe := 0
	r := load(s.url, 20, time.Second, func() {
		for range 12 {
			m := probe(t, e)
			if number(m, "overloaded") == 1 {
				refusedProbe++
			}
			if !*m.Ready || !*m.Warm {
				t.Errorf("overload took the machine out: %+v", m)
			}
		}
	})
	m := probe(t, e)
	n := s.tally(t)
	t.Logf("overload: clients saw %v; server counts %v; probe: %.0f errors of %.0f requests, %d of its own 12 embeds refused", r.status, n, m.Errors.X, m.Requests.X, refusedProbe)
	if r.status[429] == 0 || int(m.Errors.X) != n[429] || n[429] != r.status[429]+refusedProbe {
		t.Errorf("%v errors, the server refused %d, the clients saw %d", m.Errors, n[429], r.status[429])
	}
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = s.cmd.Wait()
	m = probe(t, e)
	if *m.Ready || *m.Warm || m.Queue.OK || m.Requests.OK || len(m.Problems) == 0 {
		t.Errorf("a dead server: %+v", m)
	}
}

// A server whose vectors have another length is another model.
func TestRealServerWithAnotherModel(t *testing.T) {
	s := start(t)
	right := make1(t, Options{URL: s.url})
	s.ready(t, right)
	m := probe(t, make1(t, Options{URL: s.url, Dimension: 768}))
	if *m.Ready || *m.Warm || !strings.Contains(m.Reason, "384 dimensions, want 768") {
		t.Errorf("another dimension: %+v", m)
	}
	m = probe(t, make1(t, Options{URL: s.url, Dialect: "openai", Model: "minilm", Dimension: 384}))
	if !*m.Ready || !*m.Warm {
		t.Errorf("openai dialect: %+v", m)
	}
}
