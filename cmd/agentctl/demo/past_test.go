package demo

import "testing"

func TestHistoryThatDoesNotAgree(t *testing.T) {
	good := func() Past {
		return Past{Requests: Beside{1000, 1040}, Failed: Beside{3, 1}, P95: Beside{4800, 5200}, Rows: make([]PastRow, 8), Steps: make([]Carried, 4)}
	}
	for name, c := range map[string]struct {
		edit func(*Past)
		want bool
	}{
		"it does":              {func(*Past) {}, true},
		"requests are missing": {func(p *Past) { p.Requests.History = 800 }, false},
		"requests are made up": {func(p *Past) { p.Requests.History = 1300 }, false},
		"failures are missing": {func(p *Past) { p.Failed = Beside{0, 40} }, false},
		"failures are made up": {func(p *Past) { p.Failed = Beside{40, 0} }, false},
		"another latency":      {func(p *Past) { p.P95.History = 600 }, false},
		"no rows":              {func(p *Past) { p.Rows = nil }, false},
		"a step is missing":    {func(p *Past) { p.Steps = p.Steps[:3] }, false},
		"a call without step":  {func(p *Past) { p.Odd = []string{"no step of the history is behind stop m1"} }, false},
	} {
		p := good()
		c.edit(&p)
		if got := p.agrees(); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
