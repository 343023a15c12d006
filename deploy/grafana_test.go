package deploy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// promtool returns the program; without it a test is skipped, in CI it fails.
func promtool(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("promtool")
	switch {
	case err == nil:
		return path
	case os.Getenv("CI") == "true":
		t.Fatal("promtool is not on the PATH: apt-get install prometheus")
	}
	t.Skip("SKIPPED: promtool is not on the PATH (apt-get install prometheus)")
	return ""
}

func runTool(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(args[1:], " "), err, out)
	}
}

func TestPrometheusRules(t *testing.T) {
	tool := promtool(t)
	runTool(t, "prometheus", tool, "check", "rules", "rules.yml")
	runTool(t, "prometheus", tool, "test", "rules", "rules_test.yml", "burn_test.yml")
}

// TestDashboards has promtool parse every expression of every dashboard, as
// recording rules, and checks the shape that Grafana asks for.
func TestDashboards(t *testing.T) {
	files, err := filepath.Glob("grafana/*.json")
	if err != nil || len(files) < 2 {
		t.Fatalf("%d dashboards, %v", len(files), err)
	}
	var rules bytes.Buffer
	rules.WriteString("groups:\n- name: dashboards\n  rules:\n")
	total := 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var d struct {
			UID, Title string
			Panels     []struct {
				ID      int
				Title   string
				GridPos struct{ X, Y, W, H int }
			}
		}
		if err := json.Unmarshal(b, &d); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		ids := map[int]bool{}
		for _, p := range d.Panels {
			if ids[p.ID] || p.Title == "" || p.GridPos.X+p.GridPos.W > 24 || p.GridPos.W == 0 {
				t.Errorf("%s: panel %d %q has a wrong ID, title or place", f, p.ID, p.Title)
			}
			ids[p.ID] = true
		}
		if d.UID == "" || d.Title == "" || len(d.Panels) == 0 {
			t.Errorf("%s: uid %q, title %q, %d panels", f, d.UID, d.Title, len(d.Panels))
		}
		var v any
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatal(err)
		}
		for _, e := range exprs(v) {
			// What Grafana fills in itself.
			e = strings.NewReplacer("$__rate_interval", "1m", "$service", ".*").Replace(e)
			q, err := json.Marshal(e) // a JSON string is a YAML string
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&rules, "  - record: dashboard:%d\n    expr: %s\n", total, q)
			total++
		}
	}
	if total < 40 {
		t.Errorf("only %d expressions found", total)
	}
	path := filepath.Join(t.TempDir(), "dashboards.yml")
	if err := os.WriteFile(path, rules.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	runTool(t, ".", promtool(t), "check", "rules", "--lint=none", path)
}

// exprs finds every expression in a dashboard.
func exprs(v any) (out []string) {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			if s, ok := x.(string); ok && k == "expr" {
				out = append(out, s)
			} else {
				out = append(out, exprs(x)...)
			}
		}
	case []any:
		for _, x := range v {
			out = append(out, exprs(x)...)
		}
	}
	return out
}
