// Package openapi compares traffic of the Machines API with Fly's OpenAPI
// document: requests and answers, query parameters and status codes.
//
// It knows as much of JSON schema as that document uses: types, properties,
// required, enum, items, additionalProperties, allOf, minimum, maximum and
// references. A property that the document does not name is told too, since
// that is how a misspelt field shows. What the document has wrong is an
// explicit list, Known, and nothing else is let pass.
package openapi

import (
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"flymesh/leader/flyapi/flytest"
)

// Document is a read OpenAPI document. It does not change once read.
type Document struct {
	Paths      map[string]map[string]operation `json:"paths"`
	Components struct {
		Schemas map[string]*schema `json:"schemas"`
	} `json:"components"`
}

type operation struct {
	Parameters  []parameter        `json:"parameters"`
	RequestBody *content           `json:"requestBody"`
	Responses   map[string]content `json:"responses"`
}

type parameter struct {
	Name   string  `json:"name"`
	In     string  `json:"in"`
	Schema *schema `json:"schema"`
}

type content struct {
	Content map[string]struct {
		Schema *schema `json:"schema"`
	} `json:"content"`
}

func (c content) schema() *schema {
	for _, m := range c.Content {
		return m.Schema
	}
	return nil
}

// Load reads a document from a JSON file.
func Load(path string) (*Document, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("load OpenAPI document: %w", err)
	}
	d := new(Document)
	if err := json.Unmarshal(b, d); err != nil {
		return nil, fmt.Errorf("load OpenAPI document: %w", err)
	}
	if len(d.Paths) == 0 {
		return nil, fmt.Errorf("load OpenAPI document: %s has no paths", path)
	}
	return d, nil
}

// Problem is a difference between traffic and document.
type Problem struct {
	Call string // METHOD and the document's path
	At   string // request, query or the answer's status, and the place inside
	Text string
}

// String is the problem in one line.
func (p Problem) String() string { return p.Call + ": " + p.At + ": " + p.Text }

// Check returns every difference between an exchange and the document, known
// ones included. An exchange whose answer was made up by a fault is checked
// for its request alone, and one that was refused with 400 for its answer.
func (d *Document) Check(x flytest.Exchange) []Problem {
	path, op, ok := d.find(x.Method, x.Path)
	if !ok {
		if x.Action == "" {
			return nil // the emulator knows no such route either
		}
		return []Problem{{x.Method + " " + x.Path, "path", "is not documented"}}
	}
	c := &checker{doc: d, call: x.Method + " " + path}
	if x.Status != http.StatusBadRequest {
		c.query(op, x.Query)
		c.request(op, x)
	}
	if !x.Fault && x.Status != 0 {
		c.answer(op, x)
	}
	return c.found
}

func (c *checker) query(op operation, q url.Values) {
	for name := range q {
		i := slices.IndexFunc(op.Parameters, func(p parameter) bool { return p.In == "query" && p.Name == name })
		if i < 0 {
			c.tell("query "+name, "is not documented")
			continue
		}
		for _, v := range q[name] {
			c.text("query "+name, op.Parameters[i].Schema, v)
		}
	}
}

// find returns the path of the document that a request has, the one with the
// fewest parameters first.
func (d *Document) find(method, path string) (string, operation, bool) {
	have := strings.Split(path, "/")
	best, most := "", -1
	for p, ops := range d.Paths {
		want := strings.Split(p, "/")
		if _, ok := ops[strings.ToLower(method)]; !ok || len(want) != len(have) {
			continue
		}
		literal, same := 0, true
		for i, w := range want {
			switch {
			case strings.HasPrefix(w, "{"):
			case w == have[i]:
				literal++
			default:
				same = false
			}
		}
		if same && literal > most {
			best, most = p, literal
		}
	}
	return best, d.Paths[best][strings.ToLower(method)], most >= 0
}

// checker gathers what it finds in one exchange.
type checker struct {
	doc   *Document
	call  string
	found []Problem
}

func (c *checker) tell(at, format string, args ...any) {
	c.found = append(c.found, Problem{c.call, at, fmt.Sprintf(format, args...)})
}

func (c *checker) request(op operation, x flytest.Exchange) {
	switch {
	case len(x.RequestBody) == 0:
	case op.RequestBody == nil:
		c.tell("request", "has a body")
	default:
		c.body("request", op.RequestBody.schema(), x.RequestBody)
	}
}

func (c *checker) answer(op operation, x flytest.Exchange) {
	at := strconv.Itoa(x.Status)
	r, ok := op.Responses[at]
	s := r.schema()
	switch {
	case !ok && x.Status < 300:
		c.tell(at, "is not a documented status")
		for code := range op.Responses { // the body is compared all the same
			if strings.HasPrefix(code, "2") {
				s = op.Responses[code].schema()
			}
		}
	case !ok:
		c.tell(at, "is not a documented status")
		s = c.doc.Components.Schemas["ErrorResponse"]
	}
	if s == nil || len(x.Body) == 0 {
		if s != nil {
			c.tell(at, "has no body")
		}
		return
	}
	kind, _, err := mime.ParseMediaType(x.ContentType)
	if _, plain := r.Content[kind]; plain && kind == "text/plain" {
		return // as documented; there is nothing inside to compare
	}
	if err != nil || kind != "application/json" {
		c.tell(at, "is %q, not JSON", x.ContentType)
		return
	}
	c.body(at, s, x.Body)
}

func (c *checker) body(at string, s *schema, b []byte) {
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		c.tell(at, "is no JSON: %v", err)
		return
	}
	c.value(at, s, v)
}
