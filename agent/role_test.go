package agent

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"flymesh/agent/config"
	"flymesh/probes/report"
)

// TestProbeFollowsTheRole: the n8n probe asks main while main runs, else the
// worker, of which it knows that it takes no requests.
func TestProbeFollowsTheRole(t *testing.T) {
	asked := make(chan string, 100)
	count := 0 // of requests that main has answered
	serve := func(name string, metrics func() string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked <- name
			if r.URL.Path == "/metrics" {
				fmt.Fprint(w, metrics())
			}
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	const family = "n8n_webhook_request_duration_seconds"
	main := serve("main", func() string {
		count += 7
		const labels = `webhook_path="answer",status_code="200"`
		return fmt.Sprintf("# TYPE %[1]s histogram\n%[1]s_bucket{%[2]s,le=\"+Inf\"} %[3]d\n%[1]s_sum{%[2]s} 1\n%[1]s_count{%[2]s} %[3]d\n", family, labels, count)
	})
	worker := serve("worker", func() string { return "" })
	role := report.NoRole
	p, err := prober(config.Probe{Type: "n8n", URL: main, Role: "auto", WorkerURL: worker, Addr: "127.0.0.1:1"}, 0, time.Minute,
		func() report.AppRole { return role })
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		role report.AppRole
		asks string
		want report.Value // requests in the window; the first look at main has nothing to compare with
	}{
		{report.Replica, "worker", report.Of(0)}, {report.Primary, "main", report.Value{}}, {report.Primary, "main", report.Of(7)},
		{report.Switching, "worker", report.Of(0)}, {report.Primary, "main", report.Of(14)},
	} {
		role = tt.role
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		m, err := p.Probe(ctx)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		for n := len(asked); n > 0; n-- {
			if got := <-asked; got != tt.asks {
				t.Errorf("as %s the probe asks the %s", tt.role, got)
			}
		}
		if m.Requests != tt.want || m.Errors.OK != tt.want.OK {
			t.Errorf("as %s: requests %+v, errors %+v; want %+v", tt.role, m.Requests, m.Errors, tt.want)
		}
	}
}
