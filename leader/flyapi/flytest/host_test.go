package flytest_test

import (
	"testing"

	fly "github.com/superfly/fly-go"
	"github.com/superfly/fly-go/flaps"

	"flymesh/leader/flyapi/flytest"
)

// TestDeathOnAnUnreachableHost: a machine that dies while its host is out of
// reach goes on being called started until the host is back, and is then
// dealt with as if it had just died.
func TestDeathOnAnUnreachableHost(t *testing.T) {
	for _, restart := range []bool{false, true} {
		boots := 0
		o := flytest.Options{NoLimits: true, Launcher: &flytest.Memory{OnStart: func(flytest.Boot) { boots++ }}}
		bubble(t, o, func(t *testing.T, s *flytest.Server, c *flaps.Client) {
			ctx := t.Context()
			cfg := *config()
			want := "stopped"
			if restart {
				cfg.Restart, want = &fly.MachineRestart{Policy: fly.MachineRestartPolicyAlways}, "started"
			}
			m, err := s.Seed(flytest.Spec{App: "web", Config: cfg, Start: true})
			must(t, "seed", err)
			must(t, "start", s.Await(ctx, m.ID, "started"))
			must(t, "cut off", s.SetHost(m.ID, fly.HostStatusUnreachable))
			must(t, "kill", s.Kill(m.ID))
			got, err := c.Get(ctx, "web", m.ID)
			must(t, "get", err)
			if got.State != "started" || got.HostStatus != fly.HostStatusUnreachable {
				t.Errorf("while the host is out of reach it is %s, host %s", got.State, got.HostStatus)
			}
			must(t, "restore", s.RestoreHost(m.ID))
			must(t, "learn of the death", s.Await(ctx, m.ID, "stopped"))
			must(t, "settle", s.Await(ctx, m.ID, want))
			got, err = c.Get(ctx, "web", m.ID)
			must(t, "get", err)
			exited := false
			for _, e := range got.Events {
				exited = exited || e.Type == "exit"
			}
			if !exited {
				t.Errorf("no exit among the events %+v", got.Events)
			}
			if restart != (boots == 2) {
				t.Errorf("it booted %d times, with the restart policy %v", boots, restart)
			}
		})
	}
}

// TestDiscard: without its snapshot a suspended machine boots.
func TestDiscard(t *testing.T) {
	boots := 0
	o := flytest.Options{NoLimits: true, Launcher: &flytest.Memory{OnStart: func(flytest.Boot) { boots++ }}}
	bubble(t, o, func(t *testing.T, s *flytest.Server, c *flaps.Client) {
		ctx := t.Context()
		m := seed(t, s, "one")
		if s.Discard(m.ID) == nil {
			t.Error("a machine that runs had a snapshot")
		}
		for _, want := range []int{1, 2} {
			must(t, "suspend", c.Suspend(ctx, "web", m.ID, ""))
			must(t, "suspended", s.Await(ctx, m.ID, "suspended"))
			if want == 2 {
				must(t, "discard", s.Discard(m.ID))
			}
			_, err := c.Start(ctx, "web", m.ID, "")
			must(t, "start", err)
			must(t, "started", s.Await(ctx, m.ID, "started"))
			if boots != want {
				t.Errorf("it has booted %d times, want %d", boots, want)
			}
		}
	})
}
