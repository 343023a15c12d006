// Package n8n measures n8n in queue mode (2.x): a main, which takes webhooks,
// or a worker, which runs executions.
//
// n8n's own readiness says less than it seems to. A main answers it while
// webhooks are still 404, while Redis is down and every webhook hangs, and,
// before the migrations end, answers any other path 200 "n8n is starting up".
// So a main is ready when /healthz/readiness is 200, Redis answers, and the
// canary webhook, where one is named, is registered. A worker is ready when its
// own health port says so (it asks the database and Redis); that it drains, it
// does not say: the agent knows that.
//
// Workers export neither queue depth nor durations: both kinds read the queue
// from Redis, exactly and without the delay of n8n's gauges. The sources are
// n8n_webhook_request_duration_seconds (needs N8N_METRICS=true and
// N8N_METRICS_INCLUDE_WEBHOOK_METRICS=true; includes the wait in the queue),
// n8n_workflow_execution_duration_seconds (main only, excludes the wait) and
// n8n_nodejs_eventloop_lag_p99_seconds (0.010 when idle). The targets 1.5 s and
// 30 s are bucket edges of these histograms, so a p95 is on the right side of
// them; in between it is interpolated.
//
// n8n never sees that a client gave up: the webhook histogram lacks it. The
// canary's own timeouts are counted as errors; agent/proxy counts everybody's.
package n8n

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"flymesh/probes"
	"flymesh/probes/bull"
	"flymesh/probes/prom"
	"flymesh/probes/redis"
	"flymesh/probes/report"
)

// Role is what a machine does in queue mode.
type Role string

// The roles.
const (
	Main   Role = "main"
	Worker Role = "worker"
)

// Options say where n8n and its Redis are.
type Options struct {
	Name   string // default "n8n"
	Role   Role   // default Main
	URL    string // of the HTTP port (main) or the health port (worker), without a path
	Redis  redis.Server
	Prefix string // of the Bull queue's keys, default bull.DefaultPrefix
	Window time.Duration

	// Webhooks are the paths whose requests count as the machine's requests,
	// as in /webhook/PATH; none: all of them. Of a main.
	Webhooks []string
	// Canary is the path of a webhook that is asked at each probe, as
	// "/webhook/ping"; it should run a workflow that does nothing. "": none.
	Canary string
	// Elsewhere leaves requests, errors and latency to another source.
	Elsewhere bool
}

// N8N is the prober. It is used from one goroutine.
type N8N struct {
	options  Options
	client   *http.Client
	queue    *bull.Bull
	metrics  *prom.Prom
	timeouts []time.Time // of the canary, in the window
	window   time.Duration
}

