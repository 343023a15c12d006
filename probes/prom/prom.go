// Package prom measures a server by its Prometheus text exposition
// (https://prometheus.io/docs/instrumenting/exposition_formats/): a duration
// histogram becomes the latency sketch of the last minute, counters become
// counts of the last minute, gauges are taken as they are.
//
// Counters are compared series by series between scrapes of one process: a
// restart is seen by its start time or by a count that fell, and then the new
// value is all that happened. A metric that is missing is unknown, with the
// reason; an error counter whose family is there without a matching series is
// 0.
package prom

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"flymesh/probes"
	"flymesh/probes/report"
)

// startSlack is how far a start time may be off: it is rounded, and some
// servers compute it from the kernel's boot time.
const startSlack = 2 * time.Second

// Options are selectors; an empty one measures nothing.
type Options struct {
	Name     string // default "prometheus"
	URL      string
	Latency  string // duration histogram, seconds
	Requests string // counter; default: the count of the histogram
	Errors   string // counter
	InFlight string // gauge
	Queue    string // gauge
	Scope    report.QueueScope
	Window   time.Duration // that counts and the sketch cover; default a minute

	// Late: the server makes the families of Requests and Errors at their first
	// event; while it has the family of Queue, none of them means none yet.
	Late bool

	P95    []Named // facts: the p95 of the window of other histograms
	Gauges []Named // facts: gauges as they are
}

// Named is a selector whose value is a fact of that name.
type Named struct{ Name, Selector string }

// extra is a Named that was parsed.
type extra struct {
	name string
	sel  Selector
	last map[string]buckets // of a histogram
}

// Prom is the prober. It is used from one goroutine.
type Prom struct {
	name, url string
	scope     report.QueueScope
	window    time.Duration
	fields    probes.Field
	late      bool // Options.Late
	client    *http.Client

	latency, requests, errors, inFlight, queue *Selector
	p95, gauges                                []extra

	at        time.Time // of the last good scrape
	started   float64
	histogram map[string]buckets
	counters  [2]map[string]float64 // requests, errors
	slots     []slot                // deltas of the window, oldest first
}

// slot is what happened between two scrapes.
type slot struct {
	at               time.Time
	latency          masses
	p95              []masses // parallel to Prom.p95
	requests, errors float64
}

// New checks the selectors and returns the prober.
func New(o Options) (*Prom, error) {
	p := &Prom{name: o.Name, url: o.URL, scope: o.Scope, late: o.Late, window: cmp.Or(o.Window, time.Minute), client: &http.Client{Transport: &http.Transport{}}}
	if p.name == "" {
		p.name = "prometheus"
	}
	if o.URL == "" {
		return nil, errors.New("make prometheus probe: no url")
	}
	var problems []error
	for _, s := range []struct {
		name, text string
		to         **Selector
		field      probes.Field
	}{
		{"latency", o.Latency, &p.latency, probes.Latency},
		{"requests", o.Requests, &p.requests, probes.Requests},
		{"errors", o.Errors, &p.errors, probes.Errors},
		{"in_flight", o.InFlight, &p.inFlight, probes.InFlight},
		{"queue", o.Queue, &p.queue, probes.Queue},
	} {
		if s.text == "" {
			continue
		}
		sel, err := ParseSelector(s.text)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", s.name, err))
		}
		*s.to = &sel
		p.fields |= s.field
	}
	if p.latency != nil {
		p.fields |= probes.Requests
	}
	for _, list := range []struct {
		from []Named
		to   *[]extra
	}{{o.P95, &p.p95}, {o.Gauges, &p.gauges}} {
		for _, n := range list.from {
			sel, err := ParseSelector(n.Selector)
			if err != nil {
				problems = append(problems, fmt.Errorf("%s: %w", n.Name, err))
			}
			*list.to = append(*list.to, extra{name: n.Name, sel: sel})
		}
	}
	if len(problems) > 0 {
		return nil, fmt.Errorf("make prometheus probe: %w", errors.Join(problems...))
	}
	return p, nil
}

var _ probes.Prober = (*Prom)(nil)

// Name returns the name of the probe.
func (p *Prom) Name() string { return p.name }

// Fields returns what the selectors measure.
func (p *Prom) Fields() probes.Field { return p.fields }

