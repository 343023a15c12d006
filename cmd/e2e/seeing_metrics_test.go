package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
)

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

var metricName = regexp.MustCompile(`\b(?:flymesh|process|go)_[a-z0-9_]+\b`)

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

// exported holds that every metric that a dashboard or rule names is there.
// Two are not before something has gone wrong or a limit is set.
func (m *mesh) exported() {
	m.t.Helper()
	var all bytes.Buffer
	for _, text := range m.metrics() {
		all.Write(text)
	}
	rare := []string{"flymesh_leader_notices_total", "flymesh_leader_service_budget_limit_seconds", "flymesh_leader_alerts",
		// No probe of this fleet measures requests.
		"flymesh_leader_service_p95_seconds", "flymesh_leader_service_error_ratio", "flymesh_leader_service_queue_depth", "flymesh_leader_service_in_flight_requests"}
	files, err := filepath.Glob("../../deploy/grafana/*.json")
	if err != nil {
		m.t.Fatal(err)
	}
	named := 0
	for _, f := range append(files, "../../deploy/prometheus/rules.yml") {
		b, err := os.ReadFile(f)
		if err != nil {
			m.t.Fatal(err)
		}
		for _, name := range metricName.FindAllString(string(b), -1) {
			named++
			if !slices.Contains(rare, name) && !regexp.MustCompile(`(?m)^`+name+`[{ ]`).Match(all.Bytes()) {
				m.t.Errorf("%s names %s, which no machine exports", filepath.Base(f), name)
			}
		}
	}
	if named < 60 {
		m.t.Errorf("only %d metrics are named: nothing was read", named)
	}
}
