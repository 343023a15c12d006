package flyapi

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	fly "github.com/superfly/fly-go"
	"github.com/superfly/fly-go/flaps"

	"flymesh/leader"
)

// hangUp closes the connection without an answer; reset does so with a RST.
func hangUp(reset bool) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		if reset {
			_ = conn.(*net.TCPConn).SetLinger(0) // the client sees what came of it
		}
		_ = conn.Close()
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_, _ = w.Write([]byte(`{"error":"upstream trouble"}`)) // the client sees what came of it
	}
}

// failures are servers that fail after they have taken a request.
var failures = []struct {
	name  string
	h     http.HandlerFunc
	plain int // requests that fly-go alone makes of one Start
}{
	{"502", status(502), 4},
	{"503", status(503), 4},
	{"504", status(504), 1},
	{"408", status(408), 1},
	{"closed", hangUp(false), 1},
	{"reset", hangUp(true), 1},
	{"redirect", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
	}, 10},
	{"cut short", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = w.Write([]byte(`{"id":"`)) // the client sees what came of it
	}, 1},
}

func TestWriteIsSentOnce(t *testing.T) {
	for _, f := range failures {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			base, sent := serve(t, f.h)
			c := newClient(t, Options{BaseURL: base})
			for name, call := range map[string]func(context.Context) error{
				"create": func(ctx context.Context) error { return launch(ctx, c) },
				"start":  func(ctx context.Context) error { return c.Start(ctx, testApp, "m1") },
				"cordon": func(ctx context.Context) error { return c.Cordon(ctx, testApp, "m2") },
				"lease": func(ctx context.Context) error {
					_, err := c.lease(ctx, testApp, "m3", time.Minute, "test")
					return err
				},
			} {
				if name == "cordon" && f.name == "cut short" {
					continue // its answer is not read
				}
				before := sent()
				err := call(t.Context())
				if n := sent() - before; n != 1 {
					t.Errorf("%s was sent %d times, want once", name, n)
				}
				want := leader.Unknown
				if f.name == "redirect" {
					want = leader.Invalid
				}
				if err == nil || leader.FaultOf(err) != want {
					t.Errorf("%s: got %v, want fault %s", name, err, want)
				}
			}
		})
	}
}

// TestFlyGoAlone shows what the guard is for: the same calls through fly-go
// without it.
func TestFlyGoAlone(t *testing.T) {
	for _, f := range failures {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			base, sent := serve(t, f.h)
			u, err := url.Parse(base)
			if err != nil {
				t.Fatal(err)
			}
			plain, err := flaps.NewWithOptions(t.Context(), flaps.NewClientOpts{Transport: &rebase{next: newTransport(), base: u}})
			if err != nil {
				t.Fatal(err)
			}
			// Not Launch: with a body the repeats race with the transport for it.
			if _, err := plain.Start(t.Context(), testApp, "m1", ""); err == nil {
				t.Error("start succeeded")
			}
			if n := sent(); n != f.plain {
				t.Errorf("fly-go alone sent %d requests, want %d", n, f.plain)
			}
		})
	}
}

// TestTemporaryErrorIsSentOnce fails a request with what net calls temporary.
func TestTemporaryErrorIsSentOnce(t *testing.T) {
	var sent atomic.Int32
	c := newClient(t, Options{Transport: transport(func(*http.Request) (*http.Response, error) {
		sent.Add(1)
		return nil, &net.OpError{Op: "read", Net: "tcp", Err: timeout{}}
	})})
	err := launch(t.Context(), c)
	if n := sent.Load(); n != 1 || leader.FaultOf(err) != leader.Unknown {
		t.Errorf("sent %d times, %v; want once and fault unknown", n, err)
	}
}

// TestGuardHoldsRepeatsBack sends one call twice, as a retry layer would that
// does not care for the kind of an error, and one that is no call of ours.
func TestGuardHoldsRepeatsBack(t *testing.T) {
	sent := 0
	c := newClient(t, Options{Transport: transport(func(*http.Request) (*http.Response, error) {
		sent++
		return answer(200, `{}`), nil
	})})
	h := c.apps[testApp].http
	for i, ctx := range []context.Context{withOnce(t.Context()), t.Context()} {
		for range 2 {
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://api.machines.dev/v1/x", strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			if resp, err := h.Do(r); err == nil {
				_ = resp.Body.Close() // in memory
			} else if !errors.Is(err, errRepeated) {
				t.Error(err)
			}
		}
		if sent != 1 {
			t.Errorf("context %d: %d requests were sent, want 1 of the first and none of the second", i, sent)
		}
	}
}

