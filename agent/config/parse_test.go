package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"flymesh/leader/decide"
)

// head is a valid file that tests append to.
const head = `[mesh]
name = "acme"
[service.n8n]
app = "acme-n8n"
vote = true
`

func mustParse(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Parse("mesh.toml", []byte(text))
	if err != nil {
		t.Fatalf("parse:\n%s\n%v", text, err)
	}
	return c
}

func TestMinimalFileGetsDefaults(t *testing.T) {
	c := mustParse(t, head)
	want := Default()
	want.Mesh.Name, want.Mesh.AnchorApp = "acme", "acme-n8n"
	s := DefaultService("app", want.Mesh)
	s.Name, s.App, s.Vote = "n8n", "acme-n8n", true
	s.Policy.Name, s.Policy.Max = "n8n", 3
	s.Policy.Up = []decide.Rule{{Metric: decide.CPU, Op: ">", Value: 0.8, For: 3 * time.Minute, Text: "cpu > 80% for 3m"}}
	s.Policy.Down = []decide.Rule{{Metric: decide.CPU, Op: "<", Value: 0.4, For: 10 * time.Minute, Text: "cpu < 40% for 10m"}}
	s.Probes = []Probe{defaultProbe("host", want.Mesh)}
	want.Services = []Service{s}
	if d := cmp.Diff(want, *c, cmpopts.IgnoreUnexported(Config{}), cmpopts.EquateApprox(0, 1e-12)); d != "" {
		t.Errorf("config (-want +got):\n%s", d)
	}
}

func TestDefaultMaxFollowsBaselineAndKind(t *testing.T) {
	for _, tt := range []struct {
		text string
		want int
	}{
		{"", 3},
		{"baseline = 4", 12},
		{"baseline = 4\nmax = 4", 4},
		{`kind = "redis"`, 1},
		{"kind = \"redis\"\nbaseline = 2", 2},
	} {
		if got := mustParse(t, head+tt.text).Services[0].Policy.Max; got != tt.want {
			t.Errorf("%q: max = %d, want %d", tt.text, got, tt.want)
		}
	}
}

func TestDefaultRulesFollowSources(t *testing.T) {
	probe := "\n[[service.n8n.probe]]\ntype = \"prometheus\"\nurl = \"http://127.0.0.1:1/metrics\"\n"
	for _, tt := range []struct {
		text     string
		up, down []string
	}{
		{"", []string{"cpu > 80% for 3m"}, []string{"cpu < 40% for 10m"}},
		{`kind = "n8n"` + probe + `latency = "h"`,
			[]string{"cpu > 80% for 3m", "p95 > 1.5s for 3m"}, []string{"cpu < 40% for 10m", "p95 < 800ms for 10m"}},
		{`kind = "n8n"` + probe + `queue = "g"`,
			[]string{"cpu > 80% for 3m", "queue > 10 for 3m"}, []string{"cpu < 40% for 10m", "queue < 10 for 10m"}},
		{`kind = "embeddings"` + probe + `queue = "g"`,
			[]string{"cpu > 80% for 3m", "queue > 20 for 3m"}, []string{"cpu < 40% for 10m", "queue < 20 for 10m"}},
		{`kind = "n8n"` + "\ntargets.queue = 7.5" + probe + `queue = "g"`,
			[]string{"cpu > 80% for 3m", "queue > 7.5 for 3m"}, []string{"cpu < 40% for 10m", "queue < 7.5 for 10m"}},
		{`kind = "app"` + probe + `queue = "g"`, []string{"cpu > 80% for 3m"}, []string{"cpu < 40% for 10m"}},
		{"up = []\ndown = []", nil, nil},
		{`up = ["memory > 90% for 3s"]`, []string{"memory > 90% for 3s"}, []string{"cpu < 40% for 10m"}},
	} {
		// A demo's spans of seconds need a report interval of less.
		p := mustParse(t, strings.Replace(head, "[service", "report_every = \"500ms\"\n[service", 1)+tt.text).Services[0].Policy
		if d := cmp.Diff(tt.up, texts(p.Up)); d != "" {
			t.Errorf("%q: up (-want +got):\n%s", tt.text, d)
		}
		if d := cmp.Diff(tt.down, texts(p.Down)); d != "" {
			t.Errorf("%q: down (-want +got):\n%s", tt.text, d)
		}
	}
}

