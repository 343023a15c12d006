package decide_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"flymesh/leader/decide"
)

func TestParseRule(t *testing.T) {
	for _, c := range []struct {
		text string
		want decide.Rule
	}{
		{"cpu > 80% for 3m", decide.Rule{Metric: decide.CPU, Op: ">", Value: 0.8, For: 3 * time.Minute}},
		{"p95 > 1.5s for 3m", decide.Rule{Metric: decide.P95, Op: ">", Value: 1.5, For: 3 * time.Minute}},
		{"p95 < 800ms for 10m", decide.Rule{Metric: decide.P95, Op: "<", Value: 0.8, For: 10 * time.Minute}},
		{"queue > 10 for 3m", decide.Rule{Metric: decide.Queue, Op: ">", Value: 10, For: 3 * time.Minute}},
		{"memory > 70% for 5m", decide.Rule{Metric: decide.Memory, Op: ">", Value: 0.7, For: 5 * time.Minute}},
		{"error_rate > 5% for 2m", decide.Rule{Metric: decide.ErrorRate, Op: ">", Value: 0.05, For: 2 * time.Minute}},
		{"cpu<40% for 90s", decide.Rule{Metric: decide.CPU, Op: "<", Value: 0.4, For: 90 * time.Second}},
		{"  queue   >  0.5\tfor 1h ", decide.Rule{Metric: decide.Queue, Op: ">", Value: 0.5, For: time.Hour}},
	} {
		got, err := decide.ParseRule(c.text)
		c.want.Text = strings.Join(strings.Fields(c.text), " ")
		if err != nil || got != c.want {
			t.Errorf("%q: got %+v, %v, want %+v", c.text, got, err, c.want)
		}
		if again, err := decide.ParseRule(got.String()); err != nil || again != got {
			t.Errorf("%q does not read its own text: %+v, %v", c.text, again, err)
		}
	}
}

func TestParseRuleSaysWhatWouldBeRight(t *testing.T) {
	for _, c := range []struct{ text, says string }{
		{"", "no > or <"},
		{"cpu 80% for 3m", "no > or <"},
		{"load > 80% for 3m", `no metric "load"`},
		{"CPU > 80% for 3m", `no metric "CPU"`},
		{"cpu >= 80% for 3m", "only > and <"},
		{"cpu = 80% for 3m", "only > and <"},
		{"cpu > for 3m", "no value after >"},
		{"cpu > 80%", `add "for 3m"`},
		{"cpu > 80% during 3m", `comes "for"`},
		{"cpu > 80% for 3m or so", `comes "for"`},
		{"cpu > 80 for 3m", "write 80%"},
		{"cpu > 0.8 for 3m", "write 80%"},
		{"cpu > 180% for 3m", "write 80%"},
		{"cpu > NaN% for 3m", "write 80%"},
		{"p95 > 1.5 for 3m", "write 1.5s or 800ms"},
		{"p95 > -1s for 3m", "write 1.5s or 800ms"},
		{"queue > 10s for 3m", "write 10"},
		{"queue > Inf for 3m", "write 10"},
		{"queue > 10 for 3", "write 90s, 3m or 1h"},
		{"queue > 10 for 0s", "between 1s and 6h"},
		{"queue > 10 for 7h", "between 1s and 6h"},
		{"queue > 10 for -3m", "between 1s and 6h"},
	} {
		_, err := decide.ParseRule(c.text)
		if !errors.Is(err, decide.ErrRule) {
			t.Errorf("%q: got %v, want ErrRule", c.text, err)
			continue
		}
		for _, part := range []string{c.says, "cpu, memory, error_rate", "p95", "queue"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q: %q lacks %q", c.text, err, part)
			}
		}
	}
}

func FuzzParseRule(f *testing.F) {
	for _, s := range []string{"cpu > 80% for 3m", "p95<800ms for 10m", "queue > 10", "error_rate > 5% for", "x >> 1", "memory > 1e2% for 1h0m0s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := decide.ParseRule(text)
		if err != nil {
			if !errors.Is(err, decide.ErrRule) || r != (decide.Rule{}) {
				t.Errorf("%q: %+v, %v", text, r, err)
			}
			return
		}
		if !(r.Value >= 0) || r.For < time.Second || r.For > decide.MaxFor || r.Op != ">" && r.Op != "<" {
			t.Errorf("%q: accepted as %+v", text, r)
		}
		if again, err := decide.ParseRule(r.Text); err != nil || again != r {
			t.Errorf("%q: %+v, read again %+v, %v", text, r, again, err)
		}
	})
}
