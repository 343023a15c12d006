package demoapp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sys/unix"
)

// open serves the kind on a free port until the test ends and returns its URL.
func open(t *testing.T, o Options) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var a app
	switch o.Kind {
	case "n8n":
		a = newN8N(o)
	case "embeddings":
		a = newEmbeddings(o)
	case "web":
		a = newWeb()
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, l, a, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return "http://" + l.Addr().String()
}

func do(t *testing.T, method, url, body string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// within polls until ok holds, for at most 5 seconds.
func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 5s: %s", what)
		}
	}
}

func TestWorkIsCPUTime(t *testing.T) {
	p := newPool(Options{Workers: 1, QueueLimit: 10})
	stop := p.start()
	used := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := used()
	for range 10 {
		if _, err := p.do(t.Context(), "x", 1, 10*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if got := used() - before; got < 95*time.Millisecond || got > 200*time.Millisecond {
		t.Errorf("10 requests of 10ms used %v of CPU time", got)
	}
}

func TestOwnLimitHoldsCapacity(t *testing.T) {
	p := newPool(Options{Workers: 2, QueueLimit: 100, Cores: 0.2})
	stop := p.start()
	defer stop()
	began := time.Now()
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, err := p.do(t.Context(), "x", 1, 10*time.Millisecond); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// 160 ms of work, 20 ms of it at once, at nine tenths of a fifth of a core: 780 ms.
	if got := time.Since(began); got < 700*time.Millisecond {
		t.Errorf("took %v, the limit of a fifth of a core allows no less than 780ms", got)
	}
}

func TestN8NQueueIsReal(t *testing.T) {
	url := open(t, Options{Kind: "n8n", Work: 20 * time.Millisecond, Workers: 1, QueueLimit: 100})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if code, body := do(t, "POST", url+"/webhook/answer", "q"); code != 200 || !strings.Contains(body, "answer") {
				t.Errorf("got %d %s", code, body)
			}
		})
	}
	within(t, "jobs wait", func() bool {
		_, m := do(t, "GET", url+"/metrics", "")
		return strings.Contains(m, "n8n_scaling_mode_queue_jobs_waiting 1") && strings.Contains(m, "n8n_scaling_mode_queue_jobs_active 1")
	})
	wg.Wait()
	_, m := do(t, "GET", url+"/metrics", "")
	for _, want := range []string{
		"n8n_scaling_mode_queue_jobs_waiting 0", "n8n_scaling_mode_queue_jobs_active 0",
		`n8n_webhook_request_duration_seconds_count{method="POST",status_code="200",webhook_path="answer"} 20`,
	} {
		if !strings.Contains(m, want) {
			t.Errorf("metrics lack %q:\n%s", want, m)
		}
	}
}

func TestN8NCountsClientsThatGiveUp(t *testing.T) {
	url := open(t, Options{Kind: "n8n", Work: 100 * time.Millisecond, Workers: 1, QueueLimit: 100})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "POST", url+"/webhook/estimate", nil)
	if err != nil {
		t.Fatal(err)
	}
	if res, err := http.DefaultClient.Do(req); err == nil {
		res.Body.Close()
		t.Fatal("answered in time")
	}
	within(t, "the request is counted as an error", func() bool {
		_, m := do(t, "GET", url+"/metrics", "")
		return strings.Contains(m, `_count{method="POST",status_code="504",webhook_path="estimate"} 1`)
	})
}

