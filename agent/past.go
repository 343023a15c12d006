package agent

import (
	"context"
	"time"

	"flymesh/agent/api"
	"flymesh/leader/history"
	"flymesh/raftstore/state"
)

const (
	pageEvents = 80               // newest events on the page
	pageRecent = 15 * time.Minute // of the sparklines
	pagePoints = 60               // of one sparkline, at most twice as many: it is some hundred pixels wide
)

// History tells the past of a service with the steps that were taken.
func (a *agent) History(ctx context.Context, q api.HistoryQuery) (api.History, error) {
	if err := a.known(q.Service); err != nil {
		return api.History{}, err
	}
	if _, err := a.view(ctx); err != nil {
		return api.History{}, err
	}
	now := time.Now().UTC()
	since := now.Add(-q.Since)
	out := api.History{Service: q.Service, At: now, Events: []state.Event{}}
	past := a.reports.Past
	if q.Fine {
		past = a.reports.Recent
	}
	rows, step := past(q.Service, since)
	out.Rows, out.StepMS = rows, step.Milliseconds()
	for _, e := range a.store.State().Events {
		if e.Service == q.Service && e.At.After(since) && e.Kind != "step" {
			out.Events = append(out.Events, e)
		}
	}
	if q.Machines {
		out.Machines = a.reports.PastOfMachines(q.Service, since)
	}
	return out, nil
}

// Past returns the whole history for a new voter.
func (a *agent) Past(context.Context) ([]byte, error) { return a.reports.ExportPast() }

// Page tells all that the page shows at once.
func (a *agent) Page(ctx context.Context) (api.Page, error) {
	v, err := a.view(ctx)
	if err != nil {
		return api.Page{}, err
	}
	alerts, err := a.Alerts(ctx)
	if err != nil {
		return api.Page{}, err
	}
	p := api.Page{Status: a.leaderStatus(v), Verdicts: v.Verdicts, Alerts: alerts, Sparks: map[string]api.Recent{}, Targets: map[string]api.Target{}}
	if p.Jobs, err = a.Jobs(ctx); err != nil {
		return api.Page{}, err
	}
	if p.Locks, err = a.Locks(ctx); err != nil {
		return api.Page{}, err
	}
	events := a.store.State().Events
	p.Events = events[max(0, len(events)-pageEvents):]
	for _, s := range a.cfg.Services {
		rows, step := a.reports.Recent(s.Name, time.Now().Add(-pageRecent))
		rows, every := thinned(rows, pagePoints)
		p.Sparks[s.Name] = api.Recent{StepMS: step.Milliseconds() * int64(every), Rows: rows}
		g := s.Targets
		p.Targets[s.Name] = api.Target{P95: g.P95.Seconds(), ErrorRate: g.ErrorRate, Queue: g.Queue, CPU: g.CPU, Memory: g.Memory}
	}
	return p, nil
}

// thinned keeps every so many rows, counted from the newest, so that about most
// are left, and says how many that is.
func thinned(rows []history.Row, most int) (out []history.Row, every int) {
	every = max(1, len(rows)/most)
	for i := (len(rows) + every - 1) % every; i < len(rows); i += every {
		out = append(out, rows[i])
	}
	return out, every
}

// fetchPast copies the leader's history of the day. It is of use for people
// alone, so that nothing waits for it.
func (a *agent) fetchPast(ctx context.Context, addr string) error {
	b, err := a.dial(addr).Past(ctx)
	if err != nil {
		return err
	}
	return a.reports.ImportPast(b)
}
