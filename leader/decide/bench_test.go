package decide_test

import (
	"fmt"
	"testing"
	"time"

	"flymesh/leader/decide"
	"flymesh/leader/window"
	"flymesh/probes/report"
)

// round is an input of services with machines between them, each with 10
// minutes of history, some hot, some idle.
func round(b testing.TB, services, machines int) decide.Input {
	in := decide.Input{
		Now: noon, Quorum: true, Policy: decide.Policy{ReportEvery: reportEvery},
		Services: map[string]decide.ServiceState{}, Facts: map[string]decide.Facts{}, History: map[string][]window.Sample{},
	}
	for i := range services {
		name := fmt.Sprintf("s%02d", i)
		in.Policy.Services = append(in.Policy.Services, decide.Service{
			Name: name, Baseline: 1, Max: machines + 1, Cooldown: 5 * time.Minute, Mode: decide.Auto, Pinned: true, ReadyGrace: time.Minute,
			Up:   rules(b, []string{"cpu > 80% for 3m", "p95 > 1.5s for 3m", "queue > 10 for 3m"}),
			Down: rules(b, []string{"cpu < 40% for 9m", "p95 < 800ms for 9m", "queue < 10 for 9m"}), NoGainAfter: 2,
		})
		for j := range 120 {
			in.History[name] = append(in.History[name], sampleAt(noon.Add(-time.Duration(119-j)*reportEvery), []float64{0.1, 0.5, 0.95}[i%3]))
		}
	}
	for i := range machines {
		in.Machines = append(in.Machines, decide.Machine{
			ID: fmt.Sprintf("m%04d", i*7919%machines), Service: fmt.Sprintf("s%02d", i%services), State: "started", HostOK: true,
			Created: noon.Add(-time.Duration(i) * time.Hour), Started: noon.Add(-time.Hour), Heard: true, Readiness: report.Ready,
			Pinned: i < services, Voter: i < 3,
		})
	}
	return in
}

// BenchmarkPlan is one round of 50 services with 10 minutes of history.
func BenchmarkPlan(b *testing.B) {
	for _, machines := range []int{100, 1000} {
		b.Run(fmt.Sprintf("machines=%d", machines), func(b *testing.B) {
			in := round(b, 50, machines)
			b.ReportAllocs()
			for b.Loop() {
				if n := len(decide.Plan(in).Verdicts); n != 50 {
					b.Fatal(n)
				}
			}
		})
	}
}

// More machines make bigger allocations, not more.
func TestAllocationsDoNotGrowWithMachines(t *testing.T) {
	allocs := func(machines int) float64 {
		in := round(t, 50, machines)
		ups, downs := 0, 0
		for _, v := range decide.Plan(in).Verdicts {
			switch v.Verdict {
			case decide.Up:
				ups++
			case decide.Down:
				downs++
			}
		}
		if ups < 10 || downs < 10 {
			t.Fatalf("%d ups and %d downs of 50 services are too few to measure", ups, downs)
		}
		return testing.AllocsPerRun(3, func() { decide.Plan(in) })
	}
	few, many := allocs(100), allocs(1000)
	if many > few*1.1 { // a removal's list of candidates grows in doublings
		t.Errorf("%v allocations with 100 machines, %v with 1,000", few, many)
	}
}
