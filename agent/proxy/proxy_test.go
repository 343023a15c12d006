package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"flymesh/probes"
	"flymesh/probes/report"
)

// open runs a proxy in front of the handler until the test ends.
func open(t *testing.T, app http.Handler) (*Proxy, string) {
	t.Helper()
	h := httptest.NewServer(app)
	t.Cleanup(h.Close)
	return openTo(t, h.URL)
}

func openTo(t *testing.T, target string) (*Proxy, string) {
	t.Helper()
	p, err := Open(Options{Listen: "127.0.0.1:0", Target: target, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return p, "http://" + p.Addr()
}

func reading(t *testing.T, p *Proxy) probes.Reading {
	t.Helper()
	m, err := p.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// await polls until the reading is as wanted.
func await(t *testing.T, p *Proxy, what string, ok func(probes.Reading) bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(reading(t, p)); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 5 s: %s; last %+v", what, reading(t, p))
		}
	}
}

// What the proxy says is what the clients saw, given-up requests included,
// which the app counts as fine.
func TestMeasuresWhatClientsSee(t *testing.T) {
	p, url := open(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var ms, status int
		_, _ = fmt.Sscanf(r.URL.RawQuery, "ms=%d&status=%d", &ms, &status)
		time.Sleep(time.Duration(ms) * time.Millisecond)
		w.WriteHeader(status)
		_, _ = io.Copy(w, r.Body)
	}))
	var (
		mu      sync.Mutex
		seconds []float64 // as the clients saw them
		slept   []float64 // of these, what the app took for itself
		failed  int
		broken  int
	)
	rng := rand.New(rand.NewPCG(1, 2))
	var wg sync.WaitGroup
	for range 20 {
		type call struct{ ms, status int }
		var calls []call
		for range 20 {
			c := call{1 + int(3*rng.ExpFloat64()), 200}
			switch rng.IntN(20) {
			case 0:
				c.status = 500
			case 1:
				c.status = 404 // not the app's failure
			case 2:
				c.ms = 400 // longer than the client waits
			}
			calls = append(calls, c)
		}
		client := &http.Client{Timeout: 150 * time.Millisecond, Transport: &http.Transport{}}
		wg.Go(func() {
			for _, c := range calls {
				begin := time.Now()
				resp, err := client.Post(fmt.Sprintf("%s/?ms=%d&status=%d", url, c.ms, c.status), "text/plain", strings.NewReader("body"))
				took := time.Since(begin).Seconds()
				mu.Lock()
				seconds = append(seconds, took)
				slept = append(slept, min(float64(c.ms)/1000, took))
				if err != nil || c.status >= 500 {
					failed++
				}
				if err != nil {
					broken++
				}
				mu.Unlock()
				if err == nil {
					if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "body" || resp.StatusCode != c.status {
						t.Errorf("%+v: %q, %v, %s", c, b, err, resp.Status)
					}
					resp.Body.Close()
				}
			}
		})
	}
	await(t, p, "requests in flight", func(m probes.Reading) bool { return m.InFlight.X > 0 })
	wg.Wait()
	await(t, p, "none in flight", func(m probes.Reading) bool { return m.InFlight == report.Of(0) })
	m := reading(t, p)
	slices.Sort(seconds)
	slices.Sort(slept)
	least := slept[int(0.9*float64(len(slept)-1))]
	want := seconds[int(0.9*float64(len(seconds)-1))]
	got := m.Latency.Quantile(0.9)
	t.Logf("requests %.0f, clients sent %d; errors %.0f, clients saw %d (%d given up); p90 %.1f ms, clients' %.1f ms",
		m.Requests.X, len(seconds), m.Errors.X, failed, broken, 1000*got, 1000*want)
	if m.Requests != report.Of(float64(len(seconds))) || m.Errors != report.Of(float64(failed)) || broken == 0 || broken == failed {
		t.Errorf("%+v", m)
	}
	// A request takes the proxy longer than the app and less long than the
	// client; on a busy machine there is room between the two.
	if got < 0.97*least || got > 1.03*want || m.Latency.Quantile(1) < 0.1 {
		t.Errorf("p90 %v, the app took %v, clients saw %v; slowest %v", got, least, want, m.Latency.Quantile(1))
	}
}

// An app that is down, and one that dies in the middle of an answer, are errors.
func TestBrokenApps(t *testing.T) {
	p, url := openTo(t, "http://127.0.0.1:1")
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if m := reading(t, p); resp.StatusCode != http.StatusBadGateway || m.Errors != report.Of(1) || m.Requests != report.Of(1) {
		t.Errorf("down: %s, %+v", resp.Status, m)
	}
	p, url = open(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		fmt.Fprint(w, "half")
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	if resp, err = http.Get(url); err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		t.Error("half an answer was passed on as a whole one")
	}
	await(t, p, "the half answer is an error", func(m probes.Reading) bool { return m.Errors == report.Of(1) })
}

