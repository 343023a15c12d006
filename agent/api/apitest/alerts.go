package apitest

import (
	"context"
	"time"

	"flymesh/agent/api"
	"flymesh/raftstore/state"
)

// Alerts implements api.Leading: what the state keeps.
func (a *Agent) Alerts(context.Context) (api.Alerts, error) {
	if err := a.lead(); err != nil {
		return api.Alerts{}, err
	}
	defer a.mesh.mu.Unlock()
	out := api.Alerts{At: time.Now().UTC(), Alerts: []api.AlertStatus{}, Silences: []api.SilenceInfo{}}
	st := a.mesh.state
	for _, k := range st.AlertKeys() {
		out.Alerts = append(out.Alerts, api.AlertStatus{Alert: st.Alerts[k], Key: k})
	}
	for r, q := range st.Silences {
		out.Silences = append(out.Silences, api.SilenceInfo{Rule: r, Silenced: q})
	}
	return out, nil
}

// Silence implements api.Leading.
func (a *Agent) Silence(_ context.Context, r api.SilenceRequest) (api.Accepted, error) {
	if err := a.lead(); err != nil {
		return api.Accepted{}, err
	}
	defer a.mesh.mu.Unlock()
	res, err := a.mesh.commit(state.Command{By: r.By, Silence: &state.Silence{Rule: r.Rule, Until: time.Now().UTC().Add(r.For), Reason: r.Reason}})
	if err == nil {
		err = res.Err()
	}
	return api.Accepted{Index: res.Index, Text: r.Rule + " tells nobody for " + r.For.String()}, err
}