func texts(rules []decide.Rule) []string {
	var list []string
	for _, r := range rules {
		list = append(list, r.Text)
	}
	return list
}

// TestShortDurations is what a demo or a test mesh writes.
func TestShortDurations(t *testing.T) {
	c := mustParse(t, `
[mesh]
name = "demo"
report_every = "200ms"
profile = "fast"
no_leader_grace = "4s"
drain_timeout = "3s"
start_timeout = "5s"
ready_timeout = "6s"
discover = ["peers"]
peers = ["127.0.0.2:7946", "[::1]:7946"]
[service.a]
app = "demo-a"
vote = true
cooldown = "4s"
up = ["cpu > 80% for 3s"]
down = ["cpu < 40% for 3s"]
[[service.a.probe]]
type = "http"
url = "http://127.0.0.1:8080/"
`)
	m, p := c.Mesh, c.Services[0].Policy
	got := []time.Duration{m.ReportEvery, m.NoLeaderGrace, m.DrainTimeout, m.StartTimeout, m.ReadyTimeout, p.Cooldown, p.ReadyGrace, p.Up[0].For, c.Services[0].Probes[1].Every}
	want := []time.Duration{200 * time.Millisecond, 4 * time.Second, 3 * time.Second, 5 * time.Second, 6 * time.Second, 4 * time.Second, 6 * time.Second, 3 * time.Second, 200 * time.Millisecond}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("durations (-want +got):\n%s", d)
	}
}