// A websocket passes both ways, is no request in flight, and its length is no
// duration.
func TestUpgrade(t *testing.T) {
	p, url := open(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" {
			t.Error("the upgrade header is gone")
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprint(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_ = rw.Flush()
		for {
			line, err := rw.ReadString('\n')
			if err != nil {
				return
			}
			fmt.Fprint(rw, "echo ", line)
			_ = rw.Flush()
		}
	}))
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", resp, err)
	}
	for i := range 3 {
		fmt.Fprintf(conn, "hello %d\n", i)
		if line, err := r.ReadString('\n'); err != nil || line != fmt.Sprintf("echo hello %d\n", i) {
			t.Fatalf("%q, %v", line, err)
		}
	}
	time.Sleep(250 * time.Millisecond)
	if m := reading(t, p); m.InFlight != report.Of(0) || m.Facts[0].Value != report.Of(1) {
		t.Errorf("open: %+v", m)
	}
	p.Drain(true) // what is open stays open
	fmt.Fprint(conn, "still\n")
	if line, err := r.ReadString('\n'); err != nil || line != "echo still\n" {
		t.Errorf("in a drain: %q, %v", line, err)
	}
	conn.Close()
	await(t, p, "closed", func(m probes.Reading) bool { return m.Facts[0].Value == report.Of(0) })
	m := reading(t, p)
	if m.Requests != report.Of(1) || m.Errors != report.Of(0) || m.InFlight != report.Of(0) || m.Latency.Quantile(1) > 0.2 {
		t.Errorf("closed: %+v, slowest %v", m, m.Latency.Quantile(1))
	}
}

// Events arrive as they are sent; the client's end of a stream is no failure.
func TestStream(t *testing.T) {
	p, url := open(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := 0; ; i++ {
			fmt.Fprintf(w, "data: %d\n\n", i)
			http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}))
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	begin := time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	r := bufio.NewReader(resp.Body)
	for i := range 6 {
		line, err := r.ReadString('\n')
		if err != nil || line != fmt.Sprintf("data: %d\n", i) {
			t.Fatalf("%q, %v", line, err)
		}
		_, _ = r.ReadString('\n')
	}
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("six events took %v: they are held back", d)
	}
	cancel()
	await(t, p, "the stream is over", func(m probes.Reading) bool { return m.InFlight == report.Of(0) && m.Requests == report.Of(1) })
	if m := reading(t, p); m.Errors != report.Of(0) || m.Latency.Quantile(1) > 0.25 {
		t.Errorf("%+v, slowest %v", m, m.Latency.Quantile(1))
	}
}

// A drain refuses what is new, with the word when to come back, and finishes
// every request in flight.
func TestDrain(t *testing.T) {
	release := make(chan struct{})
	p, url := open(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		<-release
		fmt.Fprint(w, "done")
	}))
	const n = 10
	results := make(chan error, n)
	for range n {
		go func() {
			resp, err := http.Get(url)
			if err == nil {
				defer resp.Body.Close()
				b, e := io.ReadAll(resp.Body)
				if err = e; string(b) != "done" {
					err = errors.Join(err, fmt.Errorf("got %q", b))
				}
			}
			results <- err
		}()
	}
	await(t, p, "all in flight", func(m probes.Reading) bool { return m.InFlight == report.Of(n) })
	p.Drain(true)
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("a new request: %s, Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
	}
	close(release)
	for range n {
		if err := <-results; err != nil {
			t.Errorf("in flight: %v", err)
		}
	}
	await(t, p, "none in flight", func(m probes.Reading) bool { return m.InFlight == report.Of(0) })
	if m := reading(t, p); m.Requests != report.Of(n) || m.Errors != report.Of(0) {
		t.Errorf("refusals of a drain are no failures of the app: %+v", m)
	}
	p.Drain(false)
	if resp, err = http.Get(url); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("after the drain was taken back: %v, %v", resp, err)
	}
	resp.Body.Close()
}

// The app sees who asked.
func TestHeaders(t *testing.T) {
	_, url := open(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Host, "|", r.Header.Get("X-Forwarded-For"), "|", r.Header.Get("X-Forwarded-Proto"), "|", r.Header.Get("Fly-Client-IP"), "|", r.RequestURI)
	}))
	req, _ := http.NewRequest(http.MethodGet, url+"/a%2Fb?q=1;2", nil)
	req.Host = "acme.example"
	req.Header.Set("X-Forwarded-For", "203.0.113.9")
	req.Header.Set("X-Forwarded-Proto", "https")
	req.Header.Set("Fly-Client-IP", "203.0.113.9")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	if want := "acme.example|203.0.113.9, 127.0.0.1|https|203.0.113.9|/a%2Fb?q=1;2"; string(b) != want {
		t.Errorf("the app saw %s\nwant         %s", b, want)
	}
}

func TestWindowSlides(t *testing.T) {
	y := newTally(time.Minute)
	begin := time.Unix(1_800_000_000, 0)
	for i := range 180 {
		y.add(begin.Add(time.Duration(i)*time.Second), 0, i%10 == 0)
	}
	requests, failures, latency, err := y.read(begin.Add(179 * time.Second))
	if err != nil || requests < 55 || requests > 60 || failures < 5 || failures > 6 || latency.Count() != requests {
		t.Errorf("%v requests, %v failures, %v in the sketch, %v", requests, failures, latency.Count(), err)
	}
	if requests, _, _, _ := y.read(begin.Add(10 * time.Minute)); requests != 0 {
		t.Errorf("%v requests ten minutes later", requests)
	}
}

func TestOpenRefuses(t *testing.T) {
	p, _ := openTo(t, "http://127.0.0.1:1")
	if _, err := Open(Options{Listen: p.Addr(), Target: "http://127.0.0.1:1", Logger: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("a taken port was opened")
	}
}
