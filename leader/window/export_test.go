package window_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"flymesh/leader/window"
	"flymesh/probes/report"
)

// feed ticks w from second a to b (exclusive) with reports of the machines.
func feed(w *window.Window, a, b int, machines ...string) {
	for s := a; s < b; s += 5 {
		for _, m := range machines {
			w.Add(at(float64(s)), say(m, uint64(s+1), 0.9, 30, 2))
		}
		w.Tick(at(float64(s)))
	}
}

func offsets(samples []window.Sample) []float64 {
	var out []float64
	for _, s := range samples {
		out = append(out, s.At.Sub(t0).Seconds())
	}
	return out
}

func TestImportFillsWhatIsMissing(t *testing.T) {
	old, young := newWindow(), newWindow()
	old.Expect(at(0), "api", []string{"m1", "m2"})
	feed(old, 0, 60, "m1")
	old.Add(at(40), report.Report{Machine: "q", Boot: "b", Seq: 1, Service: "queue", Queue: report.Of(3), QueueScope: report.QueueService})
	old.Tick(at(60))
	feed(young, 42, 63, "m1")

	b, err := old.Export(at(61))
	if err != nil {
		t.Fatal(err)
	}
	if err := young.Import(at(61), b); err != nil {
		t.Fatal(err)
	}
	got := young.Series("api")
	want := []float64{0, 5, 10, 15, 20, 25, 30, 35, 42, 47, 52, 57, 62}
	if diff := cmp.Diff(want, offsets(got)); diff != "" {
		t.Errorf("samples (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(old.Series("api")[:8], got[:8]); diff != "" {
		t.Errorf("imported samples (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(old.Series("queue"), young.Series("queue")); diff != "" {
		t.Errorf("imported service (-want +got):\n%s", diff)
	}
	if err := young.Import(at(61), b); err != nil || len(young.Series("api")) != len(want) {
		t.Errorf("a second import added samples: %v, %v", offsets(young.Series("api")), err)
	}
	young.Tick(at(67))
	if diff := cmp.Diff([]string{"q"}, newest(t, young, "queue").Missing); diff != "" {
		t.Errorf("a machine that only the other heard is not expected (-want +got):\n%s", diff)
	}
}

// The importer's clock is an hour ahead: ages count, not times.
func TestImportDoesNotTrustTheOtherClock(t *testing.T) {
	old, young := newWindow(), newWindow()
	feed(old, 0, 60, "m1")
	b, err := old.Export(at(55))
	if err != nil {
		t.Fatal(err)
	}
	hour := time.Hour
	if err := young.Import(at(55).Add(hour), b); err != nil {
		t.Fatal(err)
	}
	for i, s := range young.Series("api") {
		if want := old.Series("api")[i].At.Add(hour); !s.At.Equal(want) {
			t.Errorf("sample %d: got %s, want %s", i, s.At, want)
		}
	}
}

func TestImportRefusesAndStaysAsItWas(t *testing.T) {
	w := newWindow()
	feed(w, 0, 30, "m1")
	before := w.Series("api")
	for _, bad := range []string{"", "{", `{"v":2}`, `{"v":1,"services":[{"name":"api","samples":[{"cpu":[1,2]}]}]}x`} {
		if err := w.Import(at(30), []byte(bad)); err == nil {
			t.Errorf("import of %q succeeded", bad)
		} else if !strings.HasPrefix(err.Error(), "import windows: ") {
			t.Errorf("import of %q: %v", bad, err)
		}
	}
	future := `{"v":1,"machines":[{"id":"x","service":"api","age_ms":-5},{"id":"y","service":"api","age_ms":99999999}],
		"services":[{"name":"api","samples":[{"age_ms":-1},{"age_ms":99999999}]},{"name":"","samples":[{"age_ms":1}]}]}`
	if err := w.Import(at(30), []byte(future)); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(before, w.Series("api")); diff != "" {
		t.Errorf("series changed (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"m1"}, w.Machines()); diff != "" {
		t.Errorf("machines changed (-before +after):\n%s", diff)
	}
}
