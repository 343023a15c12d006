package prom

import (
	"math"
	"strings"
	"testing"

	"flymesh/probes"
	"flymesh/probes/report"
)

// Counters that appear with their first event lose none, and a family that is
// announced without series is no missing metric.
func TestFirstEvents(t *testing.T) {
	s := serve(t)
	late := make1(t, Options{URL: s.URL, Requests: "requests", Errors: "failures", Queue: "waiting", Late: true})
	strict := make1(t, Options{URL: s.URL, Name: "strict", Requests: "requests", Errors: "failures"})
	const alive = "# TYPE waiting gauge\nwaiting 0\n"
	s.text(alive)
	probe(t, late)
	if m := probe(t, late); m.Requests != report.Of(0) || m.Errors != report.Of(0) {
		t.Errorf("nothing happened yet: %+v", m)
	}
	if m := probe(t, strict); m.Requests.OK || m.Errors.OK || len(m.Problems) != 2 {
		t.Errorf("a server without these metrics: %+v", m)
	}
	s.text(alive + "# TYPE requests counter\nrequests{m=\"a\"} 5\n# TYPE failures counter\nfailures{e=\"x\"} 2\n")
	if m := probe(t, late); m.Requests != report.Of(5) || m.Errors != report.Of(2) {
		t.Errorf("first events: %+v", m)
	}
	s.text("other 1\n")
	if m := probe(t, late); m.Requests.OK || m.Errors.OK || m.Queue.OK {
		t.Errorf("another server: %+v", m)
	}

	declared := make1(t, Options{URL: s.URL, Latency: "took_seconds"})
	s.text("# HELP took_seconds x\n# TYPE took_seconds histogram\n")
	if m := probe(t, declared); strings.Contains(strings.Join(m.Problems, ";"), "no such metric") {
		t.Errorf("announced: %+v", m)
	}
	s.text("# TYPE took_seconds histogram\ntook_seconds_bucket{le=\"1\"} 3\ntook_seconds_bucket{le=\"+Inf\"} 4\ntook_seconds_sum 5\ntook_seconds_count 4\n")
	if m := probe(t, declared); m.Requests != report.Of(4) || m.Latency == nil || m.Latency.Count() != 4 {
		t.Errorf("first requests: %+v", m)
	}
}

// Other histograms and gauges come as facts; what is missing is left out.
func TestFacts(t *testing.T) {
	s := serve(t)
	p := make1(t, Options{URL: s.URL, P95: []Named{{"run", "run_seconds"}, {"none", "no_such"}}, Gauges: []Named{{"lag_seconds", "lag"}, {"gone", "nothing"}}})
	text := func(low, all string) string {
		return "# TYPE lag gauge\nlag 0.5\n# TYPE run_seconds histogram\nrun_seconds_bucket{le=\"30\"} " + low + "\nrun_seconds_bucket{le=\"+Inf\"} " + all + "\nrun_seconds_sum 1\nrun_seconds_count " + all + "\n"
	}
	s.text(text("10", "10"))
	if m := probe(t, p); len(m.Facts) != 1 || m.Facts[0] != (probes.Fact{Name: "lag_seconds", Value: report.Of(0.5)}) {
		t.Errorf("first scrape: %+v", m.Facts)
	}
	s.text(text("106", "110"))
	m := probe(t, p)
	if len(m.Facts) != 3 || m.Facts[0].Name != "run_p95_seconds" || m.Facts[0].Value.X > 30 || m.Facts[1] != (probes.Fact{Name: "run_samples", Value: report.Of(100)}) {
		t.Errorf("96 of 100 within 30 s: %+v", m.Facts)
	}
	s.text(text("106", "120"))
	if m := probe(t, p); m.Facts[0].Value.X <= 30 || math.IsNaN(m.Facts[0].Value.X) || len(m.Problems) != 0 {
		t.Errorf("96 of 110 within 30 s: %+v", m)
	}
}
