package simulate

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flymesh/leader/decide"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const head = "at,what,service,machines_expected,machines_heard,requests_per_second,p95_seconds,p95_samples,error_ratio,queue,cpu_ratio,memory_ratio,from,to,reason\n"

// span is some minutes of equal rows.
type span struct {
	minutes, machines int
	cells             string // requests_per_second to memory_ratio
}

func text(spans ...span) string {
	var b strings.Builder
	b.WriteString(head)
	at := t0
	for _, s := range spans {
		for range s.minutes {
			fmt.Fprintf(&b, "%s,sample,n8n,%d,%d,%s,,,\n", at.Format(time.RFC3339), s.machines, s.machines, s.cells)
			at = at.Add(time.Minute)
		}
	}
	return b.String()
}

const (
	quiet = "5,0.2,300,0,0,0.2,0.5"
	hot   = "20,0.4,1200,0,0,0.95,0.5"
)

func policy(t *testing.T, edit func(*decide.Service)) decide.Service {
	t.Helper()
	s := decide.Service{Name: "n8n", Baseline: 1, Max: 3, Cooldown: 5 * time.Minute, Mode: decide.Auto, Pinned: true,
		MinSamples: 20, ReadyGrace: 5 * time.Minute, NoGainAfter: 2, FlapPerHour: 4}
	for _, x := range []struct {
		to    *[]decide.Rule
		rules []string
	}{
		{&s.Up, []string{"cpu > 80% for 3m", "p95 > 1.5s for 3m", "queue > 10 for 3m"}},
		{&s.Down, []string{"cpu < 40% for 10m", "p95 < 800ms for 10m", "queue < 10 for 10m"}},
	} {
		for _, text := range x.rules {
			r, err := decide.ParseRule(text)
			if err != nil {
				t.Fatal(err)
			}
			*x.to = append(*x.to, r)
		}
	}
	if edit != nil {
		edit(&s)
	}
	return s
}