func TestEmbeddings(t *testing.T) {
	url := open(t, Options{Kind: "embeddings", Work: 20 * time.Millisecond, Workers: 1, QueueLimit: 4,
		Dimensions: 16, LoadDelay: 200 * time.Millisecond})
	if code, _ := do(t, "GET", url+"/health", ""); code != 503 {
		t.Errorf("health before the model is loaded: %d", code)
	}
	if code, _ := do(t, "POST", url+"/embed", `{"inputs":"a"}`); code != 503 {
		t.Errorf("embed before the model is loaded: %d", code)
	}
	within(t, "model loaded", func() bool { code, _ := do(t, "GET", url+"/health", ""); return code == 200 })

	code, body := do(t, "POST", url+"/embed", `{"inputs":["a","b"]}`)
	var vectors [][]float64
	if err := json.Unmarshal([]byte(body), &vectors); err != nil || code != 200 || len(vectors) != 2 {
		t.Fatalf("got %d %s", code, body)
	}
	for _, v := range vectors {
		square := 0.0
		for _, x := range v {
			square += x * x
		}
		if len(v) != 16 || math.Abs(square-1) > 1e-3 {
			t.Errorf("vector of %d numbers and length² %v", len(v), square)
		}
	}
	if code, _ := do(t, "POST", url+"/embed", `{"inputs":["1","2","3","4","5"]}`); code != 429 {
		t.Errorf("five texts in a queue of four: %d", code)
	}
	if code, _ := do(t, "POST", url+"/embed", `{"inputs":3}`); code != 422 {
		t.Errorf("bad inputs: %d", code)
	}
	_, m := do(t, "GET", url+"/metrics", "")
	for _, want := range []string{`te_request_count{method="batch"} 2`, `te_request_success{method="batch"} 1`,
		`te_request_failure{err="overloaded"} 1`, "te_queue_size 0", "te_request_duration_count 2"} {
		if !strings.Contains(m, want) {
			t.Errorf("metrics lack %q", want)
		}
	}
}

func TestDrainFinishesRequests(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Kind: "n8n", Work: 150 * time.Millisecond, Workers: 1, QueueLimit: 9}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	a := newN8N(o)
	go func() { done <- serve(ctx, l, a, slog.New(slog.DiscardHandler)) }()
	code := make(chan int)
	go func() {
		c, _ := do(t, "POST", "http://"+l.Addr().String()+"/webhook/answer", "q")
		code <- c
	}()
	within(t, "the request is under way", func() bool { return a.pool.active.Load() == 1 })
	cancel()
	if got := <-code; got != 200 {
		t.Errorf("request under way at the end got %d", got)
	}
	if err := <-done; err != nil {
		t.Errorf("serve: %v", err)
	}
}

func TestWebHasMarkerEverywhere(t *testing.T) {
	url := open(t, Options{Kind: "web"})
	if code, body := do(t, "GET", url+"/any/path", ""); code != 200 || !strings.Contains(body, Marker) {
		t.Errorf("got %d %s", code, body)
	}
}

func TestRESPAnswersRealClient(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- newRESP().serve(ctx, l) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	c := redis.NewClient(&redis.Options{Addr: l.Addr().String(), MaxRetries: -1, DialTimeout: 5 * time.Second})
	defer c.Close()
	if err := c.Ping(ctx).Err(); err != nil {
		t.Fatal(err)
	}
	if err := c.Set(ctx, "k", "v", time.Minute).Err(); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Get(ctx, "k").Result(); err != nil || got != "v" {
		t.Errorf("get: %q %v", got, err)
	}
	if err := c.Get(ctx, "none").Err(); err != redis.Nil {
		t.Errorf("get of nothing: %v", err)
	}
	info, err := c.Info(ctx, "server", "cpu", "memory").Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"run_id:", "used_cpu_user:", "used_memory:", "server_time_usec:", "role:master", "maxmemory:0"} {
		if !strings.Contains(info, want) {
			t.Errorf("INFO lacks %s", want)
		}
	}
	if err := c.Do(ctx, "FLY").Err(); err == nil || !strings.Contains(err.Error(), "unknown command") {
		t.Errorf("unknown command: %v", err)
	}
}

func TestReadCommandRefusesNonsense(t *testing.T) {
	for _, in := range []string{"*x\r\n", "*1\r\n$-5\r\n", "*1\r\n$99999999\r\n", "*99999999\r\n", "*1\r\n$3\r\nab"} {
		if _, err := readCommand(bufio.NewReader(bytes.NewBufferString(in))); err == nil {
			t.Errorf("%q was accepted", in)
		}
	}
	got, err := readCommand(bufio.NewReader(strings.NewReader("*2\r\n$3\r\nGET\r\n$1\r\nk\r\n")))
	if err != nil || len(got) != 2 || got[1] != "k" {
		t.Errorf("got %q %v", got, err)
	}
}
