package demo

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"flymesh/agent/api"
	"flymesh/leader/flyapi/flytest"
	"flymesh/leader/history"
	"flymesh/probes/report"
)

// Past is the mesh's own history of a loaded service beside what really
// happened: what the clients counted, and what the Machines API was asked.
type Past struct {
	Service  string    `json:"service"`
	Requests Beside    `json:"requests"`
	Failed   Beside    `json:"failed"`
	P95      Beside    `json:"p95_worst_ms"` // of the rows
	Rows     []PastRow `json:"rows"`
	Steps    []Carried `json:"steps"`
	Odd      []string  `json:"odd,omitempty"` // steps without a call, and calls without a step
}

// Beside is one figure as the history has it and as the clients do.
type Beside struct {
	History float64 `json:"history"`
	Clients float64 `json:"clients"`
}

// near says whether both figures agree, within a share and an amount.
func (b Beside) near(share, amount float64) bool {
	return math.Abs(b.History-b.Clients) <= share*b.Clients+amount
}

// PastRow is one row of the history.
type PastRow struct {
	At       float64 `json:"at"` // begin, seconds since the demo's
	Machines int     `json:"machines"`
	Rate     Beside  `json:"requests_per_second"`
	P95      Beside  `json:"p95_ms"` // 0: none
}

// Carried is a step of the history with the call that carried it out.
type Carried struct {
	Kind    string  `json:"kind"` // up | down
	Machine string  `json:"machine"`
	Decided float64 `json:"decided"` // seconds since the demo's begin, by the history
	Called  float64 `json:"called"`  // by the audit log of the API
	Call    string  `json:"call"`    // create | start | stop
	Done    float64 `json:"done"`    // by the history
}

// agreement reads the history of the loaded services and sets it beside the
// rest. A row is the mean of samples, one a report, and a sample's counts are
// of the window before it: the clients' figures are taken in the same way.
func (s *story) agreement(ctx context.Context) ([]Past, error) {
	var out []Past
	for _, b := range s.loads {
		h, err := ask(ctx, s.mesh, func(ctx context.Context, m Mesh) (api.History, error) {
			return m.History(ctx, api.HistoryQuery{Service: b.service, Since: time.Since(s.began) + time.Minute})
		})
		if err != nil {
			return nil, fmt.Errorf("read history of %s: %w", b.service, err)
		}
		out = append(out, s.beside(b, h))
	}
	return out, nil
}

func (s *story) beside(b *bearing, h api.History) Past {
	p := Past{Service: b.service}
	step := time.Duration(h.StepMS) * time.Millisecond
	every := fastPace.ReportEvery
	for _, r := range h.Rows {
		if r.At.Before(b.loaded.Add(-step)) || r.At.Add(step).After(h.At) {
			continue // before the load, or not over
		}
		row := PastRow{At: r.At.Sub(s.began).Seconds(), Machines: r.Heard, Rate: Beside{History: r.Requests.X}, P95: Beside{History: 1000 * r.P95.X}}
		n, slow := 0.0, 0.0
		for t := r.At.Add(every); !t.After(r.At.Add(step)); t = t.Add(every) {
			f := b.load.Between(t.Add(-step), t)
			n++
			row.Rate.Clients += float64(f.Count) / step.Seconds()
			p.Failed.Clients += float64(f.Failed) * every.Seconds() / step.Seconds()
			slow += millis(f.P95)
		}
		row.Rate.Clients /= n
		row.P95.Clients = slow / n
		p.Requests.History += row.Rate.History * step.Seconds()
		p.Requests.Clients += row.Rate.Clients * step.Seconds()
		p.Failed.History += failedOf(r) * step.Seconds()
		p.P95 = Beside{max(p.P95.History, row.P95.History), max(p.P95.Clients, row.P95.Clients)}
		p.Rows = append(p.Rows, row)
	}
	p.Steps, p.Odd = s.carried(b.service, h)
	return p
}

func failedOf(r history.Row) float64 {
	if r.Errors == (report.Value{}) {
		return 0
	}
	return r.Errors.X * r.Requests.X
}

// carried pairs the steps of a history with the calls in the API's audit log.
func (s *story) carried(service string, h api.History) (steps []Carried, odd []string) {
	at := func(t time.Time) float64 { return t.Sub(s.began).Seconds() }
	calls := slices.DeleteFunc(s.em.Requests(), func(r flytest.Request) bool {
		return r.App != s.em.App(service) || !r.Committed || !slices.Contains([]string{"create", "start", "stop"}, r.Action)
	})
	for _, e := range h.Events {
		kind, done := strings.CutSuffix(e.Kind, "_done")
		if !done || kind != "up" && kind != "down" {
			continue
		}
		c := Carried{Kind: kind, Machine: e.Machine, Done: at(e.At)}
		for _, d := range h.Events {
			if d.Op == e.Op && d.Kind == kind {
				c.Decided = at(d.At)
			}
		}
		i := slices.IndexFunc(calls, func(r flytest.Request) bool {
			return r.Machine == e.Machine && (r.Action == "stop") == (kind == "down") && at(r.At) >= c.Decided && at(r.At) <= c.Done
		})
		if i < 0 {
			odd = append(odd, fmt.Sprintf("no call made the step %s of %s at %.1fs", kind, e.Machine, c.Done))
			continue
		}
		c.Call, c.Called = calls[i].Action, at(calls[i].At)
		calls = slices.Delete(calls, i, i+1)
		steps = append(steps, c)
	}
	for _, r := range calls {
		odd = append(odd, fmt.Sprintf("no step of the history is behind %s %s at %.1fs", r.Action, r.Machine, at(r.At)))
	}
	slices.SortFunc(steps, func(a, b Carried) int { return cmp.Compare(a.Decided, b.Decided) })
	return steps, odd
}

// agrees says whether the history tells what happened. What the apps count is
// read a second or two late, so that figures agree by and large and steps to
// the call.
func (p Past) agrees() bool {
	return len(p.Rows) > 3 && len(p.Steps) == 4 && len(p.Odd) == 0 &&
		p.Requests.near(0.15, 0) && p.Failed.near(0.2, 5) && p.P95.near(0.4, 150)
}

func (p Past) print(out *console) {
	out.text("  %-10s  %21s  %24s", p.Service, "requests/s", "p95")
	out.text("  %9s  %-9s %10s %8s  %11s %8s", "at", "machines", "history", "clients", "history", "clients")
	for _, r := range p.Rows {
		out.text("  %8.1fs  %-9d %10.1f %8.1f  %8.0f ms %5.0f ms", r.At, r.Machines, r.Rate.History, r.Rate.Clients, r.P95.History, r.P95.Clients)
	}
	for _, c := range p.Steps {
		out.text("  %-4s %s  history: decided %5.1fs, done %5.1fs   API: %-6s %5.1fs", c.Kind, c.Machine, c.Decided, c.Done, c.Call, c.Called)
	}
	for _, text := range p.Odd {
		out.text("  ODD: %s", text)
	}
	out.text("")
}
