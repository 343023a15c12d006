package flyapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
)

// bodyKept is how much of an error answer's body is kept.
const bodyKept = 4 << 10

// errNotSent marks a failure before anything of the request left this
// process: nothing can have happened.
var errNotSent = errors.New("request was not sent")

// errRepeated is the answer to a second attempt of one call.
var errRepeated = errors.New("repeat of a request held back")

// once is one request: a call's mark in its context.
type once struct{ used atomic.Bool }

type onceKey struct{}

// withOnce marks ctx as one call, which the guard sends once.
func withOnce(ctx context.Context) context.Context {
	return context.WithValue(ctx, onceKey{}, new(once))
}

// guard is the transport below fly-go's retry layers, which repeat any method
// on 502, on 503 and on what calls itself a temporary error. It sends each
// call once: every answer that is not 2xx and every failure becomes an error
// that no layer above takes for temporary, and a second attempt of the same
// call fails without being sent. It follows no redirect, keeps the API's
// affinity cookie for all clients of an app, and takes tokens out of what
// servers answer.
type guard struct {
	next http.RoundTripper
	jar  *cookiejar.Jar
}

// RoundTrip sends the request unless its call was sent before.
func (g *guard) RoundTrip(r *http.Request) (*http.Response, error) {
	o, ok := r.Context().Value(onceKey{}).(*once)
	if !ok || o.used.Swap(true) {
		if r.Body != nil {
			_ = r.Body.Close() // a RoundTripper must close it; there is nothing to lose
		}
		return nil, errRepeated
	}
	var trying, connected atomic.Bool
	ctx := httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
		GetConn: func(string) { trying.Store(true) },
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	})
	r = r.Clone(ctx)
	r.Header.Del("Cookie")
	for _, c := range g.jar.Cookies(r.URL) {
		r.AddCookie(c)
	}
	resp, err := g.next.RoundTrip(r)
	if err != nil {
		notSent := trying.Load() && !connected.Load() || isDial(err)
		return nil, &sendError{cause: err, text: scrub(err.Error(), r.Header.Get("Authorization")), notSent: notSent}
	}
	g.jar.SetCookies(r.URL, resp.Cookies())
	if resp.StatusCode >= 200 && resp.StatusCode <= 299 {
		return resp, nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, bodyKept))
	if err != nil {
		body = append(body, " (cut short)"...) // the status says what matters
	}
	_ = resp.Body.Close() // the answer is read as far as it is wanted
	return nil, &answerError{
		status:  resp.StatusCode,
		body:    scrub(string(body), r.Header.Get("Authorization")),
		request: resp.Header.Get("Fly-Request-Id"),
	}
}

// isDial reports whether no connection could be made.
func isDial(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// sendError is a request without an answer. It neither unwraps nor calls
// itself temporary: fly-go would repeat what looks like a reset connection.
type sendError struct {
	cause   error
	text    string
	notSent bool
}

func (e *sendError) Error() string {
	if e.notSent {
		return "no connection: " + e.text
	}
	return "no answer: " + e.text
}

// Is matches errNotSent and the two context errors.
func (e *sendError) Is(target error) bool {
	switch target {
	case errNotSent:
		return e.notSent
	case context.Canceled, context.DeadlineExceeded:
		return errors.Is(e.cause, target)
	}
	return false
}

// answerError is an answer that is not 2xx.
type answerError struct {
	status  int
	body    string
	request string // the API's request ID
}

func (e *answerError) Error() string {
	text := e.text()
	if e.request != "" {
		return fmt.Sprintf("HTTP %d: %s (request %s)", e.status, text, e.request)
	}
	return fmt.Sprintf("HTTP %d: %s", e.status, text)
}

// text is what the body says to a person.
func (e *answerError) text() string {
	var b struct{ Error, Message string }
	if err := json.Unmarshal([]byte(e.body), &b); err == nil {
		switch {
		case b.Message != "":
			return b.Message
		case b.Error != "":
			return b.Error
		}
	}
	text := strings.TrimSpace(e.body)
	if len(text) > 200 {
		text = text[:200] + "..."
	}
	if text == "" {
		text = http.StatusText(e.status)
	}
	return text
}

// rebase sends every request to another scheme and host. fly-go takes its base
// only from the environment, once, for the whole process.
type rebase struct {
	next http.RoundTripper
	base *url.URL
}

// RoundTrip rewrites a copy of the request.
func (t *rebase) RoundTrip(r *http.Request) (*http.Response, error) {
	u := *r.URL
	u.Scheme, u.Host = t.base.Scheme, t.base.Host
	c := r.WithContext(r.Context())
	c.URL, c.Host = &u, ""
	return t.next.RoundTrip(c)
}
