package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"flymesh/raftstore/state"
)

// The codes of a Problem.
const (
	CodeNoLeader   = "no_leader"   // nobody leads, or the leader does not answer: nothing was done
	CodeBadRequest = "bad_request" // the request is wrong, and the text says where
	CodeNotFound   = "not_found"
	CodeRejected   = "rejected" // understood, and refused by the replicated state
	CodeUnknown    = "unknown"  // the connection broke: the command may or may not have been carried out
	CodeInternal   = "internal"
)

func badRequest(format string, args ...any) error {
	return &RequestError{Text: fmt.Sprintf(format, args...)}
}

// unknownError says that what became of a command is not known.
type unknownError struct{ text string }

func (e *unknownError) Error() string { return e.text }

// ResponseError is a Problem as the Client returns it. It wraps ErrNoLeader
// where that is the cause.
type ResponseError struct {
	Problem
	Status int
}

// Error returns the Problem's sentence.
func (e *ResponseError) Error() string { return e.Problem.Error }

// Unwrap returns ErrNoLeader for the code no_leader.
func (e *ResponseError) Unwrap() error {
	if e.Code == CodeNoLeader {
		return ErrNoLeader
	}
	return nil
}

// statusOf maps the codes to HTTP.
var statusOf = map[string]int{
	CodeNoLeader:   http.StatusServiceUnavailable,
	CodeBadRequest: http.StatusBadRequest,
	CodeNotFound:   http.StatusNotFound,
	CodeRejected:   http.StatusConflict,
	CodeUnknown:    http.StatusBadGateway,
	CodeInternal:   http.StatusInternalServerError,
}

// problemOf turns an error into what is answered.
func problemOf(err error) Problem {
	p := Problem{Error: err.Error(), Code: CodeInternal}
	var re *RequestError
	var lost *unknownError
	switch {
	case errors.As(err, &re):
		p.Code = CodeBadRequest
	case errors.Is(err, ErrNoLeader):
		p.Code = CodeNoLeader
	case errors.Is(err, state.ErrRejected):
		p.Code = CodeRejected
	case errors.As(err, &lost), errors.Is(err, context.DeadlineExceeded):
		p.Code = CodeUnknown
	}
	return p
}

func writeProblem(w http.ResponseWriter, p Problem) {
	status, ok := statusOf[p.Code]
	if !ok {
		status = http.StatusInternalServerError
	}
	writeJSON(w, status, p)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status = http.StatusInternalServerError
		b, _ = json.Marshal(Problem{Error: "encode answer: " + err.Error(), Code: CodeInternal})
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(b, '\n')) // the client is gone if this fails
}

// decodeStrict reads exactly one JSON object without unknown keys, and names
// what is wrong with it.
func decodeStrict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	var wrong *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		return badRequest("the body is empty; it must be one JSON object")
	case errors.As(err, &wrong):
		key := wrong.Field
		if key == "" {
			return badRequest("the body is a JSON %s; it must be one object", wrong.Value)
		}
		return badRequest("%s: a JSON %s does not fit; it must be %s", key, wrong.Value, kindName(wrong.Type.Kind().String()))
	case errors.As(err, &syntax), errors.Is(err, io.ErrUnexpectedEOF):
		return badRequest("the body is not JSON: %v", err)
	default:
		if key, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
			return badRequest("unknown key %s in the body", key)
		}
		return badRequest("the body is wrong: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return badRequest("something follows the JSON object in the body")
	}
	return nil
}

// kindName says a Go kind as a person says it.
func kindName(kind string) string {
	switch {
	case strings.Contains(kind, "int"):
		return "a whole number"
	case strings.Contains(kind, "float"):
		return "a number"
	case kind == "bool":
		return "true or false"
	case kind == "struct", kind == "map":
		return "an object"
	case kind == "slice":
		return "a list"
	}
	return "a " + kind
}
