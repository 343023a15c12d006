package flytest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Fault changes what happens to requests that it matches. As JSON it is flat,
// or has its fields under "match" and "then".
//
// Drop says on which side of the commit the request is cut: "before", nothing
// is done; "after", it is done but the answer is lost. What the client gets
// instead is Status and Body, or, without Status, a connection that closes
// without an answer. A Status without Drop cuts before. A Fault with neither
// only delays.
type Fault struct {
	Method  string  `json:"method,omitempty"`  // empty: any
	Path    string  `json:"path,omitempty"`    // glob (* in a segment, ** over segments) from the root or, without a leading slash, of the end; or a regexp if it begins with ^; empty: any
	Action  string  `json:"action,omitempty"`  // create, start, ...; empty: any
	App     string  `json:"app,omitempty"`     // empty: any
	Machine string  `json:"machine,omitempty"` // empty: any
	Skip    int     `json:"skip,omitempty"`    // let this many matching requests pass first
	Count   int     `json:"count,omitempty"`   // then this many are hit; 0: all
	Chance  float64 `json:"chance,omitempty"`  // of a request to be hit, 0 to 1; 0: always

	Delay       Delay  `json:"delay,omitempty"`        // before the commit; a client that goes away meanwhile takes its request with it
	Late        bool   `json:"late,omitempty"`         // but not with this: the request is carried out all the same
	AnswerDelay Delay  `json:"answer_delay,omitempty"` // between commit and answer
	Status      int    `json:"status,omitempty"`
	Body        string `json:"body,omitempty"` // default: {"error":"injected fault"}
	Drop        string `json:"drop,omitempty"` // before | after
}

// Delay is a duration that reads "1.5s" or a number of milliseconds.
type Delay time.Duration

// UnmarshalJSON reads a duration string or milliseconds.
func (d *Delay) UnmarshalJSON(b []byte) error {
	var ms float64
	if json.Unmarshal(b, &ms) == nil {
		*d = Delay(ms * float64(time.Millisecond))
		return nil
	}
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("read delay: %w", err)
	}
	v, err := time.ParseDuration(s)
	*d = Delay(v)
	return err
}

// MarshalJSON writes a duration string.
func (d Delay) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// UnmarshalJSON reads the flat and the nested form and refuses unknown fields.
func (f *Fault) UnmarshalJSON(b []byte) error {
	type flat Fault
	var v struct {
		flat
		Match *flat `json:"match"`
		Then  *flat `json:"then"`
	}
	d := json.NewDecoder(strings.NewReader(string(b)))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		return fmt.Errorf("read fault: %w", err)
	}
	*f = Fault(v.flat)
	if m := v.Match; m != nil {
		f.Method, f.Path, f.Action, f.App, f.Machine = m.Method, m.Path, m.Action, m.App, m.Machine
		f.Skip, f.Count, f.Chance = m.Skip, m.Count, m.Chance
	}
	if t := v.Then; t != nil {
		f.Delay, f.Late, f.AnswerDelay, f.Status, f.Body, f.Drop = t.Delay, t.Late, t.AnswerDelay, t.Status, t.Body, t.Drop
	}
	return nil
}

// String describes what the fault does, for the audit log.
func (f Fault) String() string {
	var parts []string
	if f.Delay > 0 {
		parts = append(parts, "delay "+time.Duration(f.Delay).String())
	}
	if f.Late {
		parts = append(parts, "late")
	}
	if f.AnswerDelay > 0 {
		parts = append(parts, "answer delay "+time.Duration(f.AnswerDelay).String())
	}
	side := f.Drop
	if side == "" && f.Status != 0 {
		side = "before"
	}
	if side != "" {
		what := "drop"
		if f.Status != 0 {
			what = fmt.Sprint(f.Status)
		}
		parts = append(parts, what+" "+side+" commit")
	}
	return strings.Join(parts, ", ")
}

// faults is the list of faults in force.
type faults struct {
	ids  *source
	mu   sync.Mutex // guards list
	list []*armed
}

type armed struct {
	Fault
	path *regexp.Regexp
	seen int
	hits int
}

// arm compiles a fault.
func arm(f Fault) (*armed, error) {
	switch {
	case f.Drop != "" && f.Drop != "before" && f.Drop != "after":
		return nil, fmt.Errorf("read fault: drop is %q, want before or after", f.Drop)
	case f.Status != 0 && (f.Status < 200 || f.Status > 599):
		return nil, fmt.Errorf("read fault: status is %d, want 200 to 599", f.Status)
	case f.Chance < 0 || f.Chance > 1:
		return nil, fmt.Errorf("read fault: chance is %v, want 0 to 1", f.Chance)
	case f.Count < 0 || f.Skip < 0 || f.Delay < 0 || f.AnswerDelay < 0:
		return nil, fmt.Errorf("read fault: a number is negative")
	case f.Status == 0 && f.Drop == "" && f.Delay == 0 && f.AnswerDelay == 0:
		return nil, fmt.Errorf("read fault: it does nothing: set delay, answer_delay, status or drop")
	}
	a := &armed{Fault: f}
	if f.Path == "" {
		return a, nil
	}
	expr := f.Path
	if !strings.HasPrefix(expr, "^") {
		q := regexp.QuoteMeta(expr)
		q = strings.ReplaceAll(q, `\*\*`, `.*`)
		q = strings.ReplaceAll(q, `\*`, `[^/]*`)
		if strings.HasPrefix(expr, "/") {
			expr = "^" + q + "$"
		} else {
			expr = "(^|/)" + q + "$"
		}
	}
	re, err := regexp.Compile(expr)
	if err != nil {
		return nil, fmt.Errorf("read fault: path: %w", err)
	}
	a.path = re
	return a, nil
}

// take returns the first fault that hits the request, if any.
func (fs *faults) take(method, path, action, app, machine string) (Fault, bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, a := range fs.list {
		switch {
		case a.Method != "" && !strings.EqualFold(a.Method, method),
			a.path != nil && !a.path.MatchString(path),
			a.Action != "" && a.Action != action,
			a.App != "" && a.App != app,
			a.Machine != "" && a.Machine != machine,
			a.Count > 0 && a.hits >= a.Count:
			continue
		}
		if a.seen++; a.seen <= a.Skip || (a.Chance > 0 && !fs.ids.hit(a.Chance)) {
			continue
		}
		a.hits++
		return a.Fault, true
	}
	return Fault{}, false
}

// AddFaults puts faults in force, behind those that are. The first that
// matches a request hits it.
func (s *Server) AddFaults(list ...Fault) error {
	var as []*armed
	for _, f := range list {
		a, err := arm(f)
		if err != nil {
			return err
		}
		as = append(as, a)
	}
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	s.faults.list = append(s.faults.list, as...)
	return nil
}

// ClearFaults ends every fault.
func (s *Server) ClearFaults() {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	s.faults.list = nil
}

// answer is what a client gets in place of the real answer; nil: nothing, the
// connection closes.
func (f Fault) answer() *reply {
	if f.Status == 0 {
		return nil
	}
	body := f.Body
	if body == "" {
		body = `{"error":"injected fault"}`
	}
	return &reply{code: f.Status, raw: []byte(body), contentType: http.DetectContentType([]byte(body))}
}
