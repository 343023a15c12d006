package api

import (
	"context"
	"net/url"
	"time"

	"flymesh/leader"
	"flymesh/leader/decide"
	"flymesh/leader/history"
	"flymesh/raftstore/state"
)

// HistoryQuery asks for the past of one service.
type HistoryQuery struct {
	Service  string
	Since    time.Duration // back from now
	Fine     bool          // one row a report interval; reaches back for minutes alone
	Machines bool          // the rows of each machine too
}

// MaxSince is how far back a history reaches.
const MaxSince = 24 * time.Hour

// History is `agentctl history --json`: a service's past, and what the mesh
// did about it.
type History struct {
	Service  string                          `json:"service"`
	At       time.Time                       `json:"at"`
	StepMS   int64                           `json:"step_ms"` // length of a row
	Rows     []history.Row                   `json:"rows"`    // oldest first
	Events   []state.Event                   `json:"events"`  // scaling steps and their outcomes, oldest first
	Machines map[string][]history.MachineRow `json:"machines,omitempty"`
}

// Page is all that the page shows but the past: one answer, so that it fits
// together.
type Page struct {
	Status   Status            `json:"status"`
	Verdicts []decide.Verdict  `json:"verdicts"`
	Alerts   Alerts            `json:"alerts"`
	Events   []state.Event     `json:"events"` // the newest, oldest first
	Sparks   map[string]Recent `json:"sparks"`
	Targets  map[string]Target `json:"targets"`

	Jobs  []leader.JobView  `json:"jobs"`
	Locks []leader.LockView `json:"locks"`
}

// Target is what a service should stay under; 0: none.
type Target struct {
	P95       float64 `json:"p95_seconds"`
	ErrorRate float64 `json:"error_ratio"`
	Queue     float64 `json:"queue"`
	CPU       float64 `json:"cpu_ratio"`
	Memory    float64 `json:"memory_ratio"`
}

// Recent is the last minutes of a service.
type Recent struct {
	StepMS int64         `json:"step_ms"`
	Rows   []history.Row `json:"rows"`
}

func (q HistoryQuery) path() string {
	v := url.Values{"service": {q.Service}, "since": {q.Since.String()}}
	if q.Fine {
		v.Set("grain", "sample")
	}
	if q.Machines {
		v.Set("machines", "1")
	}
	return PathHistory + "?" + v.Encode()
}

func parseHistory(v url.Values) (HistoryQuery, error) {
	q := HistoryQuery{Service: v.Get("service"), Since: 6 * time.Hour}
	for k := range v {
		switch k {
		case "service", "since", "grain", "machines":
		default:
			return q, badRequest("unknown key %q in the query; it can be service, since, grain and machines", k)
		}
	}
	if q.Service == "" {
		return q, badRequest("service is missing: the name of one in mesh.toml")
	}
	if v.Has("since") {
		d, err := time.ParseDuration(v.Get("since"))
		if err != nil || d <= 0 || d > MaxSince {
			return q, badRequest("since: %q is not a duration of at most 24h, such as 6h", v.Get("since"))
		}
		q.Since = d
	}
	switch g := v.Get("grain"); g {
	case "", "minute":
	case "sample":
		q.Fine = true
	default:
		return q, badRequest("grain: %q is neither minute nor sample", g)
	}
	q.Machines = v.Get("machines") == "1"
	return q, nil
}

// History asks for the past of a service.
func (c *Client) History(ctx context.Context, q HistoryQuery) (History, error) {
	return get[History](ctx, c, q.path())
}

// Past copies the leader's history.
func (c *Client) Past(ctx context.Context) ([]byte, error) { return c.do(ctx, "GET", PathPast, nil) }

// Page asks for all that the page shows.
func (c *Client) Page(ctx context.Context) (Page, error) { return get[Page](ctx, c, PathPage) }