func TestServicesKeepFileOrderAndAnswerLookups(t *testing.T) {
	c := mustParse(t, head+`
[[service.n8n.probe]]
type = "host"
cpu = 0.5
[service.n8n.targets]
p95 = "2s"
[service.web]
app = "acme-web"
owner = "proxy"
[service.api]
app = "acme-n8n"
group = "api"
[service.off]
app = "acme-off"
mode = "off"
`)
	var names []string
	for _, s := range c.Services {
		names = append(names, s.Name)
	}
	if d := cmp.Diff([]string{"n8n", "web", "api", "off"}, names); d != "" {
		t.Errorf("order (-want +got):\n%s", d)
	}
	if s, ok := c.ServiceOf("acme-n8n", "api"); !ok || s.Name != "api" {
		t.Errorf("ServiceOf = %q, %v", s.Name, ok)
	}
	if _, ok := c.ServiceOf("acme-web", "api"); ok {
		t.Error("ServiceOf found a service for a group that has none")
	}
	if d := cmp.Diff([]string{"acme-n8n", "acme-web", "acme-off"}, c.Apps()); d != "" {
		t.Errorf("apps (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"acme-n8n"}, c.TokenApps()); d != "" {
		t.Errorf("token apps (-want +got):\n%s", d)
	}
	if p := c.Services[0].Probes; len(p) != 1 || p[0].CPU != 0.5 {
		t.Errorf("a stated host probe must stand for the implicit one, got %+v", p)
	}
	if n := len(c.Policy().Services); n != 4 {
		t.Errorf("policy has %d services, want 4", n)
	}
}

func TestHashStandsForTheContent(t *testing.T) {
	base := mustParse(t, head).Hash()
	if len(base) != 8 || strings.Trim(base, "0123456789abcdef") != "" {
		t.Fatalf("hash = %q, want 8 hex digits", base)
	}
	same := "# note\n[service.n8n]\nvote=true\n  app = 'acme-n8n'\n\n[mesh]\nname = \"acme\"\n"
	if h := mustParse(t, same).Hash(); h != base {
		t.Errorf("hash of the same content = %s, want %s", h, base)
	}
	if h := mustParse(t, head+"cooldown = \"6m\"").Hash(); h == base {
		t.Error("hash did not change with the content")
	}
}

func TestLoadNamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "other.toml")
	if _, err := Load(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if err := os.WriteFile(path, []byte("[mesh]\nnam = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Load(path)
	if err == nil || !strings.Contains(err.Error(), `other.toml:2: mesh.nam = 1: unknown key; did you mean "name"?`) {
		t.Errorf("err = %v", err)
	}
}

// TestParseNeverPanics feeds mutated files: whatever the text, there is a
// Config or Problems with lines inside the text.
func TestParseNeverPanics(t *testing.T) {
	reference, err := os.ReadFile("../../deploy/mesh.toml")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(reference), "\n")
	values := []string{`""`, `"x"`, "0", "-1", "1e400", "nan", "true", "[]", `["a", 1]`, "{}", "{a = 1}", "[{}]", "1979-05-27", `"""` + "\nx\"\"\"\"\""}
	rapid.Check(t, func(rt *rapid.T) {
		out := append([]string{}, lines...)
		for range rapid.IntRange(1, 6).Draw(rt, "edits") {
			i := rapid.IntRange(0, len(out)-1).Draw(rt, "line")
			key, _, assigns := strings.Cut(out[i], " = ")
			switch op := rapid.IntRange(0, 3).Draw(rt, "op"); {
			case op == 0:
				out[i] = ""
			case op == 1 && assigns:
				out[i] = fmt.Sprintf("%s = %s\n", key, rapid.SampledFrom(values).Draw(rt, "value"))
			case op == 2:
				j := rapid.IntRange(0, len(out)-1).Draw(rt, "other")
				out[i], out[j] = out[j], out[i]
			default:
				out[i] = rapid.StringN(0, 20, -1).Draw(rt, "junk") + "\n"
			}
		}
		text := strings.Join(out, "")
		c, err := Parse("f", []byte(text))
		if err == nil {
			if c.Hash() == "" || len(c.Services) == 0 {
				rt.Fatalf("accepted without content: %+v", c)
			}
			return
		}
		var ps Problems
		if !errors.As(err, &ps) || len(ps) == 0 {
			rt.Fatalf("err = %v", err)
		}
		for _, p := range ps {
			if p.Line < 0 || p.Line > strings.Count(text, "\n")+1 {
				rt.Fatalf("line %d is outside the text: %v", p.Line, p)
			}
		}
	})
}

// TestUnknownKeyPointsToItsTable guards the advice on unknown keys: it names
// the table that knows a key, where there is one in the file.
func TestUnknownKeyPointsToItsTable(t *testing.T) {
	_, err := Parse("f", []byte(head+"pinned = true\n[job.a]\nservice = \"n8n\"\ncron = \"0 2 * * *\"\ncooldown = \"1m\"\n"))
	if err == nil || !strings.Contains(err.Error(), `f:10: job.a.cooldown = "1m": unknown key; it belongs in [service.NAME]`) {
		t.Errorf("err = %v", err)
	}
}

// TestScanLinesEndsOnAnyText: the scanner is only given TOML, but must not
// hang on anything else.
func TestScanLinesEndsOnAnyText(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		text := rapid.StringOfN(rapid.RuneFrom([]rune("[]{}=,.#\"'\\\n ab1")), 0, 60, -1).Draw(rt, "text")
		for path, line := range scanLines(text) {
			if line < 1 || line > strings.Count(text, "\n")+1 {
				rt.Fatalf("%s is on line %d", path, line)
			}
		}
	})
}

func TestScanLinesOfEveryConstruct(t *testing.T) {
	got := scanLines("a.b = 1\n" + // 1
		"[t.'x.y']\n" + // 2
		"s = \"q\\\"]\" # [no]\n" + // 3
		"m = \"\"\"\n[no]\nk = 1\n\"\"\"\"\n" + // 4 to 7
		"l = ['''\n''', [1, 2],\n  {k = \"}\", n.o = 3},\n]\n" + // 8 to 11
		"[[w]]\nv = 1\n[[w]]\n[w.z]\nv = 2\n") // 12 to 16
	want := map[string]int{"a": 1, "a.b": 1, "t": 2, "t.x.y": 2, "t.x.y.s": 3, "t.x.y.m": 4, "t.x.y.l": 8,
		"t.x.y.l[0]": 8, "t.x.y.l[1]": 9, "t.x.y.l[1][0]": 9, "t.x.y.l[1][1]": 9, "t.x.y.l[2]": 10,
		"t.x.y.l[2].k": 10, "t.x.y.l[2].n": 10, "t.x.y.l[2].n.o": 10,
		"w": 12, "w[0]": 12, "w[0].v": 13, "w[1]": 14, "w[1].z": 15, "w[1].z.v": 16}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("lines (-want +got):\n%s", d)
	}
}
