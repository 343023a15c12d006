package agent

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"flymesh/agent/config"
	"flymesh/leader"
)

// carryOut runs a job under a keeper and returns what was committed of it.
func carryOut(t *testing.T, j config.Job, tick time.Time) string {
	t.Helper()
	o := &oneLock{lease: time.Minute, token: "1-5"}
	k := keeper(t, filepath.Join(t.TempDir(), "s"), o)
	j.Name = "J"
	if j.Timeout == 0 {
		j.Timeout = time.Minute
	}
	r := leader.JobStart{Job: "J", Run: "J@t", Token: "1-5", Tick: tick, Args: map[string]string{"batch_size": "64"}}
	if err := k.startJob(context.Background(), j, r); err != nil {
		t.Fatal(err)
	}
	until(t, "the end of the run", o.free)
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Join(o.marks, ", ")
}

// TestJobCall makes calls of a real server: what it is sent, and what counts
// as success.
func TestJobCall(t *testing.T) {
	tick := time.Date(2026, 3, 1, 2, 0, 0, 0, time.UTC)
	var calls atomic.Int32
	var got atomic.Value // the newest request
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		b := make([]byte, r.ContentLength+1)
		n, _ := r.Body.Read(b)
		got.Store(fmt.Sprintf("%s %s run=%s token=%s auth=%s %s", r.Method, r.URL.Path, r.Header.Get("Flymesh-Run"), r.Header.Get("Flymesh-Token"), r.Header.Get("X-Webhook-Token"), b[:n]))
		switch r.URL.Path {
		case "/ok":
			fmt.Fprint(w, `{"status":"ok","rows":12}`)
		case "/half":
			fmt.Fprint(w, `{"status":"partial"}`)
		case "/accepted":
			w.WriteHeader(http.StatusAccepted)
		case "/moved":
			http.Redirect(w, r, "/ok", http.StatusTemporaryRedirect)
		case "/broken":
			c, _, _ := http.NewResponseController(w).Hijack()
			c.Close()
		case "/slow":
			select {
			case <-r.Context().Done():
			case <-time.After(20 * time.Second):
			}
		default:
			http.Error(w, "no such workflow", http.StatusNotFound)
		}
	}))
	defer srv.Close()
	t.Setenv("NIGHTLY_TOKEN", "value-of-the-header")
	body := `{"args":{"batch_size":"64"},"job":"J","run":"J@t","tick":"2026-03-01T02:00:00Z","token":"1-5"}`
	headers := "run=J@t token=1-5 auth="
	for _, c := range []struct {
		name, path string
		job        config.Job
		end        string // of what is committed
		request    string
	}{
		{"POST with a header of the environment", "/ok", config.Job{HeadersEnv: []string{"X-Webhook-Token=NIGHTLY_TOKEN"}},
			`failed=false 200 {"status":"ok","rows":12}`, "POST /ok " + headers + "value-of-the-header " + body},
		{"PUT", "/ok", config.Job{Method: "PUT"}, `failed=false 200 {"status":"ok","rows":12}`, "PUT /ok " + headers + " " + body},
		{"GET has no body", "/ok", config.Job{Method: "GET"}, `failed=false 200 {"status":"ok","rows":12}`, "GET /ok " + headers + " "},
		{"the status that is asked for", "/accepted", config.Job{Status: 202}, "failed=false 202 ", ""},
		{"another status", "/accepted", config.Job{Status: 200}, "failed=true answer: 202 ", ""},
		{"no success", "/none", config.Job{}, "failed=true answer: 404 no such workflow", ""},
		{"a redirect is no success and not followed", "/moved", config.Job{}, "failed=true answer: 307 ", ""},
		{"the field that is asked for", "/ok", config.Job{Expect: "status=ok"}, `failed=false 200 {"status":"ok","rows":12}`, ""},
		{"a field with a number", "/ok", config.Job{Expect: "rows=12"}, `failed=false 200 {"status":"ok","rows":12}`, ""},
		{"another value of the field", "/half", config.Job{Expect: "status=ok"}, `failed=true answer without status=ok: 200 {"status":"partial"}`, ""},
		{"no JSON", "/accepted", config.Job{Expect: "status=ok"}, "failed=true answer without status=ok: 202 ", ""},
		{"a connection that breaks is not tried again", "/broken", config.Job{}, "EOF", ""},
		{"no answer in time", "/slow", config.Job{Timeout: 300 * time.Millisecond}, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := calls.Load()
			c.job.URL = srv.URL + c.path
			if c.job.Method == "" {
				c.job.Method = "POST"
			}
			marks := carryOut(t, c.job, tick)
			if !strings.HasPrefix(marks, "begin, finish ") || !strings.HasSuffix(marks, c.end) || strings.Contains(marks, "value-of-the-header") {
				t.Errorf("committed: %q, want ... %q", marks, c.end)
			}
			if c.path == "/slow" && !strings.Contains(marks, "failed=true not over after 300ms") {
				t.Errorf("committed: %q, want the timeout in it", marks)
			}
			if n := calls.Load() - before; n != 1 {
				t.Errorf("%d calls, want 1", n)
			}
			if c.request != "" && got.Load() != c.request {
				t.Errorf("request %q, want %q", got.Load(), c.request)
			}
		})
	}
	t.Run("a header whose variable is missing", func(t *testing.T) {
		before := calls.Load()
		marks := carryOut(t, config.Job{URL: srv.URL + "/ok", Method: "POST", HeadersEnv: []string{"X-Webhook-Token=NOT_SET"}}, tick)
		if !strings.Contains(marks, "failed=true make call: NOT_SET is not set, for header X-Webhook-Token") || calls.Load() != before {
			t.Errorf("committed: %q after %d calls", marks, calls.Load()-before)
		}
	})
}

