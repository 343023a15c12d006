package report

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func full() Report {
	s := NewSketch()
	for i := range 2000 {
		s.Add(0.05 * math.Pow(1.002, float64(i)))
	}
	return Report{
		Machine: "d8d9a2eb1f3e78", Boot: strings.Repeat("0f", 16), Seq: 1 << 40, Epoch: 7,
		Service: "embeddings", Region: "fra", Version: "v1.2.3", Config: "89abcdef",
		Uptime: 36 * time.Hour,
		CPU:    Of(0.83), Steal: Of(0.02), Memory: Of(0.4), Queue: Of(12), QueueScope: QueueService,
		InFlight: Of(3), Requests: Of(2000), Errors: Of(0), Latency: s,
		Readiness: Ready, AppRole: Primary, Reason: "probe redis: slow", Busy: true, Leaving: true,
		Replication: &Replication{Replica: true, Linked: true, History: 1 << 31, Offset: 1 << 50, LagBytes: Of(1 << 40), LagSeconds: Of(86400)},
		Evicting:    true, Cried: time.Unix(1772366400, 0).UTC(),
	}
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.Custom(func(t *rapid.T) Value {
			if rapid.Bool().Draw(t, "absent") {
				return Value{}
			}
			return Of(rapid.Float64().Draw(t, "x"))
		})
		text := func(max int) string { return rapid.StringN(0, -1, max).Draw(t, "text") }
		r := Report{
			Machine: text(maxID), Boot: text(maxID), Service: text(maxID), Version: text(maxID),
			Region: text(maxShort), Config: text(maxShort), Reason: text(maxReason),
			Seq: rapid.Uint64().Draw(t, "seq"), Epoch: rapid.Uint64().Draw(t, "epoch"),
			Uptime: time.Duration(rapid.Int64Min(0).Draw(t, "uptime")),
			CPU:    value.Draw(t, "cpu"), Steal: value.Draw(t, "steal"), Memory: value.Draw(t, "memory"),
			Queue: value.Draw(t, "queue"), InFlight: value.Draw(t, "in_flight"),
			Requests: value.Draw(t, "requests"), Errors: value.Draw(t, "errors"),
			QueueScope: QueueScope(rapid.IntRange(0, 1).Draw(t, "scope")),
			Readiness:  Readiness(rapid.IntRange(0, int(Draining)).Draw(t, "ready")),
			Busy:       rapid.Bool().Draw(t, "busy"), Leaving: rapid.Bool().Draw(t, "leaving"),
			Evicting: rapid.Bool().Draw(t, "evicting"),
		}
		if rapid.Bool().Draw(t, "cried") {
			r.Cried = time.Unix(rapid.Int64Range(1, maxCried).Draw(t, "at"), 0).UTC()
		}
		if rapid.Bool().Draw(t, "latency") {
			r.Latency = sketches().Draw(t, "sketch")
		}
		if rapid.Bool().Draw(t, "redis") {
			r.Replication = &Replication{
				Replica: rapid.Bool().Draw(t, "replica"), Linked: rapid.Bool().Draw(t, "linked"),
				History: rapid.Uint32().Draw(t, "history"), Offset: rapid.Uint64().Draw(t, "offset"), LagBytes: Of(float64(rapid.Uint32().Draw(t, "lag"))),
			}
		}
		b, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > MaxSize {
			t.Fatalf("%d bytes", len(b))
		}
		got, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if r.Latency != nil && len(r.Latency.encode(0)) > 400 {
			if math.Abs(got.Latency.Count()-r.Latency.Count()) > 1e-6*r.Latency.Count() {
				t.Fatalf("count %v became %v", r.Latency.Count(), got.Latency.Count())
			}
			got.Latency, r.Latency = nil, nil // may be coarser; its error is tested on its own
		}
		if diff := cmp.Diff(r, got); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestEncodeSizes(t *testing.T) {
	r := full()
	b, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("a full report: %d bytes, of these sketch %d", len(b), len(r.Latency.encode(0)))

	// 1,300 bins of large counts cannot fit in full resolution.
	r.Latency = NewSketch()
	for x := minSeconds; x < maxSeconds; x *= 1.02 {
		r.Latency.AddCount(x, 1234567)
	}
	r.Reason = strings.Repeat("é", 400)
	b, err = r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the widest sketch: %d bytes", len(b))
	for _, q := range []float64{0.5, 0.95, 0.99} {
		if a, b := r.Latency.Quantile(q), got.Latency.Quantile(q); math.Abs(a-b) > 0.35*a {
			t.Errorf("Quantile(%v) = %v, was %v", q, b, a)
		}
	}
	if got.Latency.Count() != r.Latency.Count() {
		t.Errorf("count %v, was %v", got.Latency.Count(), r.Latency.Count())
	}
	if len(got.Reason) != maxReason || got.Reason != strings.Repeat("é", maxReason/2) {
		t.Errorf("reason was cut to %q", got.Reason)
	}
}

func TestEncodeRefuses(t *testing.T) {
	for name, change := range map[string]func(*Report){
		"machine":   func(r *Report) { r.Machine = strings.Repeat("x", maxID+1) },
		"region":    func(r *Report) { r.Region = strings.Repeat("x", maxShort+1) },
		"uptime":    func(r *Report) { r.Uptime = -1 },
		"readiness": func(r *Report) { r.Readiness = Draining + 1 },
	} {
		r := full()
		change(&r)
		if _, err := r.Encode(); err == nil {
			t.Errorf("%s out of bounds was encoded", name)
		}
	}
}

func TestNotFiniteIsAbsent(t *testing.T) {
	r := Report{CPU: Of(math.NaN()), Memory: Of(math.Inf(1)), Queue: Of(0)}
	b, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if got.CPU.OK || got.Memory.OK || !got.Queue.OK {
		t.Errorf("got cpu %v, memory %v, queue %v", got.CPU, got.Memory, got.Queue)
	}
}

func TestDecodeRefuses(t *testing.T) {
	whole, err := full().Encode()
	if err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		// Every cut ends inside a field: the sketch is last and its bin count fixed.
		if _, err := Decode(whole[:n]); err == nil && n != len(whole) {
			r, _ := Decode(whole[:n])
			if r.Latency == nil || r.Latency.Count() != 0 {
				t.Fatalf("Decode of %d of %d bytes did not fail", n, len(whole))
			}
		}
	}
	if _, err := Decode(append(whole[:len(whole):len(whole)], 0)); err == nil {
		t.Error("a trailing byte was accepted")
	}
	empty, err := Report{}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(append(empty, 0)); err == nil {
		t.Error("a trailing byte was accepted")
	}
	other := append([]byte(nil), whole...)
	other[0]++
	if _, err := Decode(other); err == nil {
		t.Error("another version was accepted")
	}
	if _, err := Decode(make([]byte, MaxSize+1)); err == nil {
		t.Error("an oversized packet was accepted")
	}
}

func FuzzDecode(f *testing.F) {
	for _, r := range []Report{{}, full()} {
		b, err := r.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Decode(b)
		if err != nil {
			return
		}
		again, err := r.Encode()
		if err != nil {
			t.Fatalf("a decoded report does not encode: %v", err)
		}
		if _, err := Decode(again); err != nil {
			t.Fatalf("a re-encoded report does not decode: %v", err)
		}
	})
}
