package config

import (
	"net/url"
	"strings"
	"time"

	"flymesh/leader/decide"
)

// The types of a probe.
const (
	probeHost       = "host"
	probeHTTP       = "http"
	probePrometheus = "prometheus"
	probeRedis      = "redis"
	probeBull       = "bull"
	probeN8N        = "n8n"
	probeEmbeddings = "embeddings"
)

var probeTypes = []string{probeHost, probeHTTP, probePrometheus, probeRedis, probeBull, probeN8N, probeEmbeddings}

// Supplies returns the metrics that the probe measures.
func (p Probe) Supplies() []decide.Metric {
	switch p.Type {
	case probeHost, probeRedis:
		return []decide.Metric{decide.CPU, decide.Memory}
	case probePrometheus:
		var m []decide.Metric
		if p.Latency != "" {
			m = append(m, decide.P95)
		}
		if p.Queue != "" {
			m = append(m, decide.Queue)
		}
		if p.Errors != "" && (p.Requests != "" || p.Latency != "") {
			m = append(m, decide.ErrorRate)
		}
		return m
	case probeBull:
		return []decide.Metric{decide.Queue}
	case probeN8N:
		if p.Role == "worker" || p.Elsewhere {
			return []decide.Metric{decide.Queue}
		}
		return []decide.Metric{decide.P95, decide.Queue, decide.ErrorRate}
	case probeEmbeddings:
		return p.embeddingsSupply()
	}
	return nil
}

func supplied(probes []Probe) map[decide.Metric]bool {
	m := map[decide.Metric]bool{}
	for _, p := range probes {
		for _, metric := range p.Supplies() {
			m[metric] = true
		}
	}
	return m
}

// sourceAdvice says which probe would supply a metric.
func sourceAdvice(m decide.Metric) string {
	switch m {
	case decide.P95:
		return `add a probe of type "n8n" or "embeddings", one of type "prometheus" with latency = "HISTOGRAM", or a proxy`
	case decide.Queue:
		return `add a probe of type "bull", "n8n" or "embeddings", or one of type "prometheus" with queue = "GAUGE"`
	case decide.ErrorRate:
		return `add a probe of type "n8n" or "embeddings", one of type "prometheus" with errors = "COUNTER{...}" and requests or latency, or a proxy`
	}
	return "the host probe always does"
}

// readProbes reads every probe and puts a host probe first where the file has
// none, so that CPU and memory always have a source.
func readProbes(service *table, m Mesh, proxy Proxy) []Probe {
	var probes []Probe
	hosts := 0
	from := map[string]string{} // what only one probe may measure -> key that does
	if proxy.Listen != "" {
		for _, name := range traffic {
			from[name] = service.at("proxy")
		}
	}
	for _, t := range service.subs("probe") {
		p := readProbe(t, m)
		p.Elsewhere = proxy.Listen != "" && (p.Type == probeN8N || p.Type == probeEmbeddings)
		if p.Type == probeHost {
			if hosts++; hosts > 1 {
				t.bad("type", "a service has one host probe")
			}
		}
		for _, field := range exclusive(p) {
			if other, taken := from[field.name]; taken {
				t.bad(field.key, "%s is measured by %s already; one probe of a service may say it", field.name, other)
				continue
			}
			from[field.name] = t.at(field.key)
		}
		probes = append(probes, p)
	}
	if hosts == 0 {
		probes = append([]Probe{defaultProbe(probeHost, m)}, probes...)
	}
	return probes
}

// measured is one thing that a single probe of a service may measure, and the
// key that asks for it. Two queue depths must not be added, and two request
// counts may count the same requests.
type measured struct{ name, key string }

// traffic is what a proxy measures.
var traffic = []string{"latency", "error count", "request count", "in-flight count"}

