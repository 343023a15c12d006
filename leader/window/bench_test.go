package window_test

import (
	"fmt"
	"math"
	"testing"

	"flymesh/leader/window"
	"flymesh/probes/report"
)

// latencies is a sketch of n requests spread over three decades.
func latencies(n, seed int) *report.Sketch {
	s := report.NewSketch()
	for i := range n {
		s.Add(0.01 * math.Pow(1000, math.Mod(float64(i*7919+seed*104729)*0.000123, 1)))
	}
	return s
}

// BenchmarkMerge100 merges the sketches of 100 machines and takes the p95.
func BenchmarkMerge100(b *testing.B) {
	var in []*report.Sketch
	for i := range 100 {
		in = append(in, latencies(500, i))
	}
	b.ReportAllocs()
	for b.Loop() {
		all := report.NewSketch()
		for _, s := range in {
			if err := all.Merge(s); err != nil {
				b.Fatal(err)
			}
		}
		if q := all.Quantile(0.95); !(q > 0) {
			b.Fatal(q)
		}
	}
}

// BenchmarkTick closes one sample of 50 services with 1,000 machines, each of
// which has reported since the one before.
func BenchmarkTick(b *testing.B) {
	w := window.New(window.Config{Every: every})
	reports := make([]report.Report, 1000)
	for i := range reports {
		reports[i] = report.Report{
			Machine: fmt.Sprintf("m%d", i), Boot: "b", Service: fmt.Sprintf("s%d", i%50), Readiness: report.Ready,
			CPU: report.Of(0.5), Memory: report.Of(0.5), Queue: report.Of(3), Requests: report.Of(500), Errors: report.Of(1),
			Latency: latencies(500, i),
		}
	}
	now := t0
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		now = now.Add(every)
		for i := range reports {
			reports[i].Seq++
			w.Add(now, reports[i])
		}
		b.StartTimer()
		w.Tick(now)
	}
	if s := w.Series("s1"); len(s) == 0 || s[len(s)-1].Heard != 20 || !s[len(s)-1].P95.Value.OK {
		b.Fatalf("%d samples", len(s))
	}
}
