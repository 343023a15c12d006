package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	fly "github.com/superfly/fly-go"

	"flymesh/agent/api"
	"flymesh/agent/config"
	"flymesh/agent/identity"
	"flymesh/leader/flyapi/flytest"
)

// routes are all paths of all doors, and some that are none.
var routes = []string{
	api.PathHealth, api.PathMetrics, api.PathStatus, api.PathWhy, api.PathWhy + "app", api.PathEvents, api.PathScale, api.PathPause, api.PathResume,
	api.PathPropose, api.PathWindows, api.PathDrain, api.PathAdmit, api.PathAlerts, api.PathSilence, api.PathHistory, api.PathPast, api.PathPage,
	api.PathRaft, api.PathRaftTransfer, api.PathRaftRecover, api.PathJobs, api.PathJobRun, api.PathJobPause, api.PathJobStart,
	api.PathLocks, api.PathUnlock, api.PathPin, api.PathLockAcquire, api.PathLockRenew, api.PathLockRelease, api.PathLockCheck, api.PathLease,
	api.PathHeld, api.PathLockEnd, "/", "/live", "/assets/page.js", "/assets/", "/v1", "/v2/status", "/%2e%2e/", "//",
}

// doors is a real agent that leads a mesh of its own, and a client of each of
// its doors.
type doors struct {
	clients []*http.Client
	bases   []string
}

// openDoors runs an agent in this process.
func openDoors(f *testing.F) *doors {
	f.Helper()
	dir, err := os.MkdirTemp("", "doors-") // short: a socket is in it
	if err != nil {
		f.Fatal(err)
	}
	cloud, err := flytest.New(flytest.Options{Launcher: &flytest.Memory{}, Tokens: map[string]string{"m-app": "a"}, NoLimits: true})
	if err != nil {
		f.Fatal(err)
	}
	if err := cloud.Listen("127.0.0.1:0"); err != nil {
		f.Fatal(err)
	}
	made, err := cloud.Seed(flytest.Spec{App: "m-app", Config: fly.MachineConfig{Image: "m"}, Start: true})
	if err != nil {
		f.Fatal(err)
	}
	cfg, err := config.Parse("mesh.toml", []byte(`
[mesh]
name = "m"
report_every = "200ms"
profile = "fast"
discover = ["api"]
[service.app]
app = "m-app"
vote = true
pinned = true
max = 3
[job.Report]
service = "app"
url = "http://127.0.0.1:1/"
`))
	if err != nil {
		f.Fatal(err)
	}
	cfg.Mesh.Socket = filepath.Join(dir, "s")
	secret, err := identity.ParseSecret(identity.NewSecret())
	if err != nil {
		f.Fatal(err)
	}
	tokens, missing := identity.Tokens(func(k string) string { return map[string]string{"FLYMESH_TOKEN_M_APP": "a"}[k] }, cfg.TokenApps())
	if len(missing) > 0 {
		f.Fatalf("no tokens: %v", missing)
	}
	self := identity.Machine{ID: made.ID, App: "m-app", Group: "app", Region: "fra", PrivateIP: fmt.Sprintf("127.%d.%d.9", 64+os.Getpid()>>8&63, os.Getpid()&255)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{Config: cfg, Machine: self, Secret: secret, Tokens: tokens, APIBase: cloud.URL(), Version: "test", Logger: slog.New(slog.DiscardHandler)})
	}()
	f.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			f.Errorf("the agent ended with %v", err)
		}
		_ = cloud.Close()
		_ = os.RemoveAll(dir)
	})
	conf, err := secret.TLS("m", "stranger", strings.Repeat("0", 32), time.Now())
	if err != nil {
		f.Fatal(err)
	}
	conf.NextProtos = []string{"http/1.1"}
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	d := &doors{
		bases: []string{"http://agent", "http://" + net.JoinHostPort(self.PrivateIP, "9470"), "https://" + net.JoinHostPort(self.PrivateIP, "7947")},
		clients: []*http.Client{
			{CheckRedirect: stay, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", cfg.Mesh.Socket)
			}}},
			{CheckRedirect: stay, Transport: &http.Transport{}},
			{CheckRedirect: stay, Transport: &http.Transport{TLSClientConfig: conf}},
		},
	}
	c := api.NewSocketClient(cfg.Mesh.Socket)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if st, err := c.Status(ctx); err == nil && st.Leader != nil {
			return d
		}
		if time.Now().After(end) {
			f.Fatal("no leader within 30 s")
		}
	}
}