func exclusive(p Probe) []measured {
	var list []measured
	add := func(name, key, value string) {
		if value != "" {
			list = append(list, measured{name, key})
		}
	}
	for _, m := range p.Supplies() {
		switch {
		case p.Type == probePrometheus:
		case m == decide.Queue:
			add("queue depth", "type", p.Type)
		case m == decide.P95:
			add("latency", "type", p.Type)
			add("request count", "type", p.Type)
		case m == decide.ErrorRate:
			add("error count", "type", p.Type)
		}
	}
	if p.Type == probeEmbeddings && !p.Elsewhere && len(p.embeddingsSupply()) > 0 {
		add("in-flight count", "type", p.Type)
	}
	add("latency", "latency", p.Latency)
	add("error count", "errors", p.Errors)
	if p.Requests != "" {
		add("request count", "requests", p.Requests)
	} else { // the histogram's own count stands for it
		add("request count", "latency", p.Latency)
	}
	add("in-flight count", "in_flight", p.InFlight)
	add("queue depth", "queue", p.Queue)
	return list
}

func readProbe(t *table, m Mesh) Probe {
	kind := t.need("type", probeHTTP)
	d := defaultProbe(kind, m)
	d.Every = t.spanSaid("every", d.Every, 100*time.Millisecond, 5*time.Minute, "mesh.report_every")
	d.Timeout = t.span("timeout", min(d.Timeout, d.Every), 10*time.Millisecond, time.Minute)
	if d.Timeout > d.Every {
		t.bad("timeout", "must be at most every (%s)", shortDuration(d.Every))
	}
	d.Ready = t.flag("ready", d.Ready)
	switch kind {
	case probeHost:
		d.CPU = t.number("cpu", d.CPU, 1024)
	case probeHTTP:
		d.URL = readURL(t, "http://127.0.0.1:8080/health")
		d.Status = t.count("status", d.Status, 100, 599)
		d.Body = t.str("body", d.Body)
	case probePrometheus:
		d.URL = readURL(t, "http://127.0.0.1:8080/metrics")
		d.Latency = t.str("latency", d.Latency)
		d.Errors = t.str("errors", d.Errors)
		d.Requests = t.str("requests", d.Requests)
		d.InFlight = t.str("in_flight", d.InFlight)
		d.Queue = t.str("queue", d.Queue)
		d.Scope = t.str("scope", d.Scope, "machine", "service")
		switch {
		case d.Latency+d.Errors+d.Requests+d.InFlight+d.Queue == "":
			t.f.bad(t.path, "", "measures nothing; give it at least one of latency, errors, requests, in_flight, queue")
		case d.Errors != "" && d.Requests == "" && d.Latency == "":
			t.bad("errors", "needs requests or latency beside it: an error rate is errors over requests")
		}
		if d.Scope != "machine" && d.Queue == "" {
			t.bad("scope", "says what queue counts, but there is no queue")
		}
	case probeRedis:
		readRedis(t, &d)
	case probeBull:
		readRedis(t, &d)
		readBull(t, &d)
	case probeN8N:
		readN8N(t, &d)
	case probeEmbeddings:
		readEmbeddings(t, &d)
	default:
		if kind != "" {
			t.bad("type", "must be %s%s", oneOf(probeTypes), didYouMean(kind, probeTypes))
		}
		// The keys cannot be judged without knowing the type.
		t.free = true
	}
	return d
}

func readURL(t *table, example string) string {
	raw := t.need("url", example)
	if raw == "" {
		return ""
	}
	u, err := url.Parse(plain(raw))
	switch {
	case err == nil && u.User != nil:
		t.f.bad(t.at("url"), "", "must not hold a user or password: this file is in every image")
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		t.bad("url", "must be an http or https URL, e.g. %q", example)
	}
	return raw
}

// plain writes ${FLY_PRIVATE_IP} as $FLY_PRIVATE_IP, which an address may hold:
// what it stands for is known on the machine alone.
func plain(address string) string { return braces.Replace(address) }

var braces = strings.NewReplacer("${", "$", "}", "")
