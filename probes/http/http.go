// Package http asks a URL whether the app takes traffic: by status, by a text
// in the body, by being answered at all. Redirects are not followed: a login
// page is no healthy answer.
package http

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"flymesh/probes"
	"flymesh/probes/report"
)

// maxBody is how much of a body is searched, in bytes.
const maxBody = 1 << 20

// window is the time that the sketch of round trips covers.
const window = time.Minute

// Options say what to ask and what is a good answer.
type Options struct {
	Name   string // default "http"
	URL    string
	Status int    // default 200
	Body   string // a text the body must contain; "": any body
	// Sample makes the durations of the probe's own requests the latency of
	// the machine, for an app that exports none. They are few: one each probe.
	Sample bool
}

// HTTP is the prober. It is used from one goroutine.
type HTTP struct {
	options Options
	client  *http.Client
	trips   []trip // of the window, oldest first
}

type trip struct {
	at      time.Time
	seconds float64
}

// New checks the options and returns the prober.
func New(o Options) (*HTTP, error) {
	if o.Name == "" {
		o.Name = "http"
	}
	if o.Status == 0 {
		o.Status = http.StatusOK
	}
	u, err := url.Parse(o.URL)
	if err == nil && (u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		err = errors.New("want http://host/path")
	}
	if err == nil && (o.Status < 200 || o.Status > 599) {
		err = fmt.Errorf("want a status of 200 to 599, got %d", o.Status)
	}
	if err != nil {
		return nil, fmt.Errorf("make http probe %q: %w", o.URL, err)
	}
	return &HTTP{options: o, client: &http.Client{
		Transport:     &http.Transport{},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

var _ probes.Prober = (*HTTP)(nil)

// Name returns the name of the probe.
func (h *HTTP) Name() string { return h.options.Name }

// Fields returns Latency where the own round trips are sampled, else nothing.
func (h *HTTP) Fields() probes.Field {
	if h.options.Sample {
		return probes.Latency
	}
	return 0
}

// Probe asks once. An answer that is not the wanted one is a reading (not
// ready, with the reason); no answer is an error. Both leave the latency
// absent: the time to a refusal says nothing about work.
func (h *HTTP) Probe(ctx context.Context) (probes.Reading, error) {
	o := h.options
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, o.URL, nil)
	if err != nil {
		return probes.Reading{}, err
	}
	req.Header.Set("User-Agent", "flymesh-probe")
	start := time.Now()
	resp, err := h.client.Do(req)
	if err != nil {
		return probes.Reading{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return probes.Reading{}, fmt.Errorf("read body of %s: %w", o.URL, err)
	}
	end := time.Now()

	if resp.StatusCode != o.Status {
		return h.refuse(fmt.Sprintf("status %d, want %d", resp.StatusCode, o.Status)), nil
	}
	if !bytes.Contains(body, []byte(o.Body)) {
		return h.refuse(fmt.Sprintf("body does not contain %q", o.Body)), nil
	}
	yes := true
	m := probes.Reading{Ready: &yes}
	if o.Sample {
		h.trips = append(h.trips, trip{end, end.Sub(start).Seconds()})
		m.Latency = report.NewSketch()
		for end.Sub(h.trips[0].at) >= window {
			h.trips = h.trips[1:]
		}
		for _, t := range h.trips {
			m.Latency.Add(t.seconds)
		}
	}
	return m, nil
}

func (h *HTTP) refuse(reason string) probes.Reading {
	m := probes.NotReady(reason)
	if h.options.Sample {
		m.Problems = []string{"latency: " + reason}
	}
	return m
}