// New checks the options and returns the prober.
func New(o Options) (*N8N, error) {
	if o.Name == "" {
		o.Name = "n8n"
	}
	if o.Role == "" {
		o.Role = Main
	}
	n := &N8N{options: o, window: o.Window, client: &http.Client{
		Transport:     &http.Transport{},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	if n.window == 0 {
		n.window = time.Minute
	}
	n.options.URL = strings.TrimSuffix(o.URL, "/")
	u, err := url.Parse(n.options.URL)
	switch {
	case err != nil:
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Path != "":
		err = errors.New("want http://host:port without a path")
	case o.Role != Main && o.Role != Worker:
		err = fmt.Errorf("role %q is neither main nor worker", o.Role)
	case o.Canary != "" && !strings.HasPrefix(o.Canary, "/"):
		err = fmt.Errorf("canary %q does not begin with /", o.Canary)
	}
	if err == nil {
		n.queue, err = bull.New(bull.Options{Server: o.Redis, Prefix: o.Prefix})
	}
	if err == nil {
		n.metrics, err = prom.New(n.selectors())
	}
	if err != nil {
		return nil, fmt.Errorf("make n8n probe %q: %w", o.URL, err)
	}
	return n, nil
}

// selectors are what /metrics is read for.
func (n *N8N) selectors() prom.Options {
	o := prom.Options{
		URL: n.options.URL + "/metrics", Window: n.options.Window,
		Gauges: []prom.Named{{Name: "event_loop_lag_p99_seconds", Selector: "n8n_nodejs_eventloop_lag_p99_seconds"}},
	}
	if n.options.Role != Main {
		return o
	}
	o.P95 = []prom.Named{{Name: "execution", Selector: "n8n_workflow_execution_duration_seconds"}}
	if n.options.Elsewhere {
		return o
	}
	paths := ""
	if len(n.options.Webhooks) > 0 {
		quoted := make([]string, len(n.options.Webhooks))
		for i, p := range n.options.Webhooks {
			quoted[i] = regexp.QuoteMeta(strings.TrimPrefix(p, "/"))
		}
		paths = `webhook_path=~"` + strings.Join(quoted, "|") + `"`
	}
	const family = "n8n_webhook_request_duration_seconds"
	o.Latency = family + "{" + paths + "}"
	o.Requests = family + "_count{" + paths + "}"
	if paths != "" {
		paths += ","
	}
	o.Errors = family + "_count{" + paths + `status_code=~"5.."}`
	return o
}

var _ probes.Prober = (*N8N)(nil)

// Name returns the name of the probe.
func (n *N8N) Name() string { return n.options.Name }

// Fields returns the queue, and of a main its requests.
func (n *N8N) Fields() probes.Field { return probes.Queue | n.metrics.Fields() }

// Probe asks Redis, then n8n. What one of them does not answer leaves the rest.
func (n *N8N) Probe(ctx context.Context) (probes.Reading, error) {
	first, cancel := half(ctx)
	m, err := n.queue.Probe(first)
	cancel()
	redisOK := err == nil && *m.Ready
	if err != nil {
		m = probes.NotReady(err.Error())
		m.Problems = []string{"queue: " + err.Error()}
	}

	ready, why := n.readiness(ctx)
	if ready && redisOK && n.options.Canary != "" && n.options.Role == Main {
		ready, why = n.canary(ctx, &m)
	}
	if !ready {
		m.Ready, m.Reason = &ready, why // nearer than what Redis says
	}
	n.measure(ctx, &m)
	n.addTimeouts(time.Now(), &m)
	return m, nil
}

// addTimeouts counts the canaries of the window that were given up: n8n's own
// counts lack such requests.
func (n *N8N) addTimeouts(now time.Time, m *probes.Reading) {
	for len(n.timeouts) > 0 && now.Sub(n.timeouts[0]) >= n.window {
		n.timeouts = n.timeouts[1:]
	}
	if t := float64(len(n.timeouts)); t > 0 && m.Errors.OK && m.Requests.OK {
		m.Errors, m.Requests = report.Of(m.Errors.X+t), report.Of(m.Requests.X+t)
	}
}

// measure adds what /metrics says.
func (n *N8N) measure(ctx context.Context, m *probes.Reading) {
	s, err := n.metrics.Probe(ctx)
	if err != nil {
		m.Problems = append(m.Problems, err.Error())
		return
	}
	m.Latency, m.Requests, m.Errors = s.Latency, s.Requests, s.Errors
	m.Problems = append(m.Problems, s.Problems...)
	m.Facts = append(m.Facts, s.Facts...)
}

// canary asks a webhook as a client would. A 404 means that it is not
// registered (yet), which n8n's readiness does not tell. It needs a worker to
// be answered: while jobs wait, an answer that does not come is the queue's
// fault, not this machine's.
func (n *N8N) canary(ctx context.Context, m *probes.Reading) (ready bool, why string) {
	status, body, err := n.get(ctx, http.MethodPost, n.options.Canary)
	if errors.Is(err, context.DeadlineExceeded) {
		n.timeouts = append(n.timeouts, time.Now())
	}
	behind := m.Queue.OK && m.Queue.X > 0
	switch {
	case err != nil && behind:
		m.Problems = append(m.Problems, fmt.Sprintf("canary: no answer while %.0f jobs wait", m.Queue.X))
		return true, ""
	case err != nil:
		return false, "canary webhook: " + err.Error()
	case startingUp(body):
		return false, "canary webhook: n8n is starting up"
	case status == http.StatusNotFound:
		return false, "canary webhook " + n.options.Canary + " is not registered"
	case status >= 500:
		return false, fmt.Sprintf("canary webhook: status %d", status)
	}
	return true, ""
}

func (n *N8N) readiness(ctx context.Context) (ready bool, why string) {
	status, body, err := n.get(ctx, http.MethodGet, "/healthz/readiness")
	switch {
	case err != nil:
		return false, "readiness: " + err.Error()
	case startingUp(body):
		return false, "n8n is starting up"
	case status != http.StatusOK:
		return false, fmt.Sprintf("readiness: status %d", status)
	}
	return true, ""
}

// startingUp recognises the page that n8n serves on any path, with status 200,
// until its migrations are done.
func startingUp(body string) bool { return strings.Contains(body, "n8n is starting up") }
