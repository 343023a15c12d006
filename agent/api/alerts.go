package api

import (
	"context"
	"time"

	"flymesh/raftstore/state"
)

// Alerts is `agentctl alerts --json`.
type Alerts struct {
	At       time.Time     `json:"at"`
	Rules    int           `json:"rules"` // all that are judged; those at rest are not in the list
	Alerts   []AlertStatus `json:"alerts"`
	Silences []SilenceInfo `json:"silences"`
}

// AlertStatus is one alert that is not at rest.
type AlertStatus struct {
	state.Alert
	Key      string       `json:"key"`
	Summary  string       `json:"summary"`
	Silenced *SilenceInfo `json:"silenced"`
}

// SilenceInfo is one silence in force.
type SilenceInfo struct {
	Rule string `json:"rule"`
	state.Silenced
}

// SilenceRequest keeps a rule quiet for a while; For 0 ends a silence.
type SilenceRequest struct {
	Rule   string        `json:"rule"` // a rule, or rule/service
	For    time.Duration `json:"for,omitempty"`
	Reason string        `json:"reason"`
	By     string        `json:"by"`
}

// MaxSilence is the longest silence: one always has an end.
const MaxSilence = 7 * 24 * time.Hour

func (q *SilenceRequest) check() error {
	switch {
	case q.Rule == "":
		return badRequest("rule is missing: the name of one, such as p95_page or p95_page/n8n")
	case q.For < 0 || q.For > MaxSilence:
		return badRequest("for: %s is not a duration of at most 168h", q.For)
	}
	return checkTexts(q.Rule, q.Reason, &q.By)
}

// Alerts asks for what people are told.
func (c *Client) Alerts(ctx context.Context) (Alerts, error) { return get[Alerts](ctx, c, PathAlerts) }

// Silence keeps a rule quiet, or ends that.
func (c *Client) Silence(ctx context.Context, r SilenceRequest) (Accepted, error) {
	return post[Accepted](ctx, c, PathSilence, r)
}
