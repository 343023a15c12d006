package report

import (
	"math"
	"math/rand/v2"
	"testing"
)

// machines returns sketches of n machines with a minute of requests each.
func machines(n int) []*Sketch {
	rng := rand.New(rand.NewPCG(7, 8))
	all := make([]*Sketch, n)
	for i := range all {
		all[i] = NewSketch()
		for range 1000 {
			all[i].Add(0.2 * math.Exp(rng.NormFloat64()))
		}
	}
	return all
}

func BenchmarkMerge100(b *testing.B) {
	all := machines(100)
	b.ReportAllocs()
	for b.Loop() {
		s := NewSketch()
		for _, m := range all {
			if err := s.Merge(m); err != nil {
				b.Fatal(err)
			}
		}
		if s.Quantile(0.95) < 0 {
			b.Fatal("negative")
		}
	}
}

func BenchmarkEncodeDecode(b *testing.B) {
	r := full()
	r.Latency = machines(1)[0]
	b.ReportAllocs()
	for b.Loop() {
		p, err := r.Encode()
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Decode(p); err != nil {
			b.Fatal(err)
		}
	}
}
