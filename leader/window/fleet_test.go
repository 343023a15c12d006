package window_test

import (
	"fmt"
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"flymesh/leader/window"
	"flymesh/probes/report"
)

var inf = math.Inf(1)

// tick makes one sample of the reports, with further machines that are started
// and silent.
func tick(reports []report.Report, silent ...string) window.Sample {
	w := newWindow()
	ids := silent
	for _, r := range reports {
		ids = append(ids, r.Machine)
	}
	w.Expect(t0, "api", ids)
	for i, r := range reports {
		w.Add(t0.Add(time.Duration(i)*time.Millisecond), r)
	}
	w.Tick(t0.Add(time.Second))
	return w.Series("api")[0]
}

func with(r report.Report, change func(*report.Report)) report.Report {
	change(&r)
	return r
}

func TestMeans(t *testing.T) {
	a, b := say("a", 1, 0.9, 100, 1), say("b", 1, 0.5, 100, 1)
	warming := with(say("c", 1, 1, 0, 0), func(r *report.Report) { r.Readiness = report.Warming })
	for _, c := range []struct {
		name       string
		s          window.Sample
		cpu, queue [2]float64 // best, worst
	}{
		{"all heard", tick([]report.Report{a, b}), [2]float64{0.7, 0.7}, [2]float64{7, 7}},
		{"one missing", tick([]report.Report{a, b}, "x"), [2]float64{1.4 / 3, 2.4 / 3}, [2]float64{14. / 3, inf}},
		{"a newcomer does not count", tick([]report.Report{a, b, warming}), [2]float64{0.7, 0.7}, [2]float64{7, 7}},
		{"none is ready: all count", tick([]report.Report{warming}), [2]float64{1, 1}, [2]float64{10, 10}},
		{"one does not say", tick([]report.Report{a, with(b, func(r *report.Report) {
			r.CPU, r.Queue = report.Value{}, report.Of(math.NaN())
		})}), [2]float64{0.45, 0.95}, [2]float64{4.5, inf}},
		{"none heard", tick(nil, "x"), [2]float64{0, 1}, [2]float64{0, inf}},
		{"overdrawn", tick([]report.Report{with(a, func(r *report.Report) { r.CPU = report.Of(1.4) })}, "x"),
			[2]float64{0.7, 1.4}, [2]float64{4.5, inf}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !near(c.s.CPU.Best, c.cpu[0]) || !near(c.s.CPU.Worst, c.cpu[1]) {
				t.Errorf("cpu: got %+v, want %v", c.s.CPU, c.cpu)
			}
			if !near(c.s.Queue.Best, c.queue[0]) || !near(c.s.Queue.Worst, c.queue[1]) {
				t.Errorf("queue: got %+v, want %v", c.s.Queue, c.queue)
			}
		})
	}
}

func TestOneQueueOfTheService(t *testing.T) {
	of := func(id string, depth float64) report.Report {
		return with(say(id, 1, 0.5, 0, 0), func(r *report.Report) {
			r.Queue, r.QueueScope = report.Of(depth), report.QueueService
		})
	}
	s := tick([]report.Report{of("b", 30), of("a", 31), say("c", 1, 0.9, 0, 0)}, "x")
	checkInterval(t, "queue", s.Queue, 31, 31, 31)
	if !s.QueueTotal {
		t.Error("not marked as the service's total")
	}
}

func TestP95(t *testing.T) {
	slow, fast := say("a", 1, 0.5, 100, 2), say("b", 1, 0.5, 100, 0.1)
	none := with(say("c", 1, 0.5, 0, 0), func(r *report.Report) { r.Latency = nil })
	blind := with(say("d", 1, 0.5, 0, 0), func(r *report.Report) { r.Latency, r.Requests, r.Errors = nil, report.Value{}, report.Value{} })
	booting := with(blind, func(r *report.Report) { r.Readiness = report.Booting })
	tests := []struct {
		name        string
		s           window.Sample
		best, worst float64
		value       []float64
	}{
		{"merged, not averaged", tick([]report.Report{slow, fast}), 2, 2, []float64{2}},
		{"idle machine adds nothing", tick([]report.Report{fast, none}), 0.1, 0.1, []float64{0.1}},
		// 0.95 of 300: the missing 100 fastest leave rank 185 of 200 (slow), slowest leave rank 285 (unbounded).
		{"a third missing", tick([]report.Report{slow, fast}, "x"), 2, inf, []float64{2}},
		// 1 of 30 missing: at worst rank 0.95*30/29 = 0.983 of the heard.
		{"few missing", tick(twentyNine(), "x"), 0.1, 2, []float64{0.1}},
		{"more missing than heard", tick([]report.Report{slow}, "x", "y", "z"), 2, inf, []float64{2}},
		{"so many missing that nothing is sure", tick([]report.Report{slow}, names(20)...), 0, inf, []float64{2}},
		{"no requests", tick([]report.Report{none}), 0, 0, nil},
		{"no requests and one missing", tick([]report.Report{none}, "x"), 0, inf, nil},
		{"few requests", tick([]report.Report{say("a", 1, 0.5, 19, 2)}), 0, 2, nil},
		{"enough requests", tick([]report.Report{say("a", 1, 0.5, 20, 2)}), 2, 2, []float64{2}},
		{"no data is no traffic not", tick([]report.Report{blind}), 0, inf, nil},
		{"no data from one of two", tick([]report.Report{fast, blind}), 0.1, inf, []float64{0.1}},
		{"no data from one that boots", tick([]report.Report{fast, booting}), 0.1, 0.1, []float64{0.1}},
	}
	for _, c := range tests {
		t.Run(c.name, func(t *testing.T) { checkInterval(t, "p95", c.s.P95, c.best, c.worst, c.value...) })
	}
	if n := tests[0].s.P95Count; n != 200 {
		t.Errorf("requests in the sketch: got %v, want 200", n)
	}
}

