// Package docs has no code, only the tests that hold pages against what the
// code says.
package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"flymesh/agent/config"
	"flymesh/leader/alert"
)

// speaks are the parts that log: the agent and all that it is made of.
var speaks = []string{"../agent", "../cmd/agent", "../leader", "../probes", "../raftstore"}

// logs says which arguments of slog's methods begin the keys.
var logs = map[string]int{"Debug": 1, "Info": 1, "Warn": 1, "Error": 1, "Log": 3, "With": 0}

// logKeys finds the keys of all log lines, and where the first of each is.
func logKeys(t *testing.T) map[string]string {
	t.Helper()
	keys := map[string]string{}
	walk := func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || d.Name() == "flytest") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			c, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			s, ok := c.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			from, ok := logs[s.Sel.Name]
			if !ok || !isLogger(s.X) {
				return true
			}
			for i := from; i < len(c.Args); i += 2 {
				if l, ok := c.Args[i].(*ast.BasicLit); ok && l.Kind == token.STRING {
					k, _ := strconv.Unquote(l.Value)
					keys[k] = set.Position(l.Pos()).String()
				} else if c.Ellipsis == token.NoPos {
					t.Errorf("%s: a key that is no literal", set.Position(c.Args[i].Pos()))
				}
			}
			return true
		})
		return nil
	}
	for _, top := range speaks {
		if err := filepath.WalkDir(top, walk); err != nil {
			t.Fatal(err)
		}
	}
	return keys
}

// isLogger goes by the name: log, a.log, o.Logger, or what slog.New returns.
func isLogger(x ast.Expr) bool {
	switch x := x.(type) {
	case *ast.Ident:
		return strings.Contains(strings.ToLower(x.Name), "log")
	case *ast.SelectorExpr:
		return strings.Contains(strings.ToLower(x.Sel.Name), "log")
	case *ast.CallExpr:
		s, ok := x.Fun.(*ast.SelectorExpr)
		return ok && (isLogger(s.X) && s.Sel.Name == "With" || s.Sel.Name == "New" && isLogger(s.X))
	}
	return false
}

var quoted = regexp.MustCompile("`([a-z_0-9]+)`")

// TestLogKeys holds the keys of docs/logs.md against those of the code, in both
// directions.
func TestLogKeys(t *testing.T) {
	page, err := os.ReadFile("logs.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := []string{"time", "level", "msg", "flymesh", "machine", "service", "component"} // on every line
	for line := range strings.Lines(string(page)) {
		if cell, _, ok := strings.Cut(strings.TrimPrefix(line, "| "), " | "); ok && strings.HasPrefix(line, "| `") {
			for _, m := range quoted.FindAllStringSubmatch(cell, -1) {
				documented = append(documented, m[1])
			}
		}
	}
	used := logKeys(t)
	if len(used) < 50 {
		t.Fatalf("only %d keys found: the code was not read", len(used))
	}
	snake := regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)
	for k, at := range used {
		if !slices.Contains(documented, k) {
			t.Errorf("%s: the key %q is not in docs/logs.md", at, k)
		}
		if !snake.MatchString(k) {
			t.Errorf("%s: the key %q is not snake_case", at, k)
		}
	}
	for _, k := range documented[3:] { // the first three are slog's
		if used[k] == "" {
			t.Errorf("docs/logs.md names the key %q, which no line has", k)
		}
	}
}

// TestAlertRules holds the rules of docs/alerts.md against those of the code,
// in both directions.
func TestAlertRules(t *testing.T) {
	page, err := os.ReadFile("alerts.md")
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Parse("mesh.toml", []byte(`mesh.name = "m"
[service.a]
app = "a"
vote = true
pinned = true
targets = {queue = 1, cpu = 0.7, memory = 0.7}
page = ["p95 > 1s for 1m", "error_rate > 1% for 1m"]
burn_rates = ["error_rate", "p95"]
proxy = {listen = ":80", target = "http://127.0.0.1:81"}
[[service.a.probe]]
type = "redis"
addr = "127.0.0.1:6379"
[[service.a.probe]]
type = "bull"
addr = "127.0.0.1:6379"
[job.NAME]
service = "a"
command = ["true"]`))
	if err != nil {
		t.Fatal(err)
	}
	var rules []string
	for _, r := range append(c.AlertRules(), alert.NoLeader()) {
		rules = append(rules, r.Name)
		if want := "| `" + r.Name + "` | " + r.Severity + " |"; !strings.Contains(string(page), want) {
			t.Errorf("docs/alerts.md has no row %q", want)
		}
	}
	row := regexp.MustCompile("(?m)^\\| `([A-Za-z_0-9]+)` \\| (page|warn) \\|")
	for _, m := range row.FindAllStringSubmatch(string(page), -1) {
		if !slices.Contains(rules, m[1]) {
			t.Errorf("docs/alerts.md names the rule %s, which does not exist", m[1])
		}
	}
}
