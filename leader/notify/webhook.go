package notify

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strconv"
	"time"

	"flymesh/leader"
)

// SignatureHeader carries "t=<unix seconds>,v1=<hex>": the HMAC-SHA256 of the
// seconds, a dot and the body under the webhook's key. Who checks it also
// checks that the time is recent, so that nobody can play an old one again.
const SignatureHeader = "Flymesh-Signature"

// Webhook posts signed JSON to any URL.
type Webhook struct {
	client
	url string
	key func() string
}

// NewWebhook returns a webhook that signs with a key.
func NewWebhook(to string, key func() string) *Webhook { return &Webhook{newClient(), to, key} }

// Name implements leader.Receiver.
func (w *Webhook) Name() string { return "webhook" }

// Wants implements leader.Receiver.
func (w *Webhook) Wants(string) bool { return true }

// Again implements leader.Receiver.
func (w *Webhook) Again() time.Duration { return 0 }

// Message is the body of a webhook. ID is the same for a repeated message: a
// leader that dies between sending and recording sends it twice.
type Message struct {
	ID       string     `json:"id"`
	Mesh     string     `json:"mesh"`
	Key      string     `json:"key"`
	Status   string     `json:"status"` // firing | resolved
	Rule     string     `json:"rule"`
	Service  string     `json:"service,omitempty"`
	Severity string     `json:"severity"`
	Summary  string     `json:"summary"`
	Text     string     `json:"text"`
	Value    *float64   `json:"value"`
	Since    time.Time  `json:"since"`
	Fired    time.Time  `json:"fired"`
	Resolved *time.Time `json:"resolved"`
}

// Send implements leader.Receiver.
func (w *Webhook) Send(ctx context.Context, n leader.Notice) error {
	a := n.Alert
	m := Message{
		Mesh: n.Mesh, Key: n.Key, Status: "firing", Rule: a.Rule, Service: a.Service, Severity: a.Severity, Summary: n.Summary,
		Text: a.Text, Value: a.Value, Since: a.Since, Fired: a.Fired,
	}
	if n.Resolved {
		m.Status, m.Resolved = "resolved", &a.Resolved
	}
	m.ID = dedup(n) + "/" + a.Fired.UTC().Format(time.RFC3339Nano) + "/" + m.Status
	body, err := encode(m)
	if err != nil {
		return err
	}
	h := http.Header{}
	h.Set(SignatureHeader, Sign(w.key(), time.Now(), body))
	return w.post(ctx, w.url, h, body)
}

// Sign returns the value of SignatureHeader for a body.
func Sign(key string, now time.Time, body []byte) string {
	t := strconv.FormatInt(now.Unix(), 10)
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write([]byte(t + "."))
	mac.Write(body)
	return "t=" + t + ",v1=" + hex.EncodeToString(mac.Sum(nil))
}
