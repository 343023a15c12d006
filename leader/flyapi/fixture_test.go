package flyapi

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	fly "github.com/superfly/fly-go"

	"flymesh/leader/flyapi/flytest"
	"flymesh/leader/flyapi/flytest/openapi"
)

const (
	testApp   = "n8n"
	testToken = "fm2_c2VjcmV0LXRva2VuLXZhbHVl"
)

// newClient returns a client of the one test app.
func newClient(t *testing.T, o Options) *Client {
	t.Helper()
	if o.Tokens == nil {
		o.Tokens = map[string]Token{testApp: NewToken("FlyV1 " + testToken)}
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// serve runs a handler on a loopback port and counts its requests.
func serve(t *testing.T, h http.HandlerFunc) (url string, count func() int) {
	t.Helper()
	var (
		mu sync.Mutex
		n  int
	)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		n++
		mu.Unlock()
		h(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL, func() int {
		mu.Lock()
		defer mu.Unlock()
		return n
	}
}

// transport is a RoundTripper in memory.
type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// answer is a JSON answer.
func answer(status int, body string) *http.Response {
	w := httptest.NewRecorder()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.WriteString(body) // a recorder's writes do not fail
	return w.Result()
}

// emulator returns an emulator with in-memory machines.
func emulator(t *testing.T, o flytest.Options) *flytest.Server {
	t.Helper()
	if o.Tokens == nil {
		o.Tokens = map[string]string{testApp: testToken}
	}
	judge(t, &o)
	s, err := flytest.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close emulator: %v", err)
		}
	})
	return s
}

// judge makes all traffic with the emulator be compared with Fly's OpenAPI document.
func judge(t *testing.T, o *flytest.Options) {
	t.Helper()
	d, err := openapi.Load("flytest/testdata/machines-openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	j := openapi.NewJudge(d, openapi.KnownErrors())
	o.Watch = j.Watch
	t.Cleanup(func() {
		for _, p := range j.Problems() {
			t.Errorf("not as documented: %s", p)
		}
	})
}

// seed makes a machine as a deploy would have, and waits until it runs.
func seed(t *testing.T, s *flytest.Server, spec flytest.Spec) *fly.Machine {
	t.Helper()
	if spec.App == "" {
		spec.App = testApp
	}
	m, err := s.Seed(spec)
	if err != nil {
		t.Fatal(err)
	}
	if spec.Start {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := s.Await(ctx, m.ID, "started"); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// mustNotLeak fails if a text holds the token.
func mustNotLeak(t *testing.T, where, text string) {
	t.Helper()
	if strings.Contains(text, testToken) || strings.Contains(text, testToken[4:]) {
		t.Errorf("%s shows the token: %s", where, text)
	}
}
