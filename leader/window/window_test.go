package window_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"flymesh/leader/window"
	"flymesh/probes/report"
)

const every = 5 * time.Second

var t0 = time.Date(2026, 1, 5, 14, 0, 0, 0, time.UTC)

func at(seconds float64) time.Time { return t0.Add(time.Duration(seconds * float64(time.Second))) }

func newWindow() *window.Window {
	return window.New(window.Config{Every: every, MinSamples: func(string) int { return 20 }})
}

// say is a ready machine's report with n requests of the given seconds each.
func say(machine string, seq uint64, cpu float64, n int, seconds float64) report.Report {
	r := report.Report{
		Machine: machine, Boot: machine + "-boot", Seq: seq, Service: "api", Readiness: report.Ready,
		CPU: report.Of(cpu), Memory: report.Of(cpu / 2), Queue: report.Of(cpu * 10), InFlight: report.Of(2),
		Requests: report.Of(float64(n)), Errors: report.Of(0), Latency: report.NewSketch(),
	}
	for range n {
		r.Latency.Add(seconds)
	}
	return r
}

func newest(t *testing.T, w *window.Window, service string) window.Sample {
	t.Helper()
	s := w.Series(service)
	if len(s) == 0 {
		t.Fatalf("service %s has no samples", service)
	}
	return s[len(s)-1]
}

func near(got, want float64) bool {
	return got == want || got > want*0.98-1e-9 && got < want*1.02+1e-9
}

func checkInterval(t *testing.T, what string, got window.Interval, best, worst float64, value ...float64) {
	t.Helper()
	if !near(got.Best, best) || !near(got.Worst, worst) {
		t.Errorf("%s: got %v to %v, want %v to %v", what, got.Best, got.Worst, best, worst)
	}
	if got.Value.OK != (len(value) > 0) || got.Value.OK && !near(got.Value.X, value[0]) {
		t.Errorf("%s: got value %+v, want %v", what, got.Value, value)
	}
}

func TestAddDropsReplaysAndOldBoots(t *testing.T) {
	w := newWindow()
	boot := func(boot string, seq uint64) bool {
		r := say("m1", seq, 0.5, 0, 0)
		r.Boot = boot
		return w.Add(at(float64(seq)), r)
	}
	for i, c := range []struct {
		boot string
		seq  uint64
		want bool
	}{
		{"a", 5, true}, {"a", 5, false}, {"a", 4, false}, {"a", 6, true},
		{"b", 1, true}, {"a", 7, false}, {"b", 1, false}, {"b", 2, true},
		{"c", 1, true}, {"b", 9, false}, {"a", 9, false},
	} {
		if got := boot(c.boot, c.seq); got != c.want {
			t.Errorf("report %d (boot %s, seq %d): got %v, want %v", i, c.boot, c.seq, got, c.want)
		}
	}
	if w.Add(t0, report.Report{Machine: "m1", Boot: "x"}) || w.Add(t0, report.Report{Service: "api", Boot: "x"}) {
		t.Error("a report without service or machine was taken")
	}
}

func TestGoodbyeEndsABootAndTheExpectation(t *testing.T) {
	w := newWindow()
	w.Expect(at(0), "api", []string{"m1", "m2"})
	w.Add(at(0), say("m1", 1, 0.5, 0, 0))
	w.Add(at(0), say("m2", 1, 0.5, 0, 0))
	bye := say("m2", 2, 0.5, 0, 0)
	bye.Leaving = true
	w.Add(at(1), bye)
	if w.Add(at(2), say("m2", 3, 0.5, 0, 0)) {
		t.Error("a boot spoke after its goodbye")
	}
	w.Expect(at(3), "api", []string{"m1", "m2"}) // the API lags behind
	w.Tick(at(5))
	if s := newest(t, w, "api"); s.Expected != 1 || s.Heard != 1 {
		t.Errorf("after the goodbye: %d of %d heard, want 1 of 1", s.Heard, s.Expected)
	}
	w.Add(at(35), say("m1", 2, 0.5, 0, 0))
	w.Expect(at(35), "api", []string{"m1", "m2"}) // it does run: nobody answers for it
	w.Tick(at(35))
	if diff := cmp.Diff([]string{"m2"}, newest(t, w, "api").Missing); diff != "" {
		t.Errorf("missing (-want +got):\n%s", diff)
	}
	back := say("m2", 1, 0.5, 0, 0)
	back.Boot = "next"
	w.Add(at(36), back)
	w.Tick(at(40))
	if s := newest(t, w, "api"); s.Heard != 2 {
		t.Errorf("a new boot is not heard: %+v", s)
	}
}

