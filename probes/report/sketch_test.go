package report

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// exact is the quantile the sketch approximates: the lower order statistic.
func exact(sorted []float64, q float64) float64 {
	return sorted[int(q*float64(len(sorted)-1))]
}

func TestQuantileError(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	shapes := map[string]func() float64{
		"log-normal":  func() float64 { return 0.2 * math.Exp(rng.NormFloat64()) },
		"uniform":     func() float64 { return 0.001 + rng.Float64()*3 },
		"two humps":   func() float64 { return []float64{0.05, 2}[rng.IntN(2)] * (1 + 0.1*rng.Float64()) },
		"heavy tail":  func() float64 { return 0.01 / math.Pow(1-rng.Float64(), 1.2) },
		"microsecond": func() float64 { return 2e-6 + 1e-5*rng.Float64() },
	}
	for name, next := range shapes {
		t.Run(name, func(t *testing.T) {
			s := NewSketch()
			var all []float64
			for range 20_000 {
				x := next()
				all = append(all, x)
				s.Add(x)
			}
			slices.Sort(all)
			for _, level := range []int{0, 1, 2} {
				d, err := decodeSketch(s.encode(level), level)
				if err != nil {
					t.Fatal(err)
				}
				bound := Accuracy * 1.0001
				if level > 0 {
					bound = Accuracy * float64(int(1)<<level+1) * 1.05 // (1+a)^n is a little over 1+na
				}
				for _, q := range []float64{0, 0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 1} {
					want := exact(all, q)
					if got := d.Quantile(q); math.Abs(got-want) > bound*want {
						t.Errorf("level %d: Quantile(%v) = %v, want %v within %.1f %%", level, q, got, want, 100*bound)
					}
				}
			}
		})
	}
}

// The fleet's p95 is that of all requests, not the mean of the machines' p95s.
func TestMergedQuantileIsThatOfAllRequests(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	fleet, all, means := NewSketch(), []float64(nil), 0.0
	for machine := range 8 {
		s, n, slow := NewSketch(), 1000, 1.0
		if machine == 0 {
			n, slow = 150, 40 // the slow one serves fewer
		}
		for range n {
			x := 0.1 * slow * math.Exp(0.3*rng.NormFloat64())
			all = append(all, x)
			s.Add(x)
		}
		means += s.Quantile(0.95) / 8
		if err := fleet.Merge(s); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(all)
	want := exact(all, 0.95)
	t.Logf("p95 of 8 machines, one slow: exact %.4f s, merged %.4f s (%+.2f %%), mean of the p95s %.4f s (%+.0f %%)",
		want, fleet.Quantile(0.95), 100*(fleet.Quantile(0.95)/want-1), means, 100*(means/want-1))
	if got := fleet.Quantile(0.95); math.Abs(got-want) > 0.02*want {
		t.Errorf("merged p95 = %v, want %v", got, want)
	}
	if math.Abs(means-want) < want/2 {
		t.Errorf("mean of p95s = %v is near %v: the case shows nothing", means, want)
	}
}

func TestSketchEdges(t *testing.T) {
	s := NewSketch()
	if got := s.Quantile(0.95); !math.IsNaN(got) {
		t.Errorf("empty Quantile = %v, want NaN", got)
	}
	for _, x := range []float64{math.NaN()} {
		s.Add(x)
	}
	s.AddCount(1, 0)
	s.AddCount(1, -1)
	s.AddCount(1, math.NaN())
	s.AddCount(1, math.Inf(1))
	if s.Count() != 0 {
		t.Fatalf("Count = %v after nothing countable", s.Count())
	}
	s.Add(-1)
	s.Add(0)
	s.Add(1e-9)
	s.Add(math.Inf(1))
	if got := s.Count(); got != 4 {
		t.Errorf("Count = %v, want 4", got)
	}
	if got := s.Quantile(0.5); got != 0 {
		t.Errorf("Quantile(0.5) = %v, want 0", got)
	}
	if got := s.Quantile(1); math.Abs(got-maxSeconds) > Accuracy*maxSeconds {
		t.Errorf("Quantile(1) = %v, want about a day", got)
	}
	if got := s.Quantile(1.5); !math.IsNaN(got) {
		t.Errorf("Quantile(1.5) = %v, want NaN", got)
	}
	c := s.Clone()
	c.Add(5)
	if s.Equal(c) || s.Count() != 4 {
		t.Error("a clone shares bins with its original")
	}
	if err := s.Merge(nil); err != nil || s.Count() != 4 {
		t.Errorf("Merge(nil): %v, count %v", err, s.Count())
	}
}

func TestMergeIsAddingAll(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		durations := rapid.SliceOf(rapid.Float64Range(0, 100))
		a, b := durations.Draw(t, "a"), durations.Draw(t, "b")
		sa, sb, both := NewSketch(), NewSketch(), NewSketch()
		for _, x := range a {
			sa.Add(x)
			both.Add(x)
		}
		for _, x := range b {
			sb.Add(x)
			both.Add(x)
		}
		if err := sa.Merge(sb); err != nil {
			t.Fatal(err)
		}
		if !sa.Equal(both) {
			t.Fatal("merged sketch differs from the sketch of all")
		}
	})
}

func TestSketchJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := sketches().Draw(t, "sketch")
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var got Sketch
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		if !got.Equal(s) {
			t.Fatalf("%s came back different", b)
		}
	})
	var s Sketch
	for _, bad := range []string{`"AAAA"`, `5`, `"/////w=="`, `{}`} {
		if err := json.Unmarshal([]byte(bad), &s); err == nil {
			t.Errorf("Unmarshal(%s) did not fail", bad)
		}
	}
}

// A coarse sketch that is sent on (a window copied to a new voter) loses
// nothing more.
func TestCoarseningTwiceIsOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := sketches().Draw(t, "sketch")
		level := rapid.IntRange(1, maxLevel).Draw(t, "level")
		once, err := decodeSketch(s.encode(level), level)
		if err != nil {
			t.Fatal(err)
		}
		twice, err := decodeSketch(once.encode(level), level)
		if err != nil {
			t.Fatal(err)
		}
		if math.Abs(once.Count()-s.Count()) > 1e-6*s.Count() {
			t.Fatalf("count %v became %v", s.Count(), once.Count())
		}
		for _, q := range []float64{0, 0.5, 0.95, 1} {
			if a, b := once.Quantile(q), twice.Quantile(q); !(a == b || math.IsNaN(a) && math.IsNaN(b)) {
				t.Fatalf("Quantile(%v): %v, then %v", q, a, b)
			}
		}
	})
}

// sketches draws sketches of whole and fractional counts over all durations.
func sketches() *rapid.Generator[*Sketch] {
	return rapid.Custom(func(t *rapid.T) *Sketch {
		s := NewSketch()
		for range rapid.IntRange(0, 60).Draw(t, "adds") {
			x := math.Pow(10, rapid.Float64Range(-7, 6).Draw(t, "exponent"))
			count := float64(rapid.IntRange(1, 100_000).Draw(t, "count"))
			if rapid.Bool().Draw(t, "fraction") {
				count /= 4096
			}
			s.AddCount(x, count)
		}
		return s
	})
}