// TestJobCommandEnds: exit code and the end of the output are in the record,
// the environment has what the documents say, and nothing is left behind.
func TestJobCommandEnds(t *testing.T) {
	tick := time.Date(2026, 3, 1, 2, 0, 0, 0, time.UTC)
	left := filepath.Join(t.TempDir(), "left")
	for _, c := range []struct{ name, script, end string }{
		{"success", `echo $FLYMESH_JOB $FLYMESH_JOB_RUN $FLYMESH_JOB_TICK $FLYMESH_LOCK_TOKEN $FLYMESH_LOCK $FLYMESH_ARG_BATCH_SIZE`,
			"failed=false J J@t 2026-03-01T02:00:00Z 1-5 job/J 64"},
		{"failure", "echo rows missing >&2; exit 3", "failed=true command: exit status 3: rows missing"},
		{"no such program", "exec /no/such/program", "failed=true command: exit status 127: "},
		{"left behind", fmt.Sprintf("(while :; do echo x >> %s; sleep 0.02; done) >/dev/null 2>&1 & sleep 0.2", left), "failed=false "},
	} {
		t.Run(c.name, func(t *testing.T) {
			marks := carryOut(t, config.Job{Command: []string{"sh", "-c", c.script}}, tick)
			if !strings.HasPrefix(marks, "begin, finish "+c.end) {
				t.Errorf("committed: %q, want %q", marks, c.end)
			}
		})
	}
	size := func() int64 { fi, _ := os.Stat(left); return fi.Size() }
	at := size()
	time.Sleep(100 * time.Millisecond)
	if now := size(); at == 0 || now != at {
		t.Errorf("what the command left behind went on: %d bytes became %d", at, now)
	}
}

// TestClockGapStopsTheCommand: after a gap of the clock a running command
// stands still until its lease is known to hold; one whose lease has ended
// meanwhile never goes on.
func TestClockGapStopsTheCommand(t *testing.T) {
	for _, c := range []struct {
		name string
		gap  time.Duration
		goes bool
	}{{"within the lease", 3 * time.Second, true}, {"past the lease", 2 * leader.LockLease, false}} {
		t.Run(c.name, func(t *testing.T) {
			beat := filepath.Join(t.TempDir(), "beat")
			o := &oneLock{lease: leader.LockLease, token: "1-7"}
			k := keeper(t, filepath.Join(t.TempDir(), "s"), o)
			j := config.Job{Name: "J", Timeout: time.Minute, Command: []string{"sh", "-c", fmt.Sprintf("while :; do echo x >> %s; sleep 0.02; done", beat)}}
			if err := k.startJob(context.Background(), j, leader.JobStart{Job: "J", Run: "J@t", Token: "1-7"}); err != nil {
				t.Fatal(err)
			}
			size := func() int64 {
				fi, err := os.Stat(beat)
				if err != nil {
					return 0
				}
				return fi.Size()
			}
			until(t, "the command works", func() bool { return size() > 0 })
			o.deafen(true)
			k.gap(c.gap)
			at := size()
			time.Sleep(200 * time.Millisecond)
			if now := size(); now > at+4 { // one step may have been under way
				t.Errorf("the command went on without a lease: %d bytes became %d", at, now)
			}
			o.deafen(false)
			if c.goes {
				at = size()
				until(t, "the command goes on", func() bool { return size() > at+10 })
				k.endJobs()
				return
			}
			until(t, "the end of the run", o.free)
			if now := size(); now > at+4 {
				t.Errorf("the command went on after its lease: %d bytes became %d", at, now)
			}
			o.mu.Lock()
			defer o.mu.Unlock()
			if marks := fmt.Sprint(o.marks); !strings.Contains(marks, "failed=true given up: its lease could not be renewed") {
				t.Errorf("committed: %s", marks)
			}
		})
	}
}
