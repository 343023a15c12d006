package apitest

import (
	"context"
	"time"

	"flymesh/agent/api"
	"flymesh/leader/decide"
	"flymesh/leader/history"
	"flymesh/probes/report"
	"flymesh/raftstore/state"
)

// History implements api.Leading: one minute, and the events.
func (a *Agent) History(_ context.Context, q api.HistoryQuery) (api.History, error) {
	if err := a.lead(); err != nil {
		return api.History{}, err
	}
	defer a.mesh.mu.Unlock()
	if err := a.known(q.Service); err != nil {
		return api.History{}, err
	}
	n := a.mesh.running[q.Service]
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	return api.History{Service: q.Service, At: at.Add(time.Minute), StepMS: time.Minute.Milliseconds(), Rows: []history.Row{{
		At: at, Expected: n, Heard: n, Requests: report.Of(20.1), P95: report.Of(0.8124), Samples: report.Of(1204), CPU: report.Of(0.425),
	}}, Events: []state.Event{{Index: 7, At: at.Add(30 * time.Second), Kind: "up", Service: q.Service, From: 1, To: 2, Reason: "cpu"}}}, nil
}

// Past implements api.Leading.
func (a *Agent) Past(context.Context) ([]byte, error) {
	if err := a.lead(); err != nil {
		return nil, err
	}
	defer a.mesh.mu.Unlock()
	return history.New(5 * time.Second).Export(), nil
}

// Page implements api.Leading.
func (a *Agent) Page(ctx context.Context) (api.Page, error) {
	st, err := a.Status(ctx)
	if err != nil {
		return api.Page{}, err
	}
	as, err := a.Alerts(ctx)
	if err != nil {
		return api.Page{}, err
	}
	return api.Page{Status: st, Alerts: as, Verdicts: []decide.Verdict{}, Events: []state.Event{}, Sparks: map[string]api.Recent{}}, nil
}