type timeout struct{}

func (timeout) Error() string   { return "timeout awaiting response headers" }
func (timeout) Timeout() bool   { return true }
func (timeout) Temporary() bool { return true }

// TestRefusedConnectionIsRetry knows that nothing was sent.
func TestRefusedConnectionIsRetry(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	c := newClient(t, Options{BaseURL: "http://" + addr})
	if err := launch(t.Context(), c); leader.FaultOf(err) != leader.Retry || !errors.Is(err, errNotSent) {
		t.Errorf("got %v, want fault retry because nothing was sent", err)
	}
}

// TestReadIsRepeated repeats reads a few times and no more.
func TestReadIsRepeated(t *testing.T) {
	for _, f := range failures {
		if f.name == "redirect" {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			base, sent := serve(t, f.h)
			c := newClient(t, Options{BaseURL: base})
			_, err := c.Get(t.Context(), testApp, "m1")
			if n := sent(); n != readTries || leader.FaultOf(err) != leader.Retry {
				t.Errorf("sent %d times, %v; want %d and fault retry", n, err, readTries)
			}
		})
	}
	t.Run("until it works", func(t *testing.T) {
		t.Parallel()
		var n atomic.Int32
		base, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			if n.Add(1) == 1 {
				w.WriteHeader(502)
				return
			}
			_, _ = w.Write([]byte(`{"id":"m1","state":"started"}`)) // the client sees what came of it
		})
		if m, err := newClient(t, Options{BaseURL: base}).Get(t.Context(), testApp, "m1"); err != nil || m.State != "started" {
			t.Errorf("got %+v, %v", m, err)
		}
	})
}

// TestStopUnderForeignLease blocks like the API does.
func TestStopUnderForeignLease(t *testing.T) {
	for _, held := range []bool{true, false} {
		var posts atomic.Int32
		base, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Method == http.MethodPost:
				posts.Add(1)
				hangUp(false)(w, r)
			case held:
				_, _ = w.Write([]byte(`{"status":"success","data":{"owner":"deployer@example.com","expires_at":1}}`)) // the client sees what came of it
			default:
				w.WriteHeader(404)
			}
		})
		want := leader.Unknown
		if held {
			want = leader.Leased
		}
		err := newClient(t, Options{BaseURL: base}).Stop(t.Context(), testApp, "m1", 0)
		if leader.FaultOf(err) != want || posts.Load() != 1 {
			t.Errorf("held %v: got %v after %d requests, want fault %s after one", held, err, posts.Load(), want)
		}
		if held && !strings.Contains(err.Error(), "deployer@example.com") {
			t.Errorf("error %q does not name the holder", err)
		}
	}
}

// TestAffinityCookie sends the cookie of one client's answers with the other's
// requests: fly-go's calls and the own ones are one client to the API.
func TestAffinityCookie(t *testing.T) {
	var got []string
	c := newClient(t, Options{Transport: transport(func(r *http.Request) (*http.Response, error) {
		got = append(got, r.Header.Get("Cookie"))
		resp := answer(200, `{"id":"m1"}`)
		if r.URL.Path == "/v1/apps/"+testApp+"/machines" {
			resp = answer(200, `[]`)
		}
		resp.Header.Add("Set-Cookie", "fly_flaps_affinity=host7; Path=/v1/apps/"+testApp)
		return resp, nil
	})})
	if _, err := c.Get(t.Context(), testApp, "m1"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.List(t.Context(), testApp); err != nil {
		t.Fatal(err)
	}
	if got[0] != "" || got[1] != "fly_flaps_affinity=host7" {
		t.Errorf("cookies were %q", got)
	}
}

// launch makes one create call without the look at a template.
func launch(ctx context.Context, c *Client) error {
	return c.do(ctx, ActCreate, testApp, "", func(ctx context.Context, a *appClient) error {
		_, err := a.fly.Launch(ctx, testApp, fly.LaunchMachineInput{Name: "x", Config: &fly.MachineConfig{Image: "i"}})
		return err
	})
}
