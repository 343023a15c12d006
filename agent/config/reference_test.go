package config

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const reference = "../../deploy/mesh.toml"

// TestReferenceIsComplete holds deploy/mesh.toml against the code: it has every
// key that exists, and the default in the comment over the key is the code's.
func TestReferenceIsComplete(t *testing.T) {
	data, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	if _, f := parse("mesh.toml", data); len(f.problems) > 0 {
		t.Fatalf("reference has problems:\n%v", f.problems)
	}
	documented := documentedDefaults(string(data))
	want := codeDefaults(t)
	if d := cmp.Diff(want, documented); d != "" {
		t.Errorf("keys and their defaults (-code +reference):\n%s", d)
	}
	if len(want) < 50 {
		t.Errorf("only %d keys found: the schema was not read", len(want))
	}
}

// documentedDefaults maps schema keys to the text of the "# Default:" comment
// over their first assignment.
func documentedDefaults(text string) map[string]string {
	found := map[string]string{}
	form, pending := "", ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "# Default: "):
			pending = strings.TrimPrefix(line, "# Default: ")
		case strings.HasPrefix(line, "["):
			parts := strings.Split(strings.Trim(line, "[]"), ".")
			if len(parts) > 1 {
				parts[1] = "*"
			}
			form, pending = strings.Join(parts, "."), ""
		case line != "" && !strings.HasPrefix(line, "#"):
			key, _, _ := strings.Cut(line, " = ")
			if path := form + "." + key; found[path] == "" {
				found[path] = pending
				if pending == "" {
					found[path] = "(not documented)"
				}
			}
			pending = ""
		}
	}
	return found
}

// codeDefaults reads a file of each kind with a probe of each type and writes
// the defaults as the reference does: "0 (n8n: 10, embeddings: 20)".
func codeDefaults(t *testing.T) map[string]string {
	t.Helper()
	variants := map[string][]string{} // key -> "variant: default", in order
	base := map[string]string{}
	read := func(variant, text string) {
		_, f := parse("mesh.toml", []byte(text))
		for key, said := range f.schema {
			if _, known := base[key]; !known {
				base[key] = said
			} else if base[key] != said {
				entry := fmt.Sprintf("%s: %s", variant, said)
				if !slices.Contains(variants[key], entry) {
					variants[key] = append(variants[key], entry)
				}
			}
		}
	}
	file := func(kind, probe string) string {
		return "mesh.name = \"m\"\n[service.a]\nkind = \"" + kind + "\"\n[[service.a.probe]]\ntype = \"" + probe + "\"\n[job.a]\n"
	}
	for _, kind := range append([]string{KindApp}, kinds...) {
		read(kind, file(kind, probeHost))
	}
	for _, probe := range probeTypes {
		read(probe, file(KindApp, probe))
	}
	all := map[string]string{}
	for key, said := range base {
		if v := variants[key]; len(v) > 0 {
			said += " (" + strings.Join(v, ", ") + ")"
		}
		all[key] = said
	}
	return all
}

