package flyapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"

	"flymesh/leader"
	"flymesh/raftstore/epoch"
)

// TestTokenDoesNotShow prints what holds a token with every verb.
func TestTokenDoesNotShow(t *testing.T) {
	tok := NewToken(testToken)
	type holder struct {
		Public  Token
		private Token
		m       map[string]Token
	}
	h := holder{tok, tok, map[string]Token{testApp: tok}}
	c := newClient(t, Options{Transport: http.DefaultTransport})
	for _, v := range []any{tok, &tok, h, &h, h.m, Options{Tokens: h.m}, c.apps[testApp].name} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			mustNotLeak(t, verb, fmt.Sprintf(verb, v))
		}
		if b, err := json.Marshal(map[string]any{"t": tok}); err != nil {
			t.Error(err)
		} else {
			mustNotLeak(t, "json", string(b))
		}
	}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "token", tok, "holder", h)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "token", tok, "holder", h)
	mustNotLeak(t, "log", log.String())
	if !strings.Contains(log.String(), redacted) {
		t.Errorf("log %q shows no placeholder", log.String())
	}
}

// TestTokenInNoErrorOrLog makes every call fail in every way against a server
// that sends the token back, and reads all that comes out.
func TestTokenInNoErrorOrLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, code := range []int{0, 200, 400, 401, 403, 404, 408, 409, 412, 422, 429, 500, 502, 503} {
			var log bytes.Buffer
			seen := 0
			reg := prometheus.NewRegistry()
			c := newClient(t, Options{
				Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})), Registerer: reg,
				Transport: transport(func(r *http.Request) (*http.Response, error) {
					auth := r.Header.Get("Authorization")
					if auth != "FlyV1 "+testToken {
						t.Errorf("authorization header is %q", auth)
					}
					seen++
					if code == 0 {
						return nil, fmt.Errorf("proxy refused header %q", auth)
					}
					return answer(code, fmt.Sprintf(`{"error":"already_exists: bad token %s"}`, auth)), nil
				}),
			})
			a := NewArbiter(c, testApp)
			ctx := t.Context()
			_, list := c.List(ctx, testApp)
			_, get := c.Get(ctx, testApp, "m1")
			_, create := c.Create(ctx, leader.CreateRequest{App: testApp, Name: "x", Template: "m1"})
			_, read := a.Read(ctx)
			_, lease := a.Lease(ctx, 10e9)
			_, fates := a.Fates(ctx, []epoch.Voter{{App: testApp, Machine: "m1"}})
			for _, err := range []error{list, get, create, launch(ctx, c), read, lease, fates,
				c.Start(ctx, testApp, "m1"), c.Stop(ctx, testApp, "m1", 0), c.Suspend(ctx, testApp, "m1"), c.Destroy(ctx, testApp, "m1"),
				c.Cordon(ctx, testApp, "m1"), c.Uncordon(ctx, testApp, "m1"), c.SetMetadata(ctx, testApp, "m1", "k", "v"),
				c.SetMetadata(ctx, testApp, "m1", "k", ""), a.Write(ctx, epoch.Record{Epoch: 1, Cluster: "1-x"}),
			} {
				if code != 200 && err == nil {
					t.Errorf("status %d: a call succeeded", code)
				}
				mustNotLeak(t, fmt.Sprintf("error of status %d", code), fmt.Sprintf("%v %+v", err, err))
			}
			mustNotLeak(t, "log", log.String())
			if seen == 0 || log.Len() == 0 {
				t.Errorf("status %d: %d requests, %d bytes of log: nothing was tested", code, seen, log.Len())
			}
			families, err := reg.Gather()
			if err != nil {
				t.Fatal(err)
			}
			mustNotLeak(t, "metrics", fmt.Sprint(families))
		}
	})
}

func TestNewRefuses(t *testing.T) {
	for name, o := range map[string]Options{
		"empty token":      {Tokens: map[string]Token{testApp: NewToken(" ")}},
		"no token":         {Tokens: map[string]Token{testApp: {}}},
		"newline in token": {Tokens: map[string]Token{testApp: NewToken(testToken + "\n" + testToken)}},
		"app with a slash": {Tokens: map[string]Token{"a/b": NewToken(testToken)}},
		"base with a path": {BaseURL: "http://127.0.0.1/x"},
		"base with a user": {BaseURL: "http://user:" + testToken + "@127.0.0.1"},
		"no base":          {BaseURL: "127.0.0.1:80"},
		"broken base":      {BaseURL: "http://%zz"},
	} {
		c, err := New(o)
		if err == nil {
			t.Errorf("%s: got %v, want an error", name, c)
			continue
		}
		mustNotLeak(t, name, err.Error())
	}
}

// TestNamesStayInTheirPlace sends nothing for names that would change a path.
func TestNamesStayInTheirPlace(t *testing.T) {
	c := newClient(t, Options{Transport: transport(func(r *http.Request) (*http.Response, error) {
		t.Errorf("sent %s %s", r.Method, r.URL)
		return answer(200, `{}`), nil
	})})
	ctx := t.Context()
	for _, id := range []string{"", "..", "a/b", "a?b", "a b", "a%2fb"} {
		_, get := c.Get(ctx, testApp, id)
		for _, err := range []error{get, c.Stop(ctx, testApp, id, 0), c.Destroy(ctx, testApp, id), c.SetMetadata(ctx, testApp, "m1", id, "v")} {
			if leader.FaultOf(err) != leader.Invalid {
				t.Errorf("%q: got %v, want fault invalid", id, err)
			}
		}
	}
	if _, err := c.List(ctx, "other"); leader.FaultOf(err) != leader.Denied {
		t.Errorf("app without a token: got %v, want fault denied", err)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	codes := []int{200, 404, 502}
	c := newClient(t, Options{Registerer: reg, Transport: transport(func(*http.Request) (*http.Response, error) {
		code := codes[0]
		codes = codes[1:]
		return answer(code, `{}`), nil
	})})
	for range 3 {
		_ = c.Cordon(t.Context(), testApp, "m1") // its outcome is what is counted
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			key := f.GetName()
			for _, l := range m.GetLabel() {
				key += " " + l.GetValue()
			}
			got[key] = m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	for key, want := range map[string]float64{
		"flymesh_flyapi_requests_total cordon ok":        1,
		"flymesh_flyapi_requests_total cordon gone":      1,
		"flymesh_flyapi_requests_total cordon unknown":   1,
		"flymesh_flyapi_request_duration_seconds cordon": 3,
	} {
		if got[key] != want {
			t.Errorf("%s is %v, want %v; all: %v", key, got[key], want, got)
		}
	}
}