// Probe scrapes the server. Counts need a scrape before to compare with, so
// the first one has none, and neither has one after more than the window.
func (p *Prom) Probe(ctx context.Context) (probes.Reading, error) {
	s, err := get(ctx, p.client, p.url)
	if err != nil {
		return probes.Reading{}, fmt.Errorf("scrape: %w", err)
	}
	now := time.Now()
	started := s.started()
	restarted := started != p.started
	began := time.UnixMilli(int64(1000 * started))
	if now.Sub(p.at) > p.window || restarted && began.Before(p.at.Add(-startSlack)) {
		// The first scrape, one after a long gap, or one of another server: it
		// ran before the last scrape, so its counts are not of since then.
		p.histogram, p.counters, p.slots, restarted = nil, [2]map[string]float64{}, nil, false
		for i := range p.p95 {
			p.p95[i].last = nil
		}
	}
	p.at, p.started = now, started

	var m probes.Reading
	d := slot{at: now, latency: masses{}}
	missing := func(field string, err error) {
		m.Problems = append(m.Problems, field+": "+err.Error())
	}
	var latencyErr error
	if p.latency != nil {
		latencyErr = histogram(s, *p.latency, &p.histogram, restarted, d.latency)
	}
	for i := range p.p95 {
		e, add := &p.p95[i], masses{}
		// Its absence is no problem of the probe's: nothing decides by it.
		_ = histogram(s, e.sel, &e.last, restarted, add)
		d.p95 = append(d.p95, add)
	}
	requestsErr, requests := latencyErr, p.requests
	d.requests = d.latency.count()
	if requests != nil {
		d.requests, requestsErr = p.counter(s, 0, requests, restarted)
	}
	var errorsErr error
	d.errors, errorsErr = p.counter(s, 1, p.errors, restarted)
	p.slots = append(p.slots, d)
	for now.Sub(p.slots[0].at) >= p.window {
		p.slots = p.slots[1:]
	}

	all := slot{latency: masses{}}
	for _, d := range p.slots {
		for span, n := range d.latency {
			all.latency[span] += n
		}
		all.requests += d.requests
		all.errors += d.errors
	}
	m.Facts = p.facts(s)
	if p.latency != nil {
		if latencyErr != nil {
			missing("latency", latencyErr)
		} else {
			m.Latency = all.latency.sketch()
		}
	}
	if p.fields&probes.Requests != 0 {
		if requestsErr == nil {
			m.Requests = report.Of(all.requests)
		} else if requests != nil {
			missing("requests", requestsErr)
		}
	}
	if p.errors != nil {
		if errorsErr != nil {
			missing("errors", errorsErr)
		} else {
			m.Errors = report.Of(all.errors)
		}
	}
	if p.inFlight != nil {
		if m.InFlight, err = gauge(s, *p.inFlight); err != nil {
			missing("in_flight", err)
		}
	}
	if p.queue != nil {
		m.QueueScope = p.scope
		if m.Queue, err = gauge(s, *p.queue); err != nil {
			missing("queue", err)
		}
	}
	return m, nil
}

var errFirst = errors.New("the first scrape has no rate")

// facts reads what only people look at. What the server does not have is left
// out; a p95 needs a request in the window.
func (p *Prom) facts(s scrape) (facts []probes.Fact) {
	for i, e := range p.p95 {
		all := masses{}
		for _, d := range p.slots {
			for span, n := range d.p95[i] {
				all[span] += n
			}
		}
		if n := all.count(); n > 0 {
			facts = append(facts, probes.Fact{Name: e.name + "_p95_seconds", Value: report.Of(all.sketch().Quantile(0.95))},
				probes.Fact{Name: e.name + "_samples", Value: report.Of(n)})
		}
	}
	for _, e := range p.gauges {
		if v, err := gauge(s, e.sel); err == nil {
			facts = append(facts, probes.Fact{Name: e.name, Value: v})
		}
	}
	return facts
}

// histogram adds to d what the histogram counted since the last scrape, and
// keeps what it says now.
func histogram(s scrape, sel Selector, last *map[string]buckets, restarted bool, d masses) error {
	now, err := s.histograms(sel)
	if err != nil {
		return err
	}
	before := *last
	*last = now
	if before == nil {
		return errFirst
	}
	for key, b := range now {
		if restarted {
			d.add(nil, b)
		} else {
			d.add(before[key], b)
		}
	}
	return nil
}

// counter returns what the counter in place i counted since the last scrape.
func (p *Prom) counter(s scrape, i int, sel *Selector, restarted bool) (float64, error) {
	if sel == nil {
		return 0, nil
	}
	now, err := s.series(*sel)
	if err != nil && p.late && p.queue != nil && s[p.queue.Name] != nil && errors.Is(err, errNoMetric) {
		now, err = map[string]float64{}, nil
	}
	if err != nil {
		return 0, err
	}
	last := p.counters[i]
	p.counters[i] = now
	if last == nil {
		return 0, errFirst
	}
	delta := 0.0
	for key, x := range now {
		if before := last[key]; !restarted && x >= before {
			x -= before
		}
		delta += x
	}
	return delta, nil
}

// gauge returns the sum of the series that the selector picks.
func gauge(s scrape, sel Selector) (report.Value, error) {
	all, err := s.series(sel)
	if err != nil {
		return report.Value{}, err
	}
	if len(all) == 0 {
		return report.Value{}, fmt.Errorf("no series matches %s", sel)
	}
	total := 0.0
	for _, x := range all {
		total += x
	}
	if total < 0 {
		return report.Value{}, fmt.Errorf("%s is negative: %v", sel, total)
	}
	return report.Of(total), nil
}
