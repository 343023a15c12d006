// Package flyapi is the adapter to the Fly Machines API: leader.Cloud and the
// epoch arbiter on superfly/fly-go.
//
// The contract: all methods may be called from any goroutine. Every call has a
// deadline of its own besides ctx's, waits for a rate limiter that keeps to
// the documented limits, and fails with a *leader.CloudError. A write asks
// leader.Check last of all and is sent at most once, whatever the layers above the guard would like, and is never
// repeated in here: after a lost answer its fault is Unknown and the caller
// looks. A read is repeated up to twice, with a backoff, within its deadline.
//
// Reads see the caller's own writes for a while (see overlay), although the
// API's listing is eventually consistent.
//
// No API lease is held around the actions on machines. The operation's
// committed intent already keeps two leaders apart, a lease does not keep out
// what matters (stop, destroy, metadata and create pass it), and a deploy that
// finds a machine leased fails in the user's hands. The only lease is the
// arbiter's, around the founding of an epoch.
//
// The client comes over the network with a deploy token. A machine's own
// /.fly/api would need no token, but what it serves beyond the machine itself
// is not documented, other apps' machines are out of its reach, and only root
// may open it: it is not used.
package flyapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/superfly/fly-go/flaps"

	"flymesh/leader"
)

// DefaultBaseURL is the public address of the Machines API. Inside a Fly
// private network http://_api.internal:4280 is the same.
const DefaultBaseURL = "https://api.machines.dev"

// reads are tried this often; the pause before a repeat doubles from
// readPause, and from limitPause after a 429 and for listings: others use up
// the same limit, and of listings there is least.
const (
	readTries  = 3
	readPause  = 250 * time.Millisecond
	limitPause = 2 * time.Second
)

// errNoTurn marks a call that ran out of time before the rate limiter let it go.
var errNoTurn = errors.New("wait for rate limiter")

// answerMax bounds an answer: a listing of thousands of machines.
const answerMax = 64 << 20

// Options configure a Client.
type Options struct {
	Tokens     map[string]Token      // app -> deploy token; an app without one cannot be called
	BaseURL    string                // scheme and host; empty: DefaultBaseURL
	Transport  http.RoundTripper     // nil: an own one; must not set a ResponseHeaderTimeout
	Logger     *slog.Logger          // nil: silent
	Registerer prometheus.Registerer // nil: metrics are counted but not registered
	UserAgent  string                // empty: "flymesh"
}

// Client calls the Machines API for the apps that it has tokens for.
type Client struct {
	apps    map[string]*appClient
	limits  limits
	overlay overlay
	flights flights
	metrics metrics
	log     *slog.Logger
	idle    func() // closes idle connections

	arbiters []*Arbiter // see every listing of their app; set before the first call
}

var _ leader.Cloud = (*Client)(nil)

// appClient is what calls to one app go through.
type appClient struct {
	name  string
	fly   *flaps.Client
	http  *http.Client // below it the same guard as below fly, without its retry layers
	agent string
}

// New checks the options and returns a client. It sends nothing.
func New(o Options) (*Client, error) {
	if o.BaseURL == "" {
		o.BaseURL = DefaultBaseURL
	}
	if o.UserAgent == "" {
		o.UserAgent = "flymesh"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	base, err := url.Parse(o.BaseURL)
	if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" || base.Path != "" && base.Path != "/" || base.User != nil {
		return nil, errors.New("read base URL of the Machines API: it is not of the form http(s)://host[:port]")
	}
	next, idle := o.Transport, func() {}
	if next == nil {
		t := newTransport()
		next, idle = t, t.CloseIdleConnections
	}
	c := &Client{apps: map[string]*appClient{}, metrics: newMetrics(o.Registerer), log: o.Logger, idle: idle}
	for name, token := range o.Tokens {
		a, err := newApp(name, token, &rebase{next: next, base: base}, o.UserAgent)
		if err != nil {
			return nil, fmt.Errorf("make client for app %q: %w", name, err)
		}
		c.apps[name] = a
	}
	return c, nil
}

func newApp(name string, token Token, next http.RoundTripper, agent string) (*appClient, error) {
	if !validName.MatchString(name) {
		return nil, errors.New("not the name of an app")
	}
	parsed, err := token.parse()
	if err != nil {
		return nil, err
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		return nil, fmt.Errorf("make cookie jar: %w", err)
	}
	g := &guard{next: next, jar: jar}
	// No Logger: fly-go's prints bodies.
	f, err := flaps.NewWithOptions(context.Background(), flaps.NewClientOpts{UserAgent: agent, Tokens: parsed, Transport: g})
	if err != nil {
		return nil, fmt.Errorf("make fly-go client: %w", err)
	}
	return &appClient{name: name, fly: f, http: &http.Client{Transport: g}, agent: agent}, nil
}

