package http

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"flymesh/probes"
)

func TestProbe(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ok":
			fmt.Fprint(w, "all is well")
		case "/created":
			w.WriteHeader(http.StatusCreated)
		case "/starting":
			fmt.Fprint(w, "n8n is starting up. Please wait")
		case "/down":
			w.WriteHeader(http.StatusServiceUnavailable)
		case "/login":
			http.Redirect(w, r, "/ok", http.StatusFound)
		case "/half":
			w.Header().Set("Content-Length", "99")
			fmt.Fprint(w, "all is well")
		case "/hangs":
			<-r.Context().Done()
		case "/slow":
			time.Sleep(30 * time.Millisecond)
		}
	}))
	defer s.Close()
	for _, c := range []struct {
		path    string
		options Options
		ready   bool
		reason  string // of not ready, or of the error
		err     bool
	}{
		{"/ok", Options{}, true, "", false},
		{"/ok", Options{Body: "well"}, true, "", false},
		{"/starting", Options{Body: "well"}, false, `body does not contain "well"`, false},
		{"/down", Options{}, false, "status 503, want 200", false},
		{"/created", Options{Status: 201}, true, "", false},
		{"/login", Options{}, false, "status 302, want 200", false},
		{"/half", Options{}, false, "unexpected EOF", true},
		{"/hangs", Options{}, false, "deadline exceeded", true},
	} {
		c.options.URL = s.URL + c.path
		h, err := New(c.options)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		m, err := h.Probe(ctx)
		cancel()
		switch {
		case c.err:
			if err == nil || !strings.Contains(err.Error(), c.reason) {
				t.Errorf("%s: error %v, want %q", c.path, err, c.reason)
			}
		case err != nil:
			t.Errorf("%s: %v", c.path, err)
		case m.Ready == nil || *m.Ready != c.ready || m.Reason != c.reason:
			t.Errorf("%s: %+v, want ready %v %q", c.path, m, c.ready, c.reason)
		case m.Latency != nil || h.Fields() != 0:
			t.Errorf("%s: a latency that was not asked for", c.path)
		}
	}
	h, err := New(Options{URL: s.URL + "/slow", Sample: true})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		m, err := h.Probe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := m.Latency.Quantile(0); got < 0.029 || got > 5 {
			t.Errorf("fastest round trip %v s of a server that takes 30 ms", got)
		}
	}
	if h.Fields() != probes.Latency || len(h.trips) != 3 {
		t.Errorf("fields %v, %d round trips", h.Fields(), len(h.trips))
	}
	h.trips[0].at = h.trips[0].at.Add(-2 * window)
	if m, err := h.Probe(t.Context()); err != nil || m.Latency.Count() != 3 {
		t.Errorf("after a minute: %v, %v", m.Latency.Count(), err)
	}
	s.Close()
	if _, err := h.Probe(t.Context()); err == nil {
		t.Error("a closed server gave an answer")
	}
}

func TestNewRefuses(t *testing.T) {
	for _, o := range []Options{{}, {URL: "localhost:80"}, {URL: "ftp://x/"}, {URL: "http:///x"}, {URL: "http://x/", Status: 42}, {URL: "http://%zz/"}} {
		if _, err := New(o); err == nil {
			t.Errorf("New(%+v) did not fail", o)
		}
	}
}
