// Package notify takes alerts to people's tools: Alertmanager, PagerDuty, any
// webhook. Each Send is one attempt with a deadline; whoever calls it retries
// and remembers. What must not be retried wraps leader.ErrRefused.
package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"flymesh/leader"
)

const sendTimeout = 10 * time.Second

// client posts JSON. It follows no redirect: what is sent may carry a key.
type client struct{ http *http.Client }

func newClient() client {
	return client{&http.Client{
		Timeout:       sendTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// post sends one document. Answers that will be the same next time are refusals;
// 408, 429, 5xx and no answer at all are not.
func (c client) post(ctx context.Context, to string, header http.Header, body []byte) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("post alert: %w: %w", leader.ErrRefused, err)
	}
	r.Header = header.Clone()
	r.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(r)
	if err != nil {
		return fmt.Errorf("post alert: %w", err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 300)) // for the message alone
	switch s := resp.StatusCode; {
	case s >= 200 && s < 300:
		return nil
	case s == http.StatusRequestTimeout || s == http.StatusTooManyRequests || s >= 500:
		return fmt.Errorf("post alert: %s answers %d: %.200q", host(to), s, text)
	default:
		return fmt.Errorf("post alert: %w: %s answers %d: %.200q", leader.ErrRefused, host(to), s, text)
	}
}

func host(to string) string {
	u, err := url.Parse(to)
	if err != nil {
		return "the receiver"
	}
	return u.Host
}

func encode(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode alert: %w: %w", leader.ErrRefused, err)
	}
	return b, nil
}

// Alertmanager is one instance of Alertmanager, API v2. Every instance of a
// cluster is its own receiver: each must hear everything.
type Alertmanager struct {
	client
	url string
}

// again is how often Alertmanager hears that an alert fires: it takes one that
// it has not heard of for 5 minutes for resolved.
const again = time.Minute

// NewAlertmanager returns the instance at a base URL such as http://am:9093.
func NewAlertmanager(base string) *Alertmanager { return &Alertmanager{newClient(), base} }

// Name implements leader.Receiver.
func (a *Alertmanager) Name() string { return "alertmanager " + host(a.url) }

// Wants implements leader.Receiver: it sorts by severity itself.
func (a *Alertmanager) Wants(string) bool { return true }

// Again implements leader.Receiver.
func (a *Alertmanager) Again() time.Duration { return again }

type amAlert struct {
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	StartsAt    time.Time         `json:"startsAt"`
	EndsAt      time.Time         `json:"endsAt"`
}

// Send implements leader.Receiver.
func (a *Alertmanager) Send(ctx context.Context, n leader.Notice) error {
	labels := map[string]string{"alertname": n.Alert.Rule, "severity": n.Alert.Severity, "mesh": n.Mesh}
	if n.Alert.Service != "" {
		labels["service"] = n.Alert.Service
	}
	m := amAlert{Labels: labels, Annotations: map[string]string{"summary": n.Summary, "description": n.Alert.Text},
		StartsAt: n.Alert.Fired, EndsAt: time.Now().UTC().Add(5 * again)}
	if n.Resolved {
		m.EndsAt = n.Alert.Resolved
	}
	body, err := encode([]amAlert{m})
	if err != nil {
		return err
	}
	to, err := url.JoinPath(a.url, "api/v2/alerts")
	if err != nil {
		return fmt.Errorf("post alert: %w: %w", leader.ErrRefused, err)
	}
	return a.post(ctx, to, http.Header{}, body)
}
