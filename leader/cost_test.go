package leader_test

import (
	"math"
	"testing"
	"time"

	"flymesh/leader/flyapi/flytest"
)

// TestCost runs a day's shape of load (rest, spike, plateau, fall, rest) and
// compares the machine time spent with two others: one who knows the future and
// always has exactly what keeps every machine at or under the up rule's line,
// and one who always runs at the cap.
func TestCost(t *testing.T) {
	trace := []struct {
		machines float64 // worth of work
		lasts    time.Duration
	}{
		{0.5, time.Hour}, {2.2, 90 * time.Minute}, {1.3, time.Hour}, {0.3, 150 * time.Minute},
	}
	bubble(t, flytest.FlyTiming(), func(s *stand) {
		s.offer(trace[0].machines)
		s.lead("v0")
		time.Sleep(10 * time.Minute)
		spent := func() float64 { return s.api.Usage()[appName].MachineSeconds }
		before := spent()
		var oracle, always, over, total float64
		for _, p := range trace {
			s.offer(p.machines)
			need := max(1, math.Ceil(p.machines/0.8))
			for end := time.Now().Add(p.lasts); time.Now().Before(end); time.Sleep(5 * time.Second) {
				oracle += 5 * need
				always += 5 * 3
				total += 5
				if float64(len(s.started())) < need {
					over += 5
				}
			}
		}
		used := spent() - before
		t.Logf("%.1f machine-hours spent; the oracle that knows the future: %.1f (%+.0f %%); always at the cap: %.1f (%+.0f %%); "+
			"short of what the load needed for %.1f of %.0f minutes",
			used/3600, oracle/3600, 100*(used/oracle-1), always/3600, 100*(used/always-1), over/60, total/60)
		if used > 1.25*oracle || used > 0.75*always {
			t.Errorf("%.0f machine-seconds, the oracle %.0f, always at the cap %.0f\n%s", used, oracle, always, s.story())
		}
		if over > 20*60 {
			t.Errorf("short of machines for %.0f s\n%s", over, s.story())
		}
	})
}
