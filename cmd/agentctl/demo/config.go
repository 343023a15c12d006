package demo

import (
	"bytes"
	"fmt"
	"text/template"
	"time"

	"flymesh/cmd/agentctl/demoapp"
)

// pace is what the demo shortens. Thresholds, caps and guards are the real
// ones: only time runs faster.
type pace struct {
	ReportEvery time.Duration
	UpFor       time.Duration
	DownFor     time.Duration
	Cooldown    time.Duration
	Profile     string
}

// fastPace lets two additions and two removals happen in little more than a
// minute. The "for" of a rule covers four reports and more, so that one odd
// sample decides nothing.
var fastPace = pace{ReportEvery: time.Second, UpFor: 4 * time.Second, DownFor: 6 * time.Second, Cooldown: 9 * time.Second, Profile: "default"}

// Shortened is one duration of the strategy and what the demo makes of it.
type Shortened struct {
	What string `json:"what"`
	Real string `json:"real"`
	Demo string `json:"demo"`
}

func (p pace) shortened() []Shortened {
	return []Shortened{
		{"a machine reports", "every 5s", "every " + short(p.ReportEvery)},
		{"latency, errors and requests cover", "the last minute", "the last " + short(12*p.ReportEvery)},
		{"a rule for one machine more holds for", "3m", short(p.UpFor)},
		{"a rule for one machine less holds for", "10m", short(p.DownFor)},
		{"no new decision on a service for", "5m", short(p.Cooldown)},
		{"a machine starts, is ready, drains within", "2m, 5m, 30s", "20s, 20s, 12s"},
	}
}

func short(d time.Duration) string {
	if d%time.Second == 0 {
		return fmt.Sprintf("%ds", d/time.Second)
	}
	return d.String()
}

// meshFile is the demo's mesh.toml: four apps of one machine each, of which
// n8n and embeddings may grow to three.
var meshFile = template.Must(template.New("mesh.toml").Parse(`# The mesh of the demo. The rules are those of the strategy; only their
# durations are shorter.
[mesh]
name = "demo"
anchor_app = "demo-redis"
report_every = "{{.ReportEvery}}"
profile = "{{.Profile}}"
discover = ["api"]
start_timeout = "20s"
ready_timeout = "20s"
drain_timeout = "12s"

[service.n8n]
kind = "n8n"
app = "demo-n8n"
vote = true
baseline = 1
max = 3
pinned = true
up = ["cpu > 80% for {{.UpFor}}", "p95 > 1.5s for {{.UpFor}}", "queue > 10 for {{.UpFor}}"]
down = ["cpu < 40% for {{.DownFor}}", "p95 < 800ms for {{.DownFor}}", "queue < 10 for {{.DownFor}}"]
cooldown = "{{.Cooldown}}"

[[service.n8n.probe]]
type = "host"
every = "{{.ReportEvery}}"
timeout = "{{.ReportEvery}}"

[[service.n8n.probe]]
type = "http"
url = "http://$FLY_PRIVATE_IP:8080/healthz/readiness"
every = "{{.ReportEvery}}"
timeout = "{{.ReportEvery}}"

[[service.n8n.probe]]
type = "prometheus"
url = "http://$FLY_PRIVATE_IP:8080/metrics"
latency = "n8n_webhook_request_duration_seconds"
errors = 'n8n_webhook_request_duration_seconds_count{status_code=~"5.."}'
queue = "n8n_scaling_mode_queue_jobs_waiting"
in_flight = "n8n_scaling_mode_queue_jobs_active"
every = "{{.ReportEvery}}"
timeout = "{{.ReportEvery}}"

[service.embeddings]
kind = "embeddings"
app = "demo-embeddings"
vote = true
gate = "leader"
baseline = 1
max = 3
up = ["cpu > 80% for {{.UpFor}}", "p95 > 1.5s for {{.UpFor}}", "queue > 20 for {{.UpFor}}"]
down = ["cpu < 40% for {{.DownFor}}", "p95 < 800ms for {{.DownFor}}", "queue < 20 for {{.DownFor}}"]
cooldown = "{{.Cooldown}}"

[[service.embeddings.probe]]
type = "host"
every = "{{.ReportEvery}}"
timeout = "{{.ReportEvery}}"

[[service.embeddings.probe]]
type = "http"
url = "http://$FLY_PRIVATE_IP:8080/health"
every = "{{.ReportEvery}}"
timeout = "{{.ReportEvery}}"

[[service.embeddings.probe]]
type = "prometheus"
url = "http://$FLY_PRIVATE_IP:8080/metrics"
latency = "te_request_duration"
errors = "te_request_failure"
queue = "te_queue_size"
in_flight = "te_inflight_requests"
every = "{{.ReportEvery}}"
timeout = "{{.ReportEvery}}"

[service.redis]
kind = "redis"
app = "demo-redis"
vote = true
baseline = 1
pinned = true
cooldown = "{{.Cooldown}}"

[[service.redis.probe]]
type = "host"
every = "{{.ReportEvery}}"
timeout = "{{.ReportEvery}}"

[[service.redis.probe]]
type = "redis"
addr = "$FLY_PRIVATE_IP:8080"
every = "{{.ReportEvery}}"
timeout = "{{.ReportEvery}}"

[service.web]
kind = "web"
app = "demo-web"
baseline = 1
max = 1
cooldown = "{{.Cooldown}}"

[[service.web.probe]]
type = "host"
every = "{{.ReportEvery}}"
timeout = "{{.ReportEvery}}"

[[service.web.probe]]
type = "http"
url = "http://$FLY_PRIVATE_IP:8080/"
body = "{{.Marker}}"
every = "{{.ReportEvery}}"
timeout = "{{.ReportEvery}}"
`))

func (p pace) config() ([]byte, error) {
	var b bytes.Buffer
	err := meshFile.Execute(&b, map[string]string{
		"ReportEvery": short(p.ReportEvery), "UpFor": short(p.UpFor), "DownFor": short(p.DownFor),
		"Cooldown": short(p.Cooldown), "Profile": p.Profile, "Marker": demoapp.Marker,
	})
	if err != nil {
		return nil, fmt.Errorf("write mesh.toml: %w", err)
	}
	return b.Bytes(), nil
}
