package config

import (
	"fmt"
	"math"
	"net/url"
	"slices"
	"strings"
	"time"

	"flymesh/leader/alert"
	"flymesh/leader/burn"
	"flymesh/leader/decide"
)

// The environment variables that hold what alerts are sent with. They are
// never in the file.
const (
	PagerDutyKeyEnv = "FLYMESH_PAGERDUTY_KEY" // routing key of the Events API v2; without it PagerDuty is not told
	WebhookKeyEnv   = "FLYMESH_WEBHOOK_KEY"   // key of the signature; must be there where webhook is
)

// Alerts is the [alerts] table: who is told, and when silence is news.
type Alerts struct {
	Alertmanager  []string      // base URLs; every instance of a cluster
	PagerDutyURL  string        // pagerduty_url
	Changes       bool          // pagerduty_changes: tell PagerDuty of scaling steps
	Webhook       string        // URL; empty: none
	NoDataAfter   time.Duration // no_data_after: a rule about which nothing is known for so long shows it
	NoLeaderAfter time.Duration // no_leader_after: without a leader for so long every agent tells people itself
}

func readAlerts(t *table, d Alerts) Alerts {
	a := Alerts{
		Alertmanager:  t.list("alertmanager", nil, "[]"),
		PagerDutyURL:  t.str("pagerduty_url", d.PagerDutyURL),
		Changes:       t.flag("pagerduty_changes", d.Changes),
		Webhook:       t.str("webhook", d.Webhook),
		NoDataAfter:   t.span("no_data_after", d.NoDataAfter, 0, 24*time.Hour),
		NoLeaderAfter: t.span("no_leader_after", d.NoLeaderAfter, 0, time.Hour),
	}
	for i, u := range a.Alertmanager {
		at := fmt.Sprintf("alertmanager[%d]", i)
		if checkReceiver(t, at, u); slices.Index(a.Alertmanager, u) != i {
			t.f.bad(t.at(at), "", "is listed twice")
		}
	}
	checkReceiver(t, "pagerduty_url", a.PagerDutyURL)
	if a.Changes && a.ChangeURL() == "" {
		t.f.bad(t.at("pagerduty_url"), "", "must end in %s, or pagerduty_changes be false: the address of change events follows from it", pagerDutyPath)
	}
	if a.Webhook != "" {
		checkReceiver(t, "webhook", a.Webhook)
	}
	return a
}

const pagerDutyPath = "/v2/enqueue"

// ChangeURL is where PagerDuty takes change events; empty: it cannot be told.
func (a Alerts) ChangeURL() string {
	if base, ok := strings.CutSuffix(a.PagerDutyURL, pagerDutyPath); ok {
		return base + "/v2/change/enqueue"
	}
	return ""
}

// checkReceiver notes what is wrong with a URL. It is not shown: it may hold a
// password.
func checkReceiver(t *table, key, raw string) {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		t.f.bad(t.at(key), "", `must be an http or https URL, e.g. "http://alertmanager.internal:9093"`)
	case u.User != nil:
		t.f.bad(t.at(key), "", "must not hold a user or password: this file is in every image")
	}
}

// defaultAlerts are the pages of the strategy and its targets, as far as one
// of the service's probes supplies the metric.
func defaultAlerts(t Targets, sources map[decide.Metric]bool) (page, warn []string) {
	if sources[decide.P95] {
		page = append(page, "p95 > 2.5s for 5m")
		if t.P95 > 0 {
			warn = append(warn, "p95 > "+shortDuration(t.P95)+" for 5m")
		}
	}
	if sources[decide.ErrorRate] {
		page = append(page, "error_rate > 5% for 2m")
		if t.ErrorRate > 0 {
			warn = append(warn, "error_rate > "+percent(t.ErrorRate)+" for 5m")
		}
	}
	if t.CPU > 0 {
		warn = append(warn, "cpu > "+percent(t.CPU)+" for 5m")
	}
	if t.Memory > 0 {
		warn = append(warn, "memory > "+percent(t.Memory)+" for 5m")
	}
	if sources[decide.Queue] && t.Queue > 0 {
		warn = append(warn, "queue > "+literal(t.Queue)+" for 5m")
	}
	return page, warn
}

func percent(ratio float64) string { return literal(math.Round(1e6*ratio)/1e4) + "%" }

// AlertRules returns everything that people are told of: the services' own
// rules, and what the mesh says of them and of itself.
func (c *Config) AlertRules() []alert.Rule {
	rules := alert.OfMesh()
	for _, s := range c.Services {
		rules = append(rules, alert.Metrics(s.Name, alert.Page, s.Page)...)
		rules = append(rules, alert.Metrics(s.Name, alert.Warn, s.Warn)...)
		for _, g := range s.goals() {
			rules = append(rules, alert.Burns(g)...)
		}
		rules = append(rules, alert.OfService(s.Name)...)
		if slices.ContainsFunc(s.Probes, func(p Probe) bool { return p.Type == probeRedis }) {
			rules = append(rules, alert.OfRedis(s.Name))
		}
	}
	for _, j := range c.Jobs {
		rules = append(rules, alert.OfJob(j.Name, j.Service))
	}
	return rules
}

// Goals are the targets whose burn rates are watched.
func (c *Config) Goals() (all []burn.Goal) {
	for _, s := range c.Services {
		all = append(all, s.goals()...)
	}
	return all
}

func (s Service) goals() (all []burn.Goal) {
	for _, name := range s.BurnRates {
		g := burn.Goal{Service: s.Name, Target: burn.Target(name), Allowed: s.Targets.ErrorRate, Least: float64(s.Policy.MinSamples)}
		if g.Target == burn.Latency {
			g.Allowed, g.Slow = burn.SlowAllowed, s.Targets.P95.Seconds()
		}
		all = append(all, g)
	}
	return all
}

// readBurnRates reads the targets whose burn rates are watched: each must be
// there and have a probe.
func readBurnRates(t *table, g Targets, sources map[decide.Metric]bool) []string {
	names := t.list("burn_rates", nil, "[]")
	for i, name := range names {
		at, m := fmt.Sprintf("%s[%d]", t.at("burn_rates"), i), decide.Metric(name)
		switch {
		case m != decide.ErrorRate && m != decide.P95:
			t.f.bad(at, literal(name), `must be "error_rate" or "p95"`)
		case slices.Index(names, name) != i:
			t.f.bad(at, literal(name), "is listed twice")
		case m == decide.ErrorRate && g.ErrorRate == 0, m == decide.P95 && g.P95 == 0:
			t.f.bad(at, literal(name), "targets.%s is 0: without a target nothing is used up", name)
		case !sources[m]:
			t.f.bad(at, literal(name), "no probe of this service supplies %s; %s", m, sourceAdvice(m))
		}
	}
	return names
}

// checkAlertKeys says which keys the environment lacks.
func checkAlertKeys(c *Config, getenv func(string) string) Problems {
	if c.Alerts.Webhook != "" && getenv(WebhookKeyEnv) == "" {
		return Problems{envProblem(WebhookKeyEnv, "is not set: alerts.webhook is signed with it (fly secrets set %s=...)", WebhookKeyEnv)}
	}
	return nil
}