// newTransport returns a transport whose timeouts end what ctx cannot see. It
// has no ResponseHeaderTimeout: fly-go takes that for temporary.
func newTransport() *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:   5 * time.Second,
		ExpectContinueTimeout: time.Second,
		IdleConnTimeout:       60 * time.Second,
		MaxIdleConns:          32,
		MaxIdleConnsPerHost:   8,
		ForceAttemptHTTP2:     true,
		HTTP2:                 &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 5 * time.Second},
	}
}

// Close closes idle connections. Calls that are under way go on.
func (c *Client) Close() { c.idle() }

// validName is what may stand in a path: fly-go puts names there as they are.
var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// do makes one call under the action's deadline. The id, a machine or empty
// for the app, is what the rate limit counts.
func (c *Client) do(ctx context.Context, act Action, appName, id string, f func(context.Context, *appClient) error) error {
	a, ok := c.apps[appName]
	switch {
	case !ok:
		return &leader.CloudError{Action: string(act), Fault: leader.Denied, Err: fmt.Errorf("no token for app %q", appName)}
	case id != "" && !validName.MatchString(id):
		return &leader.CloudError{Action: string(act), Fault: leader.Invalid, Err: fmt.Errorf("%q is not a machine ID", id)}
	}
	ctx, cancel := context.WithTimeout(ctx, act.deadline())
	defer cancel()
	tries := 1
	if act.reads() {
		tries = readTries
	}
	for n, pause := 1, readPause; ; n, pause = n+1, 2*pause {
		err := c.try(ctx, act, a, id, f)
		if err == nil {
			return nil
		}
		if err.Status == http.StatusTooManyRequests || act == ActList {
			pause = max(pause, limitPause)
		}
		if n == tries || err.Fault != leader.Retry || !sleep(ctx, pause/2+rand.N(pause)) {
			return err
		}
	}
}

// try sends one request.
func (c *Client) try(ctx context.Context, act Action, a *appClient, id string, f func(context.Context, *appClient) error) *leader.CloudError {
	key := a.name
	if id != "" {
		key = id
	}
	if err := c.limits.wait(ctx, act, key); err != nil {
		err = fmt.Errorf("%w: %w", errNoTurn, err)
		return &leader.CloudError{Action: string(act), Fault: leader.Retry, Err: err}
	}
	if !act.reads() {
		if err := leader.Check(ctx); err != nil {
			return &leader.CloudError{Action: string(act), Fault: leader.Retry, Err: fmt.Errorf("not sent: %w", err)}
		}
	}
	start := time.Now()
	fault, status, err := classified(act, f(withOnce(ctx), a))
	c.metrics.observe(act, fault, time.Since(start))
	if err == nil {
		c.log.Debug("machines api call", "action", act, "app", a.name, "machine", id, "took", time.Since(start))
		return nil
	}
	c.log.Debug("machines api call failed", "action", act, "app", a.name, "machine", id, "took", time.Since(start),
		"fault", fault, "status", status, "error", err)
	return &leader.CloudError{Action: string(act), Fault: fault, Status: status, Err: err}
}

// classified reduces the error of a call to what the guard saw of it.
func classified(act Action, err error) (leader.Fault, int, error) {
	if err == nil {
		return "", 0, nil
	}
	var (
		answer *answerError
		send   *sendError
	)
	switch {
	case errors.As(err, &answer):
		return Classify(act, answer.status, answer.body, nil), answer.status, answer
	case errors.As(err, &send):
		return Classify(act, 0, "", send), 0, send
	}
	return Classify(act, 0, "", err), 0, err
}

// raw sends a request that fly-go has no method for.
func (a *appClient) raw(ctx context.Context, method, path, nonce string, in, out any) error {
	h := map[string][]string{"User-Agent": {a.agent}}
	if nonce != "" {
		h[http.CanonicalHeaderKey(flaps.NonceHeader)] = []string{nonce}
	}
	r, err := a.fly.NewRequest(ctx, method, path, in, h)
	if err != nil {
		return fmt.Errorf("make request: %w", errors.Join(errNotSent, err))
	}
	resp, err := a.http.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, answerMax)).Decode(out); err != nil {
		return fmt.Errorf("decode answer: %w", err)
	}
	return nil
}

// sleep waits and reports whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
