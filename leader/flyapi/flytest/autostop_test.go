package flytest_test

import (
	"sync/atomic"
	"testing"
	"time"

	fly "github.com/superfly/fly-go"
	"github.com/superfly/fly-go/flaps"

	"flymesh/leader/flyapi/flytest"
)

// TestAutostopByLoad: without a route the proxy goes by the load that it is
// told. It stops one machine at a pass, starts one where all that run are over
// their soft limit, and leaves alone what its config does not give it.
func TestAutostopByLoad(t *testing.T) {
	bubble(t, flytest.Options{NoLimits: true}, func(t *testing.T, s *flytest.Server, c *flaps.Client) {
		stop, start := fly.MachineAutostopStop, true
		cfg := *config()
		cfg.Services = []fly.MachineService{{Protocol: "tcp", InternalPort: 8080, Autostop: &stop, Autostart: &start}}
		for range 3 {
			m, err := s.Seed(flytest.Spec{App: "web", Config: cfg, Start: true})
			must(t, "seed", err)
			must(t, "start", s.Await(t.Context(), m.ID, "started"))
		}
		own := seed(t, s, "not-its")
		running := func() (ids []string) {
			for _, m := range s.Machines() {
				if m.State == "started" && m.ID != own.ID {
					ids = append(ids, m.ID)
				}
			}
			return ids
		}
		var total atomic.Int64
		total.Store(10)
		s.AutostopBy("web", time.Minute, func() map[string]int {
			load := map[string]int{}
			for _, id := range running() {
				load[id] = int(total.Load()) / len(running())
			}
			return load
		})
		for _, step := range []struct{ load, want int }{{10, 2}, {10, 1}, {10, 1}, {70, 2}, {70, 3}, {70, 3}, {0, 2}, {0, 1}, {0, 0}} {
			total.Store(int64(step.load))
			time.Sleep(time.Minute + time.Second)
			if n := len(running()); n != step.want {
				t.Errorf("%d machines run under a load of %d, want %d", n, step.load, step.want)
			}
		}
		got, err := c.Get(t.Context(), "web", own.ID)
		must(t, "get", err)
		if got.State != "started" {
			t.Errorf("the machine that is not the proxy's is %s", got.State)
		}
		s.AutostopBy("web", 0, nil)
	})
}
