// Package embeddings measures an embeddings server: whether its model is
// loaded, by a real embed of one text that must come back with the expected
// dimension and finite numbers; how many texts wait; durations; and overload,
// where a refusal (429) counts as an error although it is neither a 5xx nor a
// timeout.
//
// Four dialects: "tei" (text-embeddings-inference, its te_ metrics), "infinity"
// (GET /models), "ollama" (GET /api/ps) and "openai" (POST /v1/embeddings
// alone). A refused connection and a 503 both mean that the model is not
// loaded. Once a real embed has answered, a server that is too busy for the
// next one stays loaded: it is slow, not gone.
//
// What a server measures itself begins after it has read the request: under
// overload its durations flatter. agent/proxy measures at the door.
package embeddings

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"flymesh/probes"
	"flymesh/probes/prom"
	"flymesh/probes/report"
)

// Options say which server and what it should answer.
type Options struct {
	Name      string // default "embeddings"
	URL       string // without a path
	Dialect   string // tei | infinity | ollama | openai; default tei
	Model     string // for all but tei
	Dimension int    // of a vector; 0: whatever the first embed has
	Window    time.Duration
	// Elsewhere leaves requests, errors, latency and in-flight to another source.
	Elsewhere bool
}

// Dialects are the servers that are known.
var Dialects = []string{"tei", "infinity", "ollama", "openai"}

// Embeddings is the prober. It is used from one goroutine.
type Embeddings struct {
	options   Options
	dialect   dialect
	client    *http.Client
	metrics   *prom.Prom // nil: the dialect has none
	warm      bool       // a real embed answered, and nothing since says that the model is gone
	dimension int
}

// New checks the options and returns the prober.
func New(o Options) (*Embeddings, error) {
	if o.Name == "" {
		o.Name = "embeddings"
	}
	if o.Dialect == "" {
		o.Dialect = "tei"
	}
	o.URL = strings.TrimSuffix(o.URL, "/")
	e := &Embeddings{options: o, dimension: o.Dimension, client: &http.Client{
		Transport:     &http.Transport{},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	u, err := url.Parse(o.URL)
	known := false
	e.dialect, known = dialectOf(o.Dialect)
	switch {
	case err != nil:
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Path != "":
		err = errors.New("want http://host:port without a path")
	case !known:
		err = fmt.Errorf("dialect %q is none of %s", o.Dialect, strings.Join(Dialects, ", "))
	case o.Model == "" && o.Dialect != "tei":
		err = fmt.Errorf("dialect %s needs the model's name", o.Dialect)
	case o.Dimension < 0:
		err = fmt.Errorf("dimension %d is negative", o.Dimension)
	}
	if err == nil && e.dialect.metrics != nil {
		m := e.dialect.metrics()
		if o.Elsewhere {
			m.Latency, m.Requests, m.Errors = "", "", ""
		}
		m.URL, m.Window = o.URL+"/metrics", o.Window
		e.metrics, err = prom.New(m)
	}
	if err != nil {
		return nil, fmt.Errorf("make embeddings probe %q: %w", o.URL, err)
	}
	return e, nil
}

var _ probes.Prober = (*Embeddings)(nil)

// Name returns the name of the probe.
func (e *Embeddings) Name() string { return e.options.Name }

// Fields returns what the dialect tells.
func (e *Embeddings) Fields() probes.Field {
	f := e.dialect.fields
	if e.metrics != nil {
		f |= e.metrics.Fields()
	}
	if e.options.Elsewhere {
		f &^= probes.InFlight | probes.Requests | probes.Errors | probes.Latency
	}
	return f
}

// Probe reads what the server tells, then embeds.
func (e *Embeddings) Probe(ctx context.Context) (probes.Reading, error) {
	var m probes.Reading
	e.measure(ctx, &m)
	begin := time.Now()
	dimension, err := e.embed(ctx)
	took := time.Since(begin)
	ready := true
	var busy *busyError
	switch {
	case err == nil && e.dimension != 0 && dimension != e.dimension:
		err = fmt.Errorf("an embed has %d dimensions, want %d", dimension, e.dimension)
		e.warm, ready = false, false
	case err == nil:
		e.warm, e.dimension = true, dimension
		m.Facts = append(m.Facts, fact("embed_seconds", took.Seconds()), fact("dimension", float64(dimension)))
	case e.warm && errors.As(err, &busy):
		m.Problems = append(m.Problems, "embed: "+err.Error())
	case e.warm && errors.Is(err, context.DeadlineExceeded) && working(m):
		m.Problems = append(m.Problems, fmt.Sprintf("embed: no answer within %v, but the server works", took.Round(time.Millisecond)))
	default:
		e.warm, ready = false, false
	}
	if errors.As(err, &busy) {
		m.Facts = append(m.Facts, fact("overloaded", 1))
	} else if err == nil {
		m.Facts = append(m.Facts, fact("overloaded", 0))
	}
	warm := e.warm
	m.Ready, m.Warm = &ready, &warm
	if !ready {
		m.Reason = "model not loaded: " + err.Error()
	}
	return m, nil
}

// working says whether the server has something to do that an embed may wait
// behind.
func working(m probes.Reading) bool {
	return m.Queue.OK && m.Queue.X > 0 || m.InFlight.OK && m.InFlight.X > 0 || m.Requests.OK && m.Requests.X > 0
}

// measure adds what the server tells about its load.
func (e *Embeddings) measure(ctx context.Context, m *probes.Reading) {
	if end, ok := ctx.Deadline(); ok { // the embed needs the rest
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(end)/2)
		defer cancel()
	}
	if e.metrics != nil {
		s, err := e.metrics.Probe(ctx)
		if err != nil {
			m.Problems = append(m.Problems, err.Error())
		}
		m.Queue, m.Latency, m.Requests, m.Errors = s.Queue, s.Latency, s.Requests, s.Errors
		m.Problems = append(m.Problems, s.Problems...)
		for _, f := range s.Facts {
			if f.Name == inFlightFact {
				m.InFlight = f.Value
			} else {
				m.Facts = append(m.Facts, f)
			}
		}
	}
	if e.dialect.stats != nil {
		if err := e.dialect.stats(ctx, e, m); err != nil {
			m.Problems = append(m.Problems, err.Error())
		}
	}
}

func fact(name string, x float64) probes.Fact {
	return probes.Fact{Name: name, Value: report.Of(x)}
}
