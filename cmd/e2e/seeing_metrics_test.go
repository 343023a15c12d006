package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// measured is the usual mesh where all of service api is measured, a limit is
// set and somebody is told: nothing that dashboards show is absent.
func measured(t *testing.T) string {
	t.Helper()
	app := httptest.NewServer(traffic())
	t.Cleanup(app.Close)
	t.Setenv("FLYMESH_WEBHOOK_KEY", "key-of-the-test")
	hook := newInbox(t, hookLine, "key-of-the-test")
	return strings.Replace(config, "[service.api]", fmt.Sprintf(`[alerts]
webhook = %q
[[service.api.probe]]
type = "prometheus"
url = %q
latency = "http_request_duration_seconds"
errors = 'http_request_duration_seconds_count{code="500"}'
queue = "waiting"
in_flight = "in_flight"
scope = "service"
[job.Report]
service = "cache"
command = ["true"]
[service.api]
budget_machine_hours = 1000
page = []
warn = ["queue > 2 for 2s"]`, hook.URL, app.URL), 1)
}

// traffic is the metrics of an app that is asked 20 times a second.
func traffic() http.Handler {
	reg := prometheus.NewRegistry()
	f := promauto.With(reg)
	took := f.NewHistogramVec(prometheus.HistogramOpts{Name: "http_request_duration_seconds", Buckets: prometheus.DefBuckets}, []string{"code"})
	f.NewGauge(prometheus.GaugeOpts{Name: "waiting"}).Set(4)
	f.NewGauge(prometheus.GaugeOpts{Name: "in_flight"}).Set(3)
	took.WithLabelValues("500")
	began, asked, next := time.Now(), 0, promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
	var mu sync.Mutex // guards asked
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		for now := int(20 * time.Since(began).Seconds()); asked < now; asked++ {
			code := "200"
			if asked%50 == 0 {
				code = "500"
			}
			took.WithLabelValues(code).Observe(0.2 + 0.15*math.Sin(float64(asked)/100) + 0.02*float64(asked%20))
		}
		mu.Unlock()
		next.ServeHTTP(w, r)
	})
}

// metrics scrapes every machine.
func (m *mesh) metrics() map[string][]byte {
	m.t.Helper()
	out := map[string][]byte{}
	for _, x := range m.running() {
		b, err := client(x).Metrics(m.t.Context())
		if err != nil {
			m.t.Fatalf("scrape %s: %v", x.ID, err)
		}
		out[x.Service+" "+x.ID] = b
	}
	return out
}

// lint has promtool check what every machine exports.
func (m *mesh) lint(tool string) {
	m.t.Helper()
	for who, text := range m.metrics() {
		cmd := exec.Command(tool, "check", "metrics")
		cmd.Stdin = bytes.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
			m.t.Errorf("metrics of %s: %v\n%s", who, err, out)
		}
	}
}

// opID is what an operation's ID looks like.
var opID = regexp.MustCompile(`^[0-9]+-[0-9]+-[0-9]+$`)

// identities holds that series are named after what stays (machines, services,
// closed sets) and not after boots or operations, that every family is in
// docs/metrics.md as it is there, and says how many series there are.
func (m *mesh) identities() {
	m.t.Helper()
	var boots []string
	for _, x := range m.running() {
		if r, err := client(x).Raft(m.t.Context()); err == nil {
			for _, v := range r.Members {
				boots = append(boots, v.Boot)
			}
		}
	}
	if len(boots) == 0 {
		m.t.Fatal("no boot is known")
	}
	seen := map[string]family{}
	for who, text := range m.metrics() {
		p := expfmt.NewTextParser(model.UTF8Validation)
		families, err := p.TextToMetricFamilies(bytes.NewReader(text))
		if err != nil {
			m.t.Fatalf("metrics of %s: %v", who, err)
		}
		by := map[string]int{}
		for name, f := range families {
			part, _, _ := strings.Cut(name, "_")
			for _, x := range f.Metric {
				by[part] += max(1, len(x.GetHistogram().GetBucket())+2*min(1, len(x.GetHistogram().GetBucket())), len(x.GetSummary().GetQuantile())+2*min(1, len(x.GetSummary().GetQuantile())))
				for _, l := range x.Label {
					if slices.Contains(boots, l.GetValue()) || opID.MatchString(l.GetValue()) {
						m.t.Errorf("%s: label %s=%q of %s is new with each boot or step", who, l.GetName(), l.GetValue(), name)
					}
				}
			}
			if part == "flymesh" {
				seen[name] = merged(seen[name], f)
			}
		}
		total := 0
		for _, n := range by {
			total += n
		}
		m.t.Logf("%-30s %4d series, %d bytes: %v", who, total, len(text), by)
	}
	m.documented(seen)
}