// TestReferenceCarriesTheStrategy compares the reference with the strategy's
// numbers, by way of the values that the policy gets.
func TestReferenceCarriesTheStrategy(t *testing.T) {
	c, err := Load(reference)
	if err != nil {
		t.Fatal(err)
	}
	type row struct {
		Baseline, Max int
		Up, Down      []string
		Pinned, Vote  bool
		Gate          string
		Targets       Targets
	}
	got := map[string]row{}
	for _, s := range c.Services {
		p := s.Policy
		got[s.Name] = row{p.Baseline, p.Max, texts(p.Up), texts(p.Down), p.Pinned, s.Vote, s.Gate, s.Targets}
		if p.Cooldown != 5*60e9 || p.Mode != "auto" {
			t.Errorf("%s: cooldown %v, mode %s", s.Name, p.Cooldown, p.Mode)
		}
	}
	rules := func(op, cpu, p95, queue, span string) []string {
		list := []string{"cpu " + op + " " + cpu + " for " + span}
		if p95 != "" {
			list = append(list, "p95 "+op+" "+p95+" for "+span)
		}
		if queue != "" {
			list = append(list, "queue "+op+" "+queue+" for "+span)
		}
		return list
	}
	want := map[string]row{
		"n8n": {1, 3, rules(">", "80%", "1.5s", "10", "3m"), rules("<", "40%", "800ms", "10", "10m"), true, true, "",
			Targets{P95: 1500e6, ErrorRate: 0.01, Queue: 10}},
		"embeddings": {1, 3, rules(">", "80%", "1.5s", "20", "3m"), rules("<", "40%", "800ms", "20", "10m"), false, true, "leader",
			Targets{P95: 800e6, ErrorRate: 0.01, Queue: 20}},
		"redis": {1, 1, rules(">", "80%", "", "", "3m"), rules("<", "40%", "", "", "10m"), true, true, "", Targets{CPU: 0.7, Memory: 0.7}},
		"web":   {1, 1, rules(">", "80%", "1.5s", "", "3m"), rules("<", "40%", "800ms", "", "10m"), false, false, "", Targets{P95: 1500e6, ErrorRate: 0.01}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("services (-want +got):\n%s", d)
	}
	jobs := []Job{
		{Name: "NightlyIngest", Service: "n8n", Cron: "0 2 * * *", URL: "http://127.0.0.1:5678/webhook/nightly-ingest", Method: "POST",
			HeadersEnv: []string{"X-Webhook-Token=NIGHTLY_TOKEN"}, Status: 200, Expect: "status=ok", Timeout: 2 * time.Hour, Misfire: 3 * time.Hour},
		{Name: "ReIndexNow", Service: "n8n", Method: "POST", Command: []string{"/app/reindex.sh"}, Args: []string{"batch_size=64"},
			Timeout: 30 * time.Minute, Misfire: time.Hour},
	}
	if d := cmp.Diff(jobs, c.Jobs); d != "" {
		t.Errorf("jobs (-want +got):\n%s", d)
	}
}

// TestReferenceStatesKindDefaults removes what the reference states for n8n
// and expects the same service: its values are the kind's own.
func TestReferenceStatesKindDefaults(t *testing.T) {
	data, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	full, err := Parse("full", data)
	if err != nil {
		t.Fatal(err)
	}
	keep := map[string]bool{"name": true, "anchor_app": true, "kind": true, "app": true, "vote": true, "pinned": true, "gate": true, "scope": true,
		"type": true, "url": true, "addr": true, "latency": true, "errors": true, "requests": true, "in_flight": true, "queue": true, "service": true, "cron": true, "headers_env": true, "expect": true, "command": true, "args": true,
		"password_env": true, "webhooks": true, "role": true, "worker_url": true, "dimension": true, "body": true, "chat_keys": true}
	targets := false
	var short strings.Builder
	dropped := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "[") {
			targets = strings.Contains(line, ".targets]")
		}
		key, _, assigns := strings.Cut(line, " = ")
		if assigns && !strings.HasPrefix(line, "#") && (targets || !keep[key]) {
			// web's max of 1 is the one deliberate difference: see below.
			dropped[key] = true
			continue
		}
		short.WriteString(line)
	}
	small, err := Parse("short", []byte(short.String()))
	if err != nil {
		t.Fatalf("%v\nwithout %v", err, slices.Sorted(maps.Keys(dropped)))
	}
	for i := range small.Services {
		if s := &small.Services[i]; s.Name == "web" {
			if s.Policy.Max != 3 {
				t.Errorf("web: max = %d without a statement, want 3 x baseline", s.Policy.Max)
			}
			s.Policy.Max = 1
		}
	}
	small.Jobs, full.Jobs = nil, nil // a job has no kind, so its values are its own
	small.hash, full.hash = "", ""
	if d := cmp.Diff(full, small, cmp.AllowUnexported(Config{})); d != "" {
		t.Errorf("stated values and defaults differ (-reference +defaults):\n%s", d)
	}
}