// twentyNine machines have 100 requests each, 97 % of them fast.
func twentyNine() []report.Report {
	var out []report.Report
	for _, id := range names(29) {
		r := say(id, 1, 0.5, 97, 0.1)
		r.Latency.AddCount(2, 3)
		r.Requests = report.Of(100)
		out = append(out, r)
	}
	return out
}

func names(n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("n%02d", i))
	}
	return out
}

func TestErrorRate(t *testing.T) {
	failing := func(id string, requests, errors float64) report.Report {
		return with(say(id, 1, 0.5, 0, 0), func(r *report.Report) { r.Requests, r.Errors = report.Of(requests), report.Of(errors) })
	}
	for _, c := range []struct {
		name        string
		s           window.Sample
		best, worst float64
		value       []float64
	}{
		{"all heard", tick([]report.Report{failing("a", 100, 10), failing("b", 300, 10)}), 0.05, 0.05, []float64{0.05}},
		{"one missing", tick([]report.Report{failing("a", 100, 10)}, "x"), 0.05, 0.55, []float64{0.1}},
		{"none heard", tick(nil, "x"), 0, 1, nil},
		{"no traffic", tick([]report.Report{failing("a", 0, 0)}), 0, 0, nil},
		{"few requests", tick([]report.Report{failing("a", 2, 1)}), 0, 0.5, nil},
		{"errors not measured", tick([]report.Report{with(failing("a", 100, 0), func(r *report.Report) { r.Errors = report.Value{} })}), 0, 1, nil},
	} {
		t.Run(c.name, func(t *testing.T) { checkInterval(t, "error rate", c.s.ErrorRate, c.best, c.worst, c.value...) })
	}
}

// Whatever a silent machine turns out to say, the sample without it had the
// true value inside its interval. (For p95 and the error rate that needs the
// silent one to have had as many requests as the others, which is what the
// interval assumes.)
func TestIntervalsHoldTheTruth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 8).Draw(t, "machines")
		requests := rapid.IntRange(20, 60).Draw(t, "requests")
		var all []report.Report
		for i := range n {
			r := say(fmt.Sprintf("m%d", i), 1, rapid.Float64Range(0, 1).Draw(t, "cpu"), 0, 0)
			for range requests {
				r.Latency.Add(rapid.SampledFrom([]float64{0, 0.05, 0.5, 1.4, 3, 20}).Draw(t, "latency"))
			}
			r.Requests = report.Of(float64(requests))
			r.Errors = report.Of(float64(rapid.IntRange(0, requests).Draw(t, "errors")))
			all = append(all, r)
		}
		heard := rapid.IntRange(0, n).Draw(t, "heard")
		var silent []string
		for _, r := range all[heard:] {
			silent = append(silent, r.Machine)
		}
		truth, seen := tick(all), tick(all[:heard], silent...)
		in := func(name string, truth, seen window.Interval) {
			x := truth.Value.X
			if !(seen.Best <= x*1.021+1e-9 && x <= seen.Worst*1.021+1e-9) { // two sketch errors of 1 %
				t.Errorf("%s with %d of %d heard: %v is not in %v to %v", name, heard, n, x, seen.Best, seen.Worst)
			}
		}
		in("cpu", truth.CPU, seen.CPU)
		in("memory", truth.Memory, seen.Memory)
		in("queue", truth.Queue, seen.Queue)
		in("p95", truth.P95, seen.P95)
		in("error rate", truth.ErrorRate, seen.ErrorRate)
	})
}

// No report, however wrong, makes a bound that is not a number or upside down.
func TestIntervalsAreSane(t *testing.T) {
	wild := rapid.SampledFrom([]report.Value{{}, report.Of(0), report.Of(0.5), report.Of(7), report.Of(1e300), report.Of(-3),
		report.Of(math.NaN()), report.Of(inf), {X: math.NaN()}, report.Of(math.Inf(-1))})
	rapid.Check(t, func(t *rapid.T) {
		var all []report.Report
		for i := range rapid.IntRange(0, 4).Draw(t, "machines") {
			r := report.Report{
				Machine: fmt.Sprintf("m%d", i), Boot: "b", Seq: 1, Service: "api",
				CPU: wild.Draw(t, "cpu"), Memory: wild.Draw(t, "memory"), Queue: wild.Draw(t, "queue"),
				InFlight: wild.Draw(t, "in flight"), Requests: wild.Draw(t, "requests"), Errors: wild.Draw(t, "errors"),
				QueueScope: report.QueueScope(rapid.IntRange(0, 2).Draw(t, "scope")),
				Readiness:  report.Readiness(rapid.IntRange(0, 6).Draw(t, "readiness")),
			}
			if rapid.Bool().Draw(t, "latency") {
				r.Latency = report.NewSketch()
				r.Latency.AddCount(1, rapid.SampledFrom([]float64{0, 1, 30}).Draw(t, "count"))
			}
			all = append(all, r)
		}
		s := tick(all, names(rapid.IntRange(0, 2).Draw(t, "silent"))...)
		for name, i := range map[string]window.Interval{"cpu": s.CPU, "memory": s.Memory, "queue": s.Queue, "p95": s.P95, "error rate": s.ErrorRate} {
			if !(i.Best >= 0 && i.Best <= i.Worst) || math.IsInf(i.Best, 0) {
				t.Errorf("%s: %+v", name, i)
			}
			if i.Value.OK && !(i.Value.X >= 0 && i.Value.X <= i.Worst && i.Value.X >= i.Best) {
				t.Errorf("%s: value outside of %+v", name, i)
			}
		}
	})
}