// family is what the documents say of a metric.
type family struct{ kind, labels string }

func merged(old family, f *dto.MetricFamily) family {
	names := map[string]bool{}
	for _, n := range strings.Split(old.labels, ", ") {
		names[n] = n != ""
	}
	for _, x := range f.Metric {
		for _, l := range x.Label {
			names[l.GetName()] = true
		}
	}
	maps.DeleteFunc(names, func(_ string, there bool) bool { return !there })
	return family{strings.ToLower(f.GetType().String()), strings.Join(slices.Sorted(maps.Keys(names)), ", ")}
}

var docLine = regexp.MustCompile("(?m)^\\| `(flymesh_[a-z0-9_]+)` \\| ([a-z]+) \\| ([^|]*) \\|")

// rare are the families that a mesh without faults, or without an app that its
// probes know, does not show.
var rare = []string{"flymesh_probe_fact", "flymesh_gossip_dropped_total", "flymesh_raftstore_refused_connections_total", "flymesh_raftstore_restarts_total",
	"flymesh_api_refused_connections_total"}

// documented holds families against docs/metrics.md, in both directions.
func (m *mesh) documented(seen map[string]family) {
	m.t.Helper()
	b, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		m.t.Fatal(err)
	}
	docs := map[string]family{}
	for _, x := range docLine.FindAllStringSubmatch(string(b), -1) {
		labels := strings.Split(strings.NewReplacer("`", "", " ", "").Replace(x[3]), ",")
		slices.Sort(labels)
		docs[x[1]] = family{x[2], strings.Trim(strings.Join(labels, ", "), "-")}
	}
	for _, name := range slices.Sorted(maps.Keys(seen)) {
		if docs[name] != seen[name] {
			m.t.Errorf("docs/metrics.md: %s is a %s with labels (%s); the document says %q", name, seen[name].kind, seen[name].labels, docs[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(docs)) {
		if _, ok := seen[name]; !ok && !slices.Contains(rare, name) {
			m.t.Errorf("docs/metrics.md names %s, which no machine exports", name)
		}
	}
}

// prom is a real Prometheus with the rules of deploy.
type prom struct {
	t            *testing.T
	url, targets string
}

func startPrometheus(t *testing.T) *prom {
	t.Helper()
	program := need(t, "prometheus", "prometheus")
	dir, addr := t.TempDir(), port(t)
	p := &prom{t, "http://" + addr, filepath.Join(dir, "targets.json")}
	rules, err := filepath.Abs("../../deploy/prometheus/rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "prometheus.yml")
	text := fmt.Sprintf("global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\nrule_files: [%q]\n"+
		"scrape_configs: [{job_name: flymesh, file_sd_configs: [{files: [%q], refresh_interval: 1s}]}]\n", rules, p.targets)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--config.file="+file, "--storage.tsdb.path="+dir, "--web.listen-address="+addr, "--log.level=warn")
	runBeside(t, cmd)
	return p
}

// follow has Prometheus scrape every machine that runs, and waits until all of
// them, and nothing else, are up.
func (p *prom) follow(m *mesh) {
	p.t.Helper()
	var targets []string
	for _, x := range m.running() {
		targets = append(targets, x.PrivateIP+":9470")
	}
	b, err := json.Marshal([]any{map[string]any{"targets": targets}})
	if err == nil {
		err = os.WriteFile(p.targets+".new", b, 0o600)
	}
	if err == nil { // it must not read half of it
		err = os.Rename(p.targets+".new", p.targets)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	m.until("Prometheus scrapes every machine", 30*time.Second, func() bool {
		n, err := p.query(fmt.Sprintf("sum(up) == %d and count(up) == %[1]d and count(flymesh_agent_info) == %[1]d", len(targets)))
		return err == nil && n == 1
	})
}

// query evaluates an expression now and returns how many series come of it.
func (p *prom) query(expr string) (int, error) {
	var out struct {
		Error string
		Data  struct{ Result []json.RawMessage }
	}
	if err := p.ask("/api/v1/query?query="+url.QueryEscape(expr), &out); err != nil {
		return 0, err
	}
	if out.Error != "" {
		return 0, fmt.Errorf("query %s: %s", expr, out.Error)
	}
	return len(out.Data.Result), nil
}

func (p *prom) ask(path string, v any) error {
	resp, err := http.Get(p.url + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(v)
}

// answers has Prometheus evaluate every expression of every dashboard and rule
// on what it has scraped: none is wrong, and none comes back empty.
func (p *prom) answers(m *mesh) {
	p.t.Helper()
	files, err := filepath.Glob("../../deploy/grafana/*.json")
	if err != nil || len(files) == 0 {
		p.t.Fatalf("no dashboards: %v", err)
	}
	var exprs []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		var d struct {
			Panels []struct{ Targets []struct{ Expr string } }
		}
		if err == nil {
			err = json.Unmarshal(b, &d)
		}
		if err != nil {
			p.t.Fatalf("%s: %v", f, err)
		}
		for _, x := range d.Panels {
			for _, g := range x.Targets {
				exprs = append(exprs, strings.NewReplacer("$__rate_interval", "1m", "$service", ".*").Replace(g.Expr))
			}
		}
	}
	names := map[string]bool{}
	for _, e := range exprs {
		m.until("an answer to "+e, 10*time.Second, func() bool {
			n, err := p.query(e)
			if err != nil {
				p.t.Fatal(err)
			}
			return n > 0
		})
		for _, name := range metricName.FindAllString(e, -1) {
			names[name] = true
		}
	}
	if len(exprs) < 30 {
		p.t.Errorf("only %d expressions: nothing was read", len(exprs))
	}
	rules := p.rules(m, names)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if n, err := p.query(name); err != nil || n == 0 && !slices.Contains(rare, name) {
			p.t.Errorf("a dashboard or rule names %s, of which Prometheus has %d series (%v)", name, n, err)
		}
	}
	var series struct {
		Data struct{ HeadStats struct{ NumSeries int } }
	}
	if err := p.ask("/api/v1/status/tsdb", &series); err != nil {
		p.t.Error(err)
	}
	p.t.Logf("Prometheus: %d expressions of %d dashboards have answers, %d rules are evaluated, %d metrics named; %d series of %d machines",
		len(exprs), len(files), rules, len(names), series.Data.HeadStats.NumSeries, len(m.running()))
}

// rules holds that every rule is evaluated without an error, and notes the
// metrics that they name.
func (p *prom) rules(m *mesh, names map[string]bool) (n int) {
	p.t.Helper()
	var out struct {
		Data struct {
			Groups []struct {
				Rules []struct{ Name, Query, Health, LastError string }
			}
		}
	}
	m.until("every rule is evaluated", 10*time.Second, func() bool {
		n = 0
		if err := p.ask("/api/v1/rules", &out); err != nil {
			p.t.Fatal(err)
		}
		for _, g := range out.Data.Groups {
			for _, r := range g.Rules {
				if r.Health == "err" {
					p.t.Fatalf("rule %s: %s", r.Name, r.LastError)
				}
				if n++; r.Health != "ok" {
					return false
				}
				for _, name := range metricName.FindAllString(r.Query, -1) {
					names[name] = true
				}
			}
		}
		return n > 0
	})
	return n
}

var metricName = regexp.MustCompile(`\b(?:flymesh|process|go)_[a-z0-9_]+\b`)
