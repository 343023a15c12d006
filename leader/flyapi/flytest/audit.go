package flytest

import (
	"net/url"
	"slices"
	"sync"
	"time"
)

// Request is one line of the audit log: a request to the Machines API and
// what became of it. Lines are in the order in which the requests came.
type Request struct {
	Seq        int       `json:"seq"`
	At         time.Time `json:"at"`
	Method     string    `json:"method"`
	Path       string    `json:"path"`
	Query      string    `json:"query,omitempty"`
	Action     string    `json:"action"` // list, get, create, start, ...; empty: no such route
	App        string    `json:"app,omitempty"`
	Machine    string    `json:"machine,omitempty"` // for create: the new one
	Name       string    `json:"name,omitempty"`    // of the machine that create asks for
	Status     int       `json:"status"`            // 0: no answer was sent (yet)
	Committed  bool      `json:"committed"`         // the emulator did what was asked
	Error      string    `json:"error,omitempty"`
	By         string    `json:"by"`   // fingerprint of the token
	From       string    `json:"from"` // address that it came from
	UserAgent  string    `json:"user_agent"`
	RequestID  string    `json:"request_id"`
	DurationMS float64   `json:"duration_ms"` // -1: still under way
	Fault      string    `json:"fault,omitempty"`
}

// Exchange is a request to the Machines API and its answer, bodies included.
type Exchange struct {
	Method      string
	Path        string
	Query       url.Values
	Action      string // empty: no such route
	By          string
	RequestBody []byte
	Status      int    // 0: no answer
	ContentType string // of the answer
	Body        []byte // of the answer
	Fault       bool   // the answer is a fault's, not the emulator's
}

type audit struct {
	mu    sync.Mutex // guards lines
	lines []Request
}

// begin adds a line and returns its index.
func (a *audit) begin(r Request) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	r.Seq = len(a.lines) + 1
	r.DurationMS = -1
	a.lines = append(a.lines, r)
	return r.Seq - 1
}

func (a *audit) update(i int, fn func(*Request)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	fn(&a.lines[i])
}

// Requests returns the audit log.
func (s *Server) Requests() []Request {
	s.audit.mu.Lock()
	defer s.audit.mu.Unlock()
	return slices.Clone(s.audit.lines)
}
