package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"flymesh/leader"
	"flymesh/leader/decide"
	"flymesh/raftstore/state"
)

// clientTimeout bounds each call whose context has no deadline; it is longer
// than what a server that forwards takes.
const clientTimeout = 15 * time.Second

// Client talks to one agent. It keeps no connections; its methods may be
// called from any goroutine. An error answer is a *ResponseError.
type Client struct {
	base string // URL without path
	http *http.Client
}

// NewSocketClient returns a client of the agent on this machine.
func NewSocketClient(path string) *Client {
	d := net.Dialer{Timeout: dialTimeout}
	return newClient("http://agent", &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", path) },
	})
}

// NewMeshClient returns a client of another machine's agent by its mesh port.
func NewMeshClient(hostport string, conf *tls.Config) *Client {
	c := conf.Clone()
	c.NextProtos = []string{protoHTTP}
	return newClient("https://"+hostport, &http.Transport{
		TLSClientConfig: c, TLSHandshakeTimeout: handshakeTimeout,
		DialContext: (&net.Dialer{Timeout: dialTimeout}).DialContext,
	})
}

// newClient sets what both kinds have in common. Connections are not kept: an
// agent asks others rarely, and a kept one may lead to a machine that is gone.
func newClient(base string, t *http.Transport) *Client {
	t.DisableKeepAlives = true
	t.MaxResponseHeaderBytes = maxHeader
	return &Client{base: base, http: &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Status asks for the whole mesh; without a leader, for what the agent knows.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return get[Status](ctx, c, PathStatus)
}

// Why asks for the newest verdict on a service.
func (c *Client) Why(ctx context.Context, service string) (decide.Verdict, error) {
	return get[decide.Verdict](ctx, c, PathWhy+url.PathEscape(service))
}

// Events asks for what happened after an index, oldest first.
func (c *Client) Events(ctx context.Context, after uint64) ([]state.Event, error) {
	return get[[]state.Event](ctx, c, PathEvents+"?after="+strconv.FormatUint(after, 10))
}

// Scale asks for a size.
func (c *Client) Scale(ctx context.Context, r ScaleRequest) (Accepted, error) {
	return post[Accepted](ctx, c, PathScale, r)
}

// Pause stops scaling of a service for a while.
func (c *Client) Pause(ctx context.Context, r PauseRequest) (Accepted, error) {
	return post[Accepted](ctx, c, PathPause, r)
}

// Resume ends a pause.
func (c *Client) Resume(ctx context.Context, r PauseRequest) (Accepted, error) {
	return post[Accepted](ctx, c, PathResume, r)
}

// Propose has the leader commit a command. A Result with a Rejection is no
// error here.
func (c *Client) Propose(ctx context.Context, cmd state.Command) (state.Result, error) {
	return post[state.Result](ctx, c, PathPropose, cmd)
}

// Windows copies the leader's history of reports.
func (c *Client) Windows(ctx context.Context) ([]byte, error) {
	return c.do(ctx, http.MethodGet, PathWindows, nil)
}

// Drain asks the agent to drain and waits for the outcome.
func (c *Client) Drain(ctx context.Context, r DrainRequest) (leader.DrainResult, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, r.Deadline+2*drainMargin)
		defer cancel()
	}
	return post[leader.DrainResult](ctx, c, PathDrain, r)
}

// Admit tells the agent that its boot may be ready.
func (c *Client) Admit(ctx context.Context, r AdmitRequest) error {
	_, err := post[struct{}](ctx, c, PathAdmit, r)
	return err
}

// Health asks for the agent's own readiness; ready is what its status code says.
func (c *Client) Health(ctx context.Context) (h Health, ready bool, err error) {
	status, b, err := c.send(ctx, http.MethodGet, PathHealth, nil)
	if err != nil {
		return Health{}, false, err
	}
	if status != http.StatusOK && status != http.StatusServiceUnavailable {
		return Health{}, false, problemIn(status, b)
	}
	h, err = decodeAnswer[Health](b)
	return h, status == http.StatusOK, err
}

// Metrics asks for the agent's metrics in the text format of Prometheus.
func (c *Client) Metrics(ctx context.Context) ([]byte, error) {
	return c.do(ctx, http.MethodGet, PathMetrics, nil)
}

func get[T any](ctx context.Context, c *Client, path string) (T, error) {
	b, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		var none T
		return none, err
	}
	return decodeAnswer[T](b)
}

func post[T any](ctx context.Context, c *Client, path string, v any) (T, error) {
	var none T
	body, err := json.Marshal(v)
	if err != nil {
		return none, fmt.Errorf("encode request: %w", err)
	}
	b, err := c.do(ctx, http.MethodPost, path, body)
	if err != nil {
		return none, err
	}
	return decodeAnswer[T](b)
}

// decodeAnswer is not strict: a newer agent may say more.
func decodeAnswer[T any](b []byte) (T, error) {
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		return v, fmt.Errorf("decode answer: %w", err)
	}
	return v, nil
}

// do sends a request and returns the body of a 200.
func (c *Client) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	status, b, err := c.send(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, problemIn(status, b)
	}
	return b, nil
}

func (c *Client) send(ctx context.Context, method, path string, body []byte) (int, []byte, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, clientTimeout)
		defer cancel()
	}
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, fmt.Errorf("make request: %w", err)
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return 0, nil, fmt.Errorf("read answer of %s: %w", path, err)
	}
	return resp.StatusCode, b, nil
}

func problemIn(status int, b []byte) error {
	e := &ResponseError{Status: status}
	if err := json.Unmarshal(b, &e.Problem); err != nil || e.Problem.Error == "" {
		e.Problem = Problem{Error: fmt.Sprintf("the agent answers %d: %.200q", status, b), Code: CodeInternal}
	}
	return e
}