func TestSilenceIsMissingUntilThePlatformSaysOtherwise(t *testing.T) {
	w := newWindow()
	w.Add(at(0), say("m1", 1, 0.8, 0, 0))
	w.Add(at(0), say("m2", 1, 0.8, 0, 0))
	heard := func(sec float64) [2]int {
		w.Add(at(sec), say("m1", uint64(sec)+2, 0.8, 0, 0))
		w.Tick(at(sec))
		s := newest(t, w, "api")
		return [2]int{s.Heard, s.Expected}
	}
	for _, c := range []struct {
		sec  float64
		want [2]int
	}{{5, [2]int{2, 2}}, {15, [2]int{2, 2}}, {20, [2]int{1, 2}}, {600, [2]int{1, 2}}} {
		if got := heard(c.sec); got != c.want {
			t.Errorf("at %v s: got %v, want %v", c.sec, got, c.want)
		}
	}
	w.Expect(at(601), "api", []string{"m1"}) // stopped
	if got := heard(605); got != [2]int{1, 1} {
		t.Errorf("after the API says it is stopped: got %v", got)
	}
	w.Expect(at(606), "api", []string{"m1", "m2", "m3"}) // started, never heard
	if got := heard(610); got != [2]int{1, 3} {
		t.Errorf("after the API started two: got %v", got)
	}
	w.Leave(at(611), "m3")
	if got := heard(615); got != [2]int{1, 2} {
		t.Errorf("after one left: got %v", got)
	}
	if got := heard(611 + 16*60); got != [2]int{1, 1} {
		t.Errorf("an API word of 16 minutes ago still counts: got %v", got)
	}
	if diff := cmp.Diff([]string{"m1"}, w.Machines()); diff != "" {
		t.Errorf("machines kept (-want +got):\n%s", diff)
	}
}

// A listing from before a machine spoke says nothing about its silence after.
func TestOldListingDoesNotExcuseSilence(t *testing.T) {
	w := newWindow()
	w.Expect(at(0), "api", []string{"m1"})
	w.Add(at(5), say("m2", 1, 0.5, 0, 0))
	w.Tick(at(60))
	if diff := cmp.Diff([]string{"m1", "m2"}, newest(t, w, "api").Missing); diff != "" {
		t.Errorf("missing (-want +got):\n%s", diff)
	}
}

func TestLatest(t *testing.T) {
	w := newWindow()
	if _, _, ok := w.Latest(t0, "m1"); ok {
		t.Error("a report of a machine that was never heard")
	}
	w.Add(at(0), say("m1", 7, 0.5, 0, 0))
	r, age, ok := w.Latest(at(16), "m1")
	if !ok || age != 16*time.Second || r.Seq != 7 || w.Fresh(age) || !w.Fresh(15*time.Second) {
		t.Errorf("got seq %d, age %s, ok %v, fresh %v", r.Seq, age, ok, w.Fresh(age))
	}
}

func TestTickTwiceIsOnce(t *testing.T) {
	w := newWindow()
	w.Add(at(0), say("m1", 1, 0.5, 0, 0))
	for _, sec := range []float64{0, 0.1, 2, 5, 7, 9.9, 10} {
		w.Tick(at(sec))
	}
	var got []float64
	for _, s := range w.Series("api") {
		got = append(got, s.At.Sub(t0).Seconds())
	}
	if diff := cmp.Diff([]float64{0, 5, 9.9}, got); diff != "" {
		t.Errorf("ticks (-want +got):\n%s", diff)
	}
}

func TestHistoryIsBoundedAndViewsAreStable(t *testing.T) {
	w := newWindow()
	var view []window.Sample
	for i := range 2000 {
		now := at(float64(i) * 5)
		w.Add(now, say("m1", uint64(i+1), float64(i%100)/100, 0, 0))
		w.Tick(now)
		if i == 100 {
			view = w.Series("api")
		}
	}
	if n := len(w.Series("api")); n < 180 || n > 182 {
		t.Errorf("15 minutes of 5 s samples are %d", n)
	}
	if len(view) != 101 {
		t.Fatalf("the view grew to %d", len(view))
	}
	for i, s := range view {
		if !s.At.Equal(at(float64(i)*5)) || s.CPU.Value.X != float64(i%100)/100 {
			t.Fatalf("sample %d of an old view changed: %+v", i, s)
		}
	}
	w.Tick(at(2000*5 + 3600))
	w.Tick(at(2000*5 + 7200))
	if len(w.Machines()) != 0 || len(w.Services()) > 1 {
		t.Errorf("an hour later still: %v %v", w.Machines(), w.Services())
	}
}

func TestClockStepBackDropsTheFuture(t *testing.T) {
	w := newWindow()
	for i := range 10 {
		w.Add(at(float64(i)*5), say("m1", uint64(i+1), 0.5, 0, 0))
		w.Tick(at(float64(i) * 5))
	}
	w.Add(at(20), say("m1", 11, 0.5, 0, 0))
	w.Tick(at(20))
	last := time.Time{}
	for _, s := range w.Series("api") {
		if s.At.Before(last) || s.At.After(at(20)) {
			t.Errorf("sample at %s after one at %s", s.At, last)
		}
		last = s.At
	}
}

func ExampleWindow() {
	w := window.New(window.Config{Every: 5 * time.Second})
	w.Add(t0, report.Report{Machine: "m1", Boot: "b", Seq: 1, Service: "api", Readiness: report.Ready, CPU: report.Of(0.6)})
	w.Expect(t0, "api", []string{"m1", "m2"})
	w.Tick(t0.Add(5 * time.Second))
	s := w.Series("api")[0]
	fmt.Printf("cpu %.1f, between %.1f and %.1f without %v", s.CPU.Value.X, s.CPU.Best, s.CPU.Worst, s.Missing)
	// Output: cpu 0.6, between 0.3 and 0.8 without [m2]
}