// ask sends one request. A handler that panics closes the connection without
// an answer; an idle one may be closed as well, so it is tried twice.
func (d *doors) ask(door int, method, target, header string, body []byte, limit time.Duration) (status int, kind string, answer []byte, err error) {
	for range 2 {
		var r *http.Request
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if r, err = http.NewRequestWithContext(ctx, method, d.bases[door]+target, bytes.NewReader(body)); err != nil {
			return 0, "", nil, errNoRequest
		}
		for _, k := range []string{"Flymesh-Hops", "Authorization", "Cookie", "If-None-Match", "Accept-Encoding"} {
			r.Header[k] = []string{header}
		}
		var resp *http.Response
		if resp, err = d.clients[door].Do(r); err != nil {
			var u *url.Error
			if errors.As(err, &u) && strings.Contains(err.Error(), "invalid") { // the client's own word on a header or method
				return 0, "", nil, errNoRequest
			}
			continue
		}
		answer, err = io.ReadAll(io.LimitReader(resp.Body, 4<<20))
		resp.Body.Close()
		return resp.StatusCode, resp.Header.Get("Content-Type"), answer, err
	}
	return 0, "", nil, err
}

var errNoRequest = errors.New("this is no request")

// FuzzDoors throws requests at every handler of every door of a real agent,
// one that leads. Whatever comes: it answers, in JSON where it speaks JSON, it
// is never its own fault, and who names another host gets nothing of the page.
func FuzzDoors(f *testing.F) {
	for door := range 3 {
		for i := range routes {
			f.Add(uint8(door), uint8(i), "GET", "", "", []byte(nil))
			f.Add(uint8(door), uint8(i), "POST", "", "x", []byte(`{}`))
		}
	}
	for i, b := range []string{
		`{"service":"app","delta":1,"reason":"x","by":"ada"}`, `{"service":"app","for":1800000000000}`, `{"service":"app","target":3}`, `null`, `[1]`,
		`{"lock":"a","session":"12345678","reason":"x"}`, `{"lock":"a","token":"1-42"}`, `{"rule":"p95_page","for":1,"by":"x"}`,
		`{"job":"Report","args":{"a":"b"}}`, `{"deadline":1}`, `{"boot":"b"}`, `{"epoch":1}`, `{"name":"a","token":"1-1","holder":{"machine":"m"}}`,
		`{"v":1,"at":"2026-01-01T00:00:00Z","by":"x","begin":{"service":"app","kind":"up"}}`, "{\"service\":\"\x00\xff\"}",
	} {
		for j := range routes {
			if (i+j)%5 == 0 {
				f.Add(uint8(2*(i%2)), uint8(j), "POST", "?service=app&since=1h&after=1&token=1-1&lock=a", "1", []byte(b))
			}
		}
	}
	f.Add(uint8(0), uint8(slices.Index(routes, api.PathHistory)), "GET", "?service=app&since=9999999h&grain=sample&machines=1", "2", []byte(nil))
	f.Add(uint8(1), uint8(slices.Index(routes, "/")), "GET", "?token=%00", "Bearer x", []byte(nil))
	d := openDoors(f)
	f.Fuzz(func(t *testing.T, door, route uint8, method, query, header string, body []byte) {
		path := routes[int(route)%len(routes)]
		limit := 20 * time.Second
		switch {
		case path == api.PathRaftRecover || path == api.PathRaftTransfer:
			if method != http.MethodGet {
				return // they take nothing, and the mesh would be without a leader
			}
		case path == api.PathDrain || path == "/live":
			limit = 300 * time.Millisecond // they answer when they are over
		case path == api.PathLockAcquire:
			var q api.AcquireRequest
			if json.Unmarshal(body, &q); q.PID != 0 {
				return // what runs under a lost lock is killed
			}
		}
		status, kind, answer, err := d.ask(int(door)%3, method, path+query, header, body, limit)
		switch {
		case errors.Is(err, errNoRequest), limit < time.Second && errors.Is(err, context.DeadlineExceeded):
			return
		case err != nil:
			t.Fatalf("%s %s%s %q at door %d: no answer: %v", method, path, query, body, door%3, err)
		case status == http.StatusInternalServerError || status > 503:
			t.Fatalf("%s %s%s %q at door %d: %d %s", method, path, query, body, door%3, status, answer)
		case kind == "application/json" && method != http.MethodHead && !json.Valid(answer):
			t.Fatalf("%s %s%s %q at door %d: %d %q is not JSON", method, path, query, body, door%3, status, answer)
		}
	})
}