// steps replays a trace and says when the fleet changed: "+13 2" is the
// thirteenth minute, two machines then.
func steps(t *testing.T, s decide.Service, trace string) (string, Outcome) {
	t.Helper()
	ts, err := read(strings.NewReader(trace))
	if err != nil {
		t.Fatal(err)
	}
	out, err := run(s, ts[0], time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, d := range out.Decisions {
		if d.From != d.To {
			fmt.Fprintf(&b, "+%.0f %d; ", d.At.Sub(t0).Minutes(), d.To)
		}
	}
	return strings.TrimSuffix(b.String(), "; "), out
}

func TestReplay(t *testing.T) {
	day := text(span{10, 1, quiet}, span{30, 1, hot}, span{60, 1, quiet})
	for _, c := range []struct {
		name, trace, want string
		edit              func(*decide.Service)
	}{
		// The rule holds from the third hot minute on; two machines share the load;
		// the quiet begins at minute 40 and must last for ten.
		{"a spike", day, "+13 2; +50 1", nil},
		{"shadow is replayed as if it acted", day, "+13 2; +50 1", func(s *decide.Service) { s.Mode = decide.Shadow }},
		{"a slower rule", day, "+18 2; +50 1", func(s *decide.Service) { s.Up[0].For = 8 * time.Minute }},
		{"a cap", day, "", func(s *decide.Service) { s.Max = 1 }},
		{"off", day, "", func(s *decide.Service) { s.Mode = decide.Off }},
		{"never down", day, "+13 2", func(s *decide.Service) { s.Mode = decide.UpOnly }},
		{"a budget that is spent", day, "", func(s *decide.Service) { s.BudgetHours = 0.2 }},
		{"no data in the spike", text(span{10, 1, quiet}, span{30, 1, ",,,,,,"}, span{20, 1, quiet}), "", nil},
		{"a fleet of three comes down one at a time", text(span{40, 3, quiet}), "+10 2; +15 1", nil},
		// Nothing helps against slow answers: two additions, and no third.
		{"no improvement", text(span{10, 1, quiet}, span{60, 1, "20,3,1200,0,0,0.5,0.5"}), "+13 2; +19 3", func(s *decide.Service) { s.Max = 9 }},
		// Too few requests to tell are no reason to stay big.
		{"a quiet night", text(span{30, 2, "0.1,,6,,0,0.05,0.5"}), "+10 1", nil},
	} {
		if got, out := steps(t, policy(t, c.edit), c.trace); got != c.want {
			t.Errorf("%s: %q, want %q\n%+v", c.name, got, c.want, out.Decisions)
		}
	}
	_, out := steps(t, policy(t, nil), day+t0.Add(2*time.Hour).Format(time.RFC3339)+",up_done,n8n,,,,,,,,,,1,2,\n")
	// One machine for 100 min, and a second one from minute 13 to minute 50.
	if out.Recorded != (Cost{Ups: 1, MachineSeconds: 6000}) || out.Replayed != (Cost{1, 1, 6000 + 37*60}) {
		t.Errorf("recorded %+v, replayed %+v", out.Recorded, out.Replayed)
	}
	if last := out.Decisions[len(out.Decisions)-1]; last.Code != decide.CodeBaseline || !strings.Contains(last.Reason, "cpu 20 % < 40 %") {
		t.Errorf("the last word is %+v", last)
	}
}

func TestBadTraces(t *testing.T) {
	good := text(span{2, 1, quiet})
	edit := func(from, to string) string { return strings.Replace(good, from, to, 1) }
	for name, c := range map[string]struct{ text, says string }{
		"empty":             {"", "line 1: the file is empty"},
		"no rows":           {head, "line 2: there are no rows"},
		"no column":         {edit("cpu_ratio,", "cpu,"), `line 1: the column "cpu_ratio" is missing`},
		"short line":        {good + "2026-03-01T12:02:00Z,sample\n", "line 4, character"},
		"a quote":           {good + "2026-03-01T12:02:00Z,\"sample,n8n\n", "line 4, character"},
		"no time":           {edit("2026-03-01T12:00:00Z", "noon"), `line 2, column at: "noon" must be a time such as 2026-03-01T12:00:00Z`},
		"times fall":        {edit("2026-03-01T12:01:00Z", "2026-03-01T11:01:00Z"), `line 3, column at: "2026-03-01T11:01:00Z" must be after the row before, 2026-03-01T12:00:00Z`},
		"a number":          {edit("0.5,,,", "half,,,"), `line 2, column memory_ratio: "half" must be a number from 0, or empty`},
		"not finite":        {edit("0.5,,,", "NaN,,,"), `line 2, column memory_ratio: "NaN" must be a number`},
		"negative":          {edit("n8n,1,1,5", "n8n,1,1,-5"), `line 2, column requests_per_second: "-5" must be a number from 0`},
		"too many errors":   {edit("300,0,", "300,7,"), `line 2, column error_ratio: "7" must be a number from 0 to 1`},
		"half a machine":    {edit("n8n,1,1,", "n8n,1.5,1,"), `line 2, column machines_expected: "1.5" must be a whole number`},
		"too many heard":    {edit("n8n,1,1,", "n8n,1,2,"), `line 2, column machines_heard: "2" must be at most machines_expected, which is 1`},
		"nothing is it":     {edit("sample,n8n", ",n8n"), `line 2, column what: "" must be "sample" or the kind of an event`},
		"one row":           {text(span{1, 1, quiet}), `service "n8n" has 1 rows of measurements; it takes two`},
		"events and no row": {head + "2026-03-01T12:00:00Z,up,n8n,,,,,,,,,,1,2,\n", `service "n8n" has 0 rows`},
	} {
		if _, err := read(strings.NewReader(c.text)); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want ... %s", name, err, c.says)
		}
	}
	config := filepath.Join(t.TempDir(), "mesh.toml")
	if err := os.WriteFile(config, []byte("[mesh]\nname = \"m\"\n[service.web]\nkind = \"web\"\napp = \"m-web\"\nvote = true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := Run(Options{Trace: "-", Config: config}, strings.NewReader(good), new(bytes.Buffer))
	if err == nil || !strings.Contains(err.Error(), `column service: "n8n" is not in `+config+", which has web") {
		t.Errorf("another service: %v", err)
	}
}

// FuzzRead holds that whatever is read can be replayed.
func FuzzRead(f *testing.F) {
	f.Add(text(span{3, 1, quiet}, span{4, 2, hot}))
	f.Add(head)
	f.Add(head + "2026-03-01T12:00:00Z,sample,n8n,3,1,,,,,,,,,,\n2026-03-01T12:00:01Z,sample,n8n,0,0,1e300,1e300,1e300,1,1e300,1e300,1e300,,,\n")
	f.Fuzz(func(t *testing.T, in string) {
		ts, err := read(strings.NewReader(in))
		if err != nil {
			return
		}
		for _, x := range ts {
			if _, err := run(policy(t, nil), x, time.Minute); err != nil {
				t.Fatal(err)
			}
		}
	})
}
