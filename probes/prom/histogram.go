package prom

import (
	"maps"
	"math"
	"slices"

	"flymesh/probes/report"
)

// buckets are cumulative counts by upper edge in seconds.
type buckets map[float64]float64

// span is one bucket: above lo, up to hi.
type span struct{ lo, hi float64 }

// masses count the requests that fell into each span.
type masses map[span]float64

// add counts what happened between two readings of one series. Counts that
// fell mean that the server began anew: then all of now happened since.
func (m masses) add(last, now buckets) {
	edges := slices.Sorted(maps.Keys(now))
	for edge, n := range last {
		if now[edge] < n {
			last = nil
			break
		}
	}
	lo, below := 0.0, 0.0
	for _, edge := range edges {
		cumulative := now[edge] - last[edge]
		if n := cumulative - below; n > 0 {
			m[span{lo, edge}] += n
		}
		lo, below = edge, max(below, cumulative)
	}
}

func (m masses) count() (n float64) {
	for _, x := range m {
		n += x
	}
	return n
}

// points is the greatest number of durations that stand for one bucket.
const points = 100

// sketch spreads each bucket's requests evenly between its edges, as
// Prometheus' own histogram_quantile does, but keeps clear of the edges by
// more than the sketch's error: a quantile below an edge stays below it. What
// is above the last edge counts as twice that edge.
func (m masses) sketch() *report.Sketch {
	s := report.NewSketch()
	spans := slices.SortedFunc(maps.Keys(m), func(a, b span) int {
		if a.hi < b.hi || a.hi == b.hi && a.lo < b.lo {
			return -1
		}
		return 1
	})
	for _, b := range spans {
		count := m[b]
		if math.IsInf(b.hi, 1) {
			s.AddCount(2*b.lo, count)
			continue
		}
		lo, hi := b.lo*(1+2*report.Accuracy), b.hi*(1-2*report.Accuracy)
		if lo >= hi {
			s.AddCount(math.Sqrt(b.lo*b.hi), count)
			continue
		}
		n := math.Min(math.Ceil(count), points)
		// Whole counts, so that the encoded sketch stays small.
		for i, left := 0.0, count; i < n; i++ {
			share := math.Ceil(left / (n - i))
			if left < share {
				share = left
			}
			s.AddCount(lo+(hi-lo)*(i+0.5)/n, share)
			left -= share
		}
	}
	return s
}
