package notify

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"flymesh/leader"
	"flymesh/leader/alert"
	"flymesh/leader/notify/notifytest"
	"flymesh/raftstore/state"
)

// server answers with a status and keeps the requests.
type server struct {
	*httptest.Server
	status int
	paths  []string
	bodies [][]byte
	header http.Header
}

func serve(t *testing.T) *server {
	s := &server{status: 202}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		s.paths, s.bodies, s.header = append(s.paths, r.URL.Path), append(s.bodies, b), r.Header
		w.WriteHeader(s.status)
	}))
	t.Cleanup(s.Close)
	return s
}

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func notice(resolved bool) leader.Notice {
	v := 3.1
	a := state.Alert{Rule: "p95_page", Service: "n8n", Severity: alert.Page, Phase: state.Firing, Since: t0, Fired: t0.Add(5 * time.Minute), Value: &v, Text: "n8n: p95 is 3.1 s"}
	if resolved {
		a.Phase, a.Resolved = state.Resolved, t0.Add(time.Hour)
	}
	return leader.Notice{Mesh: "acme", Key: a.Key(), Alert: a, Summary: "p95 > 2.5s for 5m", Resolved: resolved}
}

func TestWhatIsRetried(t *testing.T) {
	s := serve(t)
	for _, r := range []leader.Receiver{NewAlertmanager(s.URL), NewPagerDuty(s.URL, func() string { return "k" }), NewWebhook(s.URL, func() string { return "k" })} {
		for status, refused := range map[int]bool{400: true, 401: true, 404: true, 302: true, 429: false, 408: false, 500: false, 503: false} {
			s.status = status
			err := r.Send(t.Context(), notice(false))
			if err == nil || errors.Is(err, leader.ErrRefused) != refused {
				t.Errorf("%s: status %d gives %v, refused must be %v", r.Name(), status, err, refused)
			}
		}
		s.status = 200
		if err := r.Send(t.Context(), notice(false)); err != nil {
			t.Errorf("%s: %v", r.Name(), err)
		}
	}
	gone := httptest.NewServer(nil)
	gone.Close()
	if err := NewAlertmanager(gone.URL).Send(t.Context(), notice(false)); err == nil || errors.Is(err, leader.ErrRefused) {
		t.Errorf("nobody answers: %v, want an error that is tried again", err)
	}
}

const routing = "0123456789abcdef0123456789abcdef"

// TestPagerDuty sends what the service takes, however long the texts are.
func TestPagerDuty(t *testing.T) {
	s := notifytest.NewPagerDuty()
	defer s.Close()
	p := NewPagerDuty(s.URL+notifytest.EventPath, func() string { return routing })
	if p.Wants(alert.Warn) || !p.Wants(alert.Page) {
		t.Error("PagerDuty must get pages alone")
	}
	for _, resolved := range []bool{false, true} {
		if err := p.Send(t.Context(), notice(resolved)); err != nil {
			t.Fatal(err)
		}
	}
	const key = "flymesh/acme/p95_page/n8n"
	if got, want := s.Taken(), []string{"trigger " + key, "resolve " + key}; !slices.Equal(got, want) || len(s.Open()) != 0 {
		t.Errorf("taken %q, want %q; open %q", got, want, s.Open())
	}
	long := notice(false)
	long.Alert.Text = strings.Repeat("größer als erlaubt ", 100)
	long.Key = strings.Repeat("k", 400)
	if err := p.Send(t.Context(), long); err != nil {
		t.Errorf("long texts: %v", err)
	}
	for _, f := range []func(*leader.Notice){
		func(n *leader.Notice) { n.Alert.Text = "" },
		func(n *leader.Notice) { n.Mesh = "" },
	} {
		n := notice(false)
		f(&n)
		if err := p.Send(t.Context(), n); !errors.Is(err, leader.ErrRefused) {
			t.Errorf("%+v is not refused for good: %v", n, err)
		}
	}
	if err := NewPagerDuty(s.URL+notifytest.EventPath, func() string { return "short" }).Send(t.Context(), notice(false)); !errors.Is(err, leader.ErrRefused) {
		t.Errorf("a wrong routing key: %v", err)
	}
}

// TestPagerDutyChanges sends scaling steps, and tells what may pass from what
// will not.
func TestPagerDutyChanges(t *testing.T) {
	s := notifytest.NewPagerDuty()
	defer s.Close()
	p := NewChanges(s.URL+notifytest.ChangePath, func() string { return routing })
	step := leader.Step{Why: "cpu > 80% for 3m holds", Event: state.Event{
		At: t0, Kind: "up_done", Service: "n8n", Op: "1-2-3", Machine: "d8", From: 1, To: 2, By: "v0",
	}}
	for _, c := range []struct {
		status  int
		refused bool
	}{{429, false}, {500, false}, {503, false}, {400, true}, {404, true}} {
		s.Answer(c.status, 1)
		if err := p.SendStep(t.Context(), "acme", step); err == nil || errors.Is(err, leader.ErrRefused) != c.refused {
			t.Errorf("status %d: %v, refused for good must be %t", c.status, err, c.refused)
		}
	}
	if err := p.SendStep(t.Context(), "acme", step); err != nil {
		t.Fatalf("%v (%q)", err, s.Bad())
	}
	step.Why = strings.Repeat("ü", 3000)
	if err := p.SendStep(t.Context(), "acme", step); err != nil {
		t.Fatalf("a long reason: %v (%q)", err, s.Bad())
	}
	got := s.Taken()
	if len(got) != 2 || got[0] != "change n8n: 1 -> 2 machines: cpu > 80% for 3m holds" {
		t.Errorf("taken %.200q", got)
	}
}

func TestWebhookIsSigned(t *testing.T) {
	s := serve(t)
	if err := NewWebhook(s.URL, func() string { return "key" }).Send(t.Context(), notice(true)); err != nil {
		t.Fatal(err)
	}
	sig := s.header.Get(SignatureHeader)
	secs, _, _ := strings.Cut(strings.TrimPrefix(sig, "t="), ",")
	n, err := strconv.ParseInt(secs, 10, 64)
	if err != nil {
		t.Fatalf("signature %q has no time", sig)
	}
	when := time.Unix(n, 0)
	if want := Sign("key", when, s.bodies[0]); sig != want {
		t.Errorf("signature = %q, want %q", sig, want)
	}
	if sig == Sign("other", when, s.bodies[0]) || sig == Sign("key", when, append(s.bodies[0], ' ')) {
		t.Error("another key or body has the same signature")
	}
	var m Message
	if err := json.Unmarshal(s.bodies[0], &m); err != nil || m.Status != "resolved" || m.Resolved == nil || m.Key != "p95_page/n8n" {
		t.Errorf("message = %+v, %v", m, err)
	}
}
