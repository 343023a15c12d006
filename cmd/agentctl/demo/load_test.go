package demo

import (
	"context"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"
)

// run sends load to h for a while and returns its figures.
func run(t *testing.T, h http.HandlerFunc, o LoadOptions, rate float64, d time.Duration) Figures {
	t.Helper()
	srv := httptest.NewServer(h)
	defer srv.Close()
	o.URL, o.Method = srv.URL, "POST"
	l := NewLoad(o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	from := time.Now()
	l.SetRate(rate)
	time.Sleep(d) // the length of the measurement
	l.SetRate(0)
	for end := time.Now().Add(5 * time.Second); len(l.slots) > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	return l.Between(from, time.Now().Add(time.Hour))
}

func TestLoadKeepsItsRate(t *testing.T) {
	f := run(t, func(http.ResponseWriter, *http.Request) {}, LoadOptions{Timeout: time.Second, MaxInFlight: 64, Seed: 1}, 200, time.Second)
	if math.Abs(float64(f.Count)-200) > 12 || f.Failed != 0 {
		t.Errorf("asked for 200 requests, got %+v", f)
	}
}

// A server that stalls once must show in the latencies of all requests that
// were due meanwhile, not of the one that it held.
func TestLoadSeesAStallInEveryDueRequest(t *testing.T) {
	var n atomic.Int64
	release := make(chan struct{})
	h := func(_ http.ResponseWriter, r *http.Request) {
		if n.Add(1) == 1 {
			time.AfterFunc(400*time.Millisecond, func() { close(release) })
		}
		<-release
	}
	f := run(t, h, LoadOptions{Timeout: 2 * time.Second, MaxInFlight: 100, Seed: 1}, 100, 500*time.Millisecond)
	if f.Count < 40 || f.P50 < 100*time.Millisecond || f.Max < 350*time.Millisecond || f.Failed != 0 {
		t.Errorf("a stall of 400ms in 500ms shows as %+v", f)
	}
}

func TestLoadCountsWhatFails(t *testing.T) {
	var n atomic.Int64
	h := func(w http.ResponseWriter, r *http.Request) {
		switch n.Add(1) % 3 {
		case 0:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 1:
			<-r.Context().Done() // until the client gives up
		}
	}
	f := run(t, h, LoadOptions{Timeout: 100 * time.Millisecond, MaxInFlight: 64, Seed: 1}, 100, 300*time.Millisecond)
	if f.Outcomes["503"] < 5 || f.Outcomes[timedOut] < 5 || f.Outcomes["200"] < 5 || f.Failed != f.Count-f.Outcomes["200"] {
		t.Errorf("got %+v", f)
	}
}

func TestLoadDropsOverItsBound(t *testing.T) {
	h := func(_ http.ResponseWriter, r *http.Request) { time.Sleep(200 * time.Millisecond) } // a slow server
	f := run(t, h, LoadOptions{Timeout: time.Second, MaxInFlight: 2, Seed: 1}, 100, 300*time.Millisecond)
	if f.Outcomes[dropped] < 15 || f.Outcomes["200"] < 2 {
		t.Errorf("got %+v", f)
	}
}

func TestLoadTellsRefusedFromCut(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	got := NewLoad(LoadOptions{URL: "http://" + addr, Method: "GET", Timeout: time.Second, MaxInFlight: 1}).send(t.Context(), time.Now())
	if got.Outcome != refused {
		t.Errorf("closed port: %q", got.Outcome)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	defer srv.Close()
	got = NewLoad(LoadOptions{URL: srv.URL, Method: "POST", Timeout: time.Second, MaxInFlight: 1}).send(t.Context(), time.Now())
	if got.Outcome != cut {
		t.Errorf("connection ended: %q", got.Outcome)
	}
}
