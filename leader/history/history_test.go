package history

import (
	"bytes"
	"fmt"
	"math"
	"testing"
	"time"

	"flymesh/leader/window"
	"flymesh/probes/report"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const every = 5 * time.Second

func sample(at time.Time, cpu float64) window.Sample {
	return window.Sample{At: at, Expected: 2, Heard: 2, Requests: 600, P95Count: 600,
		CPU: window.Interval{Value: report.Of(cpu)}, P95: window.Interval{Value: report.Of(1.25), Worst: math.Inf(1)}}
}

func TestMinuteIsTheMeanOfItsSamples(t *testing.T) {
	h := New(every)
	for i := range 24 { // two minutes
		h.Add("n8n", sample(t0.Add(time.Duration(i)*every), float64(i/12)+float64(i%2)/2))
	}
	rows := h.Rows("n8n", t0)
	if len(rows) != 2 {
		t.Fatalf("%d rows, want 2: %+v", len(rows), rows)
	}
	for i, r := range rows {
		if !r.At.Equal(t0.Add(time.Duration(i)*time.Minute)) || r.CPU.X != float64(i)+0.25 || r.Requests.X != 10 || r.Heard != 2 || r.P95.X != 1.25 {
			t.Errorf("row %d = %+v", i, r)
		}
		if r.Queue.OK || r.Errors.OK {
			t.Errorf("row %d makes up what nobody measured: %+v", i, r)
		}
	}
	if got := h.Rows("n8n", t0.Add(90*time.Second)); len(got) != 1 {
		t.Errorf("%d rows after the first minute, want 1", len(got))
	}
	if got := h.Rows("other", t0); got == nil || len(got) != 0 {
		t.Errorf("rows of nobody = %v", got)
	}
}

func TestADayIsKeptAndNoMore(t *testing.T) {
	h := New(every)
	for i := range 2 * Length {
		h.Add("n8n", sample(t0.Add(time.Duration(i)*time.Minute), float64(i)))
	}
	rows := h.Rows("n8n", time.Time{})
	if len(rows) != Length || rows[0].CPU.X != Length || rows[Length-1].CPU.X != 2*Length-1 {
		t.Fatalf("%d rows from %v to %v", len(rows), rows[0].CPU, rows[len(rows)-1].CPU)
	}
	if h.Bytes() != Length*4*(1+serviceCols) {
		t.Errorf("%d bytes", h.Bytes())
	}
}

func TestANewVoterHasTheSameDay(t *testing.T) {
	a, b := New(every), New(every)
	for i := range 300 {
		at := t0.Add(time.Duration(i) * time.Minute)
		a.Add("n8n", sample(at, float64(i)))
		a.AddMachine(at, report.Report{Machine: "m1", Service: "n8n", CPU: report.Of(0.5)})
		if i > 297 {
			b.Add("n8n", sample(at, 7)) // what it saw itself
		}
	}
	if err := b.Import(a.Export()); err != nil {
		t.Fatal(err)
	}
	got, want := b.Rows("n8n", time.Time{}), a.Rows("n8n", time.Time{})
	if len(got) != len(want) || got[0] != want[0] || got[298].CPU.X != 7 || got[299].CPU.X != 7 {
		t.Errorf("%d rows of %d; first %+v, last %+v", len(got), len(want), got[0], got[len(got)-1])
	}
	if ms := b.MachinesOf("n8n"); len(ms) != 1 || len(b.MachineRows("m1", time.Time{})) != 300 {
		t.Errorf("machines %v, %d rows", ms, len(b.MachineRows("m1", time.Time{})))
	}
	fresh := New(every)
	if err := fresh.Import(a.Export()); err != nil || !bytes.Equal(fresh.Export(), a.Export()) {
		t.Errorf("a copy of a copy differs (%v)", err)
	}
	if err := New(time.Second).Import(a.Export()); err == nil {
		t.Error("intervals of another length are taken")
	}
}

func TestDayIsBounded(t *testing.T) {
	h := New(every)
	for i := range MaxMachines + 10 {
		h.AddMachine(t0.Add(time.Duration(i)*time.Minute), report.Report{Machine: fmt.Sprintf("m%04d", i), Service: "n8n"})
	}
	if ms := h.MachinesOf("n8n"); len(ms) != MaxMachines || ms[0] != "m0010" {
		t.Errorf("%d machines from %s, want the newest %d", len(ms), ms[0], MaxMachines)
	}
}

func FuzzImport(f *testing.F) {
	h := New(every)
	h.Add("n8n", sample(t0, 1))
	f.Add(h.Export())
	last := h.Export() // of the last interval that there is a number for
	order.PutUint32(last[22:], math.MaxUint32)
	f.Add(last)
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		to := New(every)
		_ = to.Import(b)
		if to.Bytes() > 64<<20 {
			t.Errorf("%d bytes from a copy of %d", to.Bytes(), len(b))
		}
		if n := len(to.Rows("n8n", time.Time{})); n > Length {
			t.Errorf("%d rows", n)
		}
	})
}

// BenchmarkFull measures a fleet of 50 services and 200 machines with a full day.
func BenchmarkFull(b *testing.B) {
	h := New(every)
	for i := range Length {
		at := t0.Add(time.Duration(i) * time.Minute)
		for s := range 50 {
			h.Add(fmt.Sprint("s", s), sample(at, 0.5))
		}
		for m := range 200 {
			h.AddMachine(at, report.Report{Machine: fmt.Sprint("m", m), Service: "s1", CPU: report.Of(0.5)})
		}
	}
	for b.Loop() {
		h.Rows("s1", time.Time{})
	}
	b.ReportMetric(float64(h.Bytes()), "bytes")
	b.ReportMetric(float64(len(h.Export())), "copy-bytes")
}
