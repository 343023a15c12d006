package config

import (
	"slices"
	"testing"
	"time"

	"flymesh/leader/alert"
	"flymesh/leader/burn"
)

func TestProblemsOfAlerts(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []string
	}{
		{"burn rates", "targets.error_rate = 0\nburn_rates = [\"error_rate\", \"errors\", \"p95\", \"p95\"]\n" +
			"[[service.n8n.probe]]\ntype = \"prometheus\"\nurl = \"http://127.0.0.1/metrics\"\nerrors = \"e\"\nrequests = \"r\"", []string{
			`7: service.n8n.burn_rates[0] = "error_rate": targets.error_rate is 0: without a target nothing is used up`,
			`7: service.n8n.burn_rates[1] = "errors": must be "error_rate" or "p95"`,
			`7: service.n8n.burn_rates[2] = "p95": no probe of this service supplies p95; add a probe of type "n8n" or "embeddings", one of type "prometheus" with latency = "HISTOGRAM", or a proxy`,
			`7: service.n8n.burn_rates[3] = "p95": is listed twice`,
		}},
		{"receivers", "[alerts]\nalertmanager = [\"am:9093\", \"http://a/\", \"http://a/\"]\npagerduty_url = \"https://pd/\"\nwebhook = \"https://u:p@h/\"", []string{
			`7: alerts.alertmanager[0]: must be an http or https URL, e.g. "http://alertmanager.internal:9093"`,
			`7: alerts.alertmanager[2]: is listed twice`,
			`8: alerts.pagerduty_url: must end in /v2/enqueue, or pagerduty_changes be false: the address of change events follows from it`,
			`9: alerts.webhook: must not hold a user or password: this file is in every image`,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) { wantProblems(t, head+tt.text, tt.want) })
	}
}

func TestChangeURL(t *testing.T) {
	for in, want := range map[string]string{
		"https://events.eu.pagerduty.com/v2/enqueue": "https://events.eu.pagerduty.com/v2/change/enqueue",
		"https://pd.internal/hook":                   "",
	} {
		if got := (Alerts{PagerDutyURL: in}).ChangeURL(); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
	mustParse(t, head+"[alerts]\npagerduty_changes = false\npagerduty_url = \"https://pd.internal/hook\"")
}

// TestAlertRules names everything that the reference's services, jobs and mesh
// are judged by.
func TestAlertRules(t *testing.T) {
	c := mustParse(t, head+`targets.p95 = "800ms"
pinned = true
min_samples = 50
burn_rates = ["error_rate", "p95"]
warn = []
[[service.n8n.probe]]
type = "redis"
addr = "127.0.0.1:6379"
[service.n8n.proxy]
listen = ":80"
target = "http://127.0.0.1:5678"
[job.Nightly]
service = "n8n"
command = ["true"]`)
	var keys []string
	for _, r := range c.AlertRules() {
		keys = append(keys, r.Key())
		if r.Summary == "" || r.Severity != alert.Page && r.Severity != alert.Warn {
			t.Errorf("%+v says nothing", r)
		}
	}
	want := []string{
		"quorum_edge", "fence_blocked", "config_differs", "p95_page/n8n", "error_rate_page/n8n",
		"error_rate_burn_1h/n8n", "error_rate_burn_6h/n8n", "error_rate_burn_3d/n8n", "p95_burn_1h/n8n", "p95_burn_6h/n8n", "p95_burn_3d/n8n",
		"no_data/n8n", "cap_reached/n8n", "budget_near/n8n", "operation_failed/n8n", "no_improvement/n8n", "redis_full/n8n", "job_failed_Nightly/n8n",
	}
	slices.Sort(keys)
	slices.Sort(want)
	if !slices.Equal(keys, want) {
		t.Errorf("rules\n%q, want\n%q", keys, want)
	}
	goals := []burn.Goal{
		{Service: "n8n", Target: burn.Errors, Allowed: 0.01, Least: 50},
		{Service: "n8n", Target: burn.Latency, Allowed: 0.05, Slow: (800 * time.Millisecond).Seconds(), Least: 50},
	}
	if got := c.Goals(); !slices.Equal(got, goals) {
		t.Errorf("goals %+v, want %+v", got, goals)
	}
}
