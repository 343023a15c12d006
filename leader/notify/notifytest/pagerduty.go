// Package notifytest has a working model of PagerDuty's Events API v2: it
// refuses what the service refuses, merges by dedup_key, and is out of order
// when told to.
package notifytest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// The two addresses.
const (
	EventPath  = "/v2/enqueue"
	ChangePath = "/v2/change/enqueue"
)

// maxBody is the largest event that PagerDuty takes.
const maxBody = 512 << 10

// PagerDuty is a server at URL. Its methods may be called at any time.
type PagerDuty struct {
	*httptest.Server
	began time.Time

	mu     sync.Mutex // guards all below
	answer []int      // to the requests that come next; 0: as the service would
	log    []string   // every request, for people
	open   map[string]bool
	taken  []string // events that were taken: "trigger KEY", "resolve KEY", "change SUMMARY"
	bad    []string // what was wrong with events that were refused
	times  []time.Time
}

// NewPagerDuty starts a server; Close ends it.
func NewPagerDuty() *PagerDuty {
	p := &PagerDuty{began: time.Now(), open: map[string]bool{}}
	p.Server = httptest.NewServer(p)
	return p
}

// Answer has the next n requests answered with a status, whatever they say.
func (p *PagerDuty) Answer(status, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answer = append(p.answer, slices.Repeat([]int{status}, n)...)
}

// Taken lists the events that were taken, in order.
func (p *PagerDuty) Taken() []string { return p.copy(&p.taken) }

// Bad lists what was wrong with events.
func (p *PagerDuty) Bad() []string { return p.copy(&p.bad) }

// Log has a line for each request, with the seconds since the server began.
func (p *PagerDuty) Log() []string { return p.copy(&p.log) }

// Times are when requests came.
func (p *PagerDuty) Times() []time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.times)
}

// Open lists the keys of the incidents that are open, sorted.
func (p *PagerDuty) Open() (keys []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, open := range p.open {
		if open {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

func (p *PagerDuty) copy(list *[]string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(*list)
}

// ServeHTTP implements http.Handler.
func (p *PagerDuty) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	what, key, wrong := read(r, body)
	status := http.StatusAccepted
	if len(wrong) > 0 {
		status = http.StatusBadRequest
		p.bad = append(p.bad, fmt.Sprintf("%s: %s", what, strings.Join(wrong, "; ")))
	}
	if len(p.answer) > 0 {
		if p.answer[0] != 0 {
			status = p.answer[0]
		}
		p.answer = p.answer[1:]
	}
	p.times = append(p.times, time.Now())
	p.log = append(p.log, fmt.Sprintf("%6.1fs  %d  %s", time.Since(p.began).Seconds(), status, what))
	reply := map[string]any{"status": "success", "message": "Event processed", "dedup_key": key}
	switch {
	case status == http.StatusAccepted:
		p.taken = append(p.taken, what)
		if action, _, _ := strings.Cut(what, " "); action == "trigger" || action == "resolve" {
			p.open[key] = action == "trigger"
		}
	case status == http.StatusBadRequest:
		reply = map[string]any{"status": "invalid event", "message": "Event object is invalid", "errors": wrong}
	default:
		reply = map[string]any{"status": "error"}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(reply)
}

var routingKey = regexp.MustCompile(`^[A-Za-z0-9]{32}$`)

type event struct {
	RoutingKey string          `json:"routing_key"`
	Action     string          `json:"event_action"`
	DedupKey   string          `json:"dedup_key"`
	Client     string          `json:"client"`
	ClientURL  string          `json:"client_url"`
	Payload    *payload        `json:"payload"`
	Links      json.RawMessage `json:"links"`
	Images     json.RawMessage `json:"images"`
}

type payload struct {
	Summary   string         `json:"summary"`
	Source    string         `json:"source"`
	Severity  string         `json:"severity"`
	Timestamp string         `json:"timestamp"`
	Component string         `json:"component"`
	Group     string         `json:"group"`
	Class     string         `json:"class"`
	Details   map[string]any `json:"custom_details"`
}

// read says what an event is, and what is wrong with it.
func read(r *http.Request, body []byte) (what, key string, wrong []string) {
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	change := r.URL.Path == ChangePath
	if !change && r.URL.Path != EventPath || r.Method != http.MethodPost {
		bad("%s %s is no address of the API", r.Method, r.URL.Path)
	}
	if r.Header.Get("Content-Type") != "application/json" {
		bad("Content-Type is %q", r.Header.Get("Content-Type"))
	}
	if len(body) > maxBody {
		bad("more than %d bytes", maxBody)
	}
	var e event
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&e); err != nil {
		bad("%v", err)
	}
	if !routingKey.MatchString(e.RoutingKey) {
		bad("'routing_key' is not 32 letters and digits")
	}
	if change {
		what = "change"
		if e.Action != "" || e.DedupKey != "" || e.Client != "" {
			bad("a change has no event_action, dedup_key or client")
		}
	} else {
		what, key = e.Action+" "+e.DedupKey, e.DedupKey
		if !slices.Contains([]string{"trigger", "acknowledge", "resolve"}, e.Action) {
			bad("'event_action' is %q", e.Action)
		}
		if len(e.DedupKey) > 255 || e.DedupKey == "" && e.Action != "trigger" {
			bad("'dedup_key' has %d bytes", len(e.DedupKey))
		}
	}
	if e.Payload == nil {
		if change || e.Action == "trigger" {
			bad("'payload' is missing")
		}
		return what, key, wrong
	}
	if change {
		what += " " + e.Payload.Summary
	}
	return what, key, append(wrong, e.Payload.wrong(change)...)
}

func (p *payload) wrong(change bool) (out []string) {
	if n := len([]rune(p.Summary)); n == 0 || n > 1024 {
		out = append(out, fmt.Sprintf("'payload.summary' has %d characters", n))
	}
	if p.Source == "" {
		out = append(out, "'payload.source' is missing or blank")
	}
	if p.Timestamp != "" {
		if _, err := time.Parse(time.RFC3339Nano, p.Timestamp); err != nil {
			out = append(out, "'payload.timestamp' is not ISO 8601")
		}
	}
	severities := []string{"critical", "error", "warning", "info"}
	switch {
	case change && p.Severity+p.Component+p.Group+p.Class != "":
		out = append(out, "a change has no severity, component, group or class")
	case !change && !slices.Contains(severities, p.Severity):
		out = append(out, fmt.Sprintf("'payload.severity' is %q", p.Severity))
	}
	return out
}
