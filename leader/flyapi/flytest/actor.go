package flytest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
)

// The others who use the Machines API beside the mesh. Their requests pass
// through the same handlers and stand in the audit log with the actor as By;
// tokens, rate limits and faults are for the mesh alone.
const (
	actorDeploy = "flyctl"
	actorProxy  = "fly-proxy"
)

// actor is one of them.
type actor struct {
	s    *Server
	name string
}

// call sends one request and decodes the answer into out, unless out is nil.
// An answer that is no success is an *apiError.
func (a actor) call(ctx context.Context, method, path, nonce string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if in == nil {
		body = nil
	}
	r, err := http.NewRequestWithContext(ctx, method, a.s.URL()+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	r.Header.Set("User-Agent", a.name+" (emulated)")
	if nonce != "" {
		r.Header.Set("fly-machine-lease-nonce", nonce)
	}
	w := &recorder{header: make(http.Header)}
	if !a.serve(w, r) {
		return fmt.Errorf("%s %s: %w", method, path, context.Cause(ctx))
	}
	if w.code >= 300 {
		var e struct{ Error string }
		if json.Unmarshal(w.body.Bytes(), &e) != nil {
			e.Error = w.body.String()
		}
		return &apiError{w.code, e.Error}
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.Reader(&w.body)).Decode(out); err != nil {
		return fmt.Errorf("%s %s: read answer: %w", method, path, err)
	}
	return nil
}

// serve reports whether the request was answered.
func (a actor) serve(w http.ResponseWriter, r *http.Request) (answered bool) {
	defer func() {
		if err := recover(); err != nil && err != http.ErrAbortHandler {
			panic(err)
		}
	}()
	a.s.serve(w, r, caller{actor: a.name})
	return true
}
