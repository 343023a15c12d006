package notify

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"flymesh/leader"
	"flymesh/leader/alert"
)

// Bounds of the Events API v2.
const (
	maxSummary = 1024
	maxDedup   = 255
)

// PagerDuty is the Events API v2. Only pages go there.
type PagerDuty struct {
	client
	url string
	key func() string
}

var _ leader.Receiver = (*PagerDuty)(nil)

// NewPagerDuty returns PagerDuty with a routing key.
func NewPagerDuty(to string, key func() string) *PagerDuty { return &PagerDuty{newClient(), to, key} }

// Name implements leader.Receiver.
func (p *PagerDuty) Name() string { return "pagerduty" }

// Wants implements leader.Receiver.
func (p *PagerDuty) Wants(severity string) bool { return severity == alert.Page }

// Again implements leader.Receiver.
func (p *PagerDuty) Again() time.Duration { return 0 }

type pdEvent struct {
	RoutingKey string     `json:"routing_key"`
	Action     string     `json:"event_action"`
	DedupKey   string     `json:"dedup_key"`
	Client     string     `json:"client,omitempty"`
	Payload    *pdPayload `json:"payload,omitempty"`
}

type pdPayload struct {
	Summary   string         `json:"summary"`
	Source    string         `json:"source"`
	Severity  string         `json:"severity"`
	Timestamp time.Time      `json:"timestamp"`
	Component string         `json:"component,omitempty"`
	Group     string         `json:"group"`
	Class     string         `json:"class"`
	Details   map[string]any `json:"custom_details"`
}

// Send implements leader.Receiver.
func (p *PagerDuty) Send(ctx context.Context, n leader.Notice) error {
	e := pdEvent{RoutingKey: p.key(), Action: "trigger", DedupKey: clip(dedup(n), maxDedup), Client: "flymesh"}
	if n.Resolved {
		e.Action = "resolve"
	}
	e.Payload = &pdPayload{
		Summary: clip(n.Alert.Text, maxSummary), Source: n.Mesh, Severity: "critical", Timestamp: n.Alert.Fired, Component: n.Alert.Service,
		Group: n.Mesh, Class: n.Alert.Rule, Details: map[string]any{"rule": n.Summary, "since": n.Alert.Since, "value": n.Alert.Value},
	}
	body, err := encode(e)
	if err != nil {
		return err
	}
	return p.post(ctx, p.url, http.Header{}, body)
}

// Changes tells PagerDuty of scaling steps, as change events: they call nobody,
// and show beside an incident.
type Changes struct {
	client
	url string
	key func() string
}

var _ leader.StepReceiver = (*Changes)(nil)

// NewChanges returns PagerDuty's change events with a routing key.
func NewChanges(to string, key func() string) *Changes { return &Changes{newClient(), to, key} }

// Name implements leader.StepReceiver.
func (p *Changes) Name() string { return "pagerduty changes" }

type pdChange struct {
	RoutingKey string          `json:"routing_key"`
	Payload    pdChangePayload `json:"payload"`
}

type pdChangePayload struct {
	Summary   string         `json:"summary"`
	Timestamp time.Time      `json:"timestamp"`
	Source    string         `json:"source"`
	Details   map[string]any `json:"custom_details"`
}

// SendStep implements leader.StepReceiver.
func (p *Changes) SendStep(ctx context.Context, mesh string, s leader.Step) error {
	body, err := encode(pdChange{RoutingKey: p.key(), Payload: pdChangePayload{
		Summary:   clip(fmt.Sprintf("%s: %d -> %d machines: %s", s.Service, s.From, s.To, s.Why), maxSummary),
		Timestamp: s.At.UTC(), Source: mesh,
		Details: map[string]any{"service": s.Service, "machine": s.Machine, "op": s.Op, "from": s.From, "to": s.To, "reason": clip(s.Why, maxSummary), "by": s.By},
	}})
	if err != nil {
		return err
	}
	return p.post(ctx, p.url, http.Header{}, body)
}

// dedup is the same for one alert whoever tells of it.
func dedup(n leader.Notice) string { return "flymesh/" + n.Mesh + "/" + n.Key }

func clip(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for most > 0 && s[most]&0xc0 == 0x80 { // not within a character
		most--
	}
	return s[:most]
}
