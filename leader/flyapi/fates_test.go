package flyapi

import (
	"testing"
	"testing/synctest"
	"time"

	fly "github.com/superfly/fly-go"

	"flymesh/leader/flyapi/flytest"
	"flymesh/raftstore/epoch"
)

// TestFateOf judges machines whose recorded boot was at second 100.
func TestFateOf(t *testing.T) {
	boot := time.Unix(100, 0)
	ev := func(kind, status string, at float64) *fly.MachineEvent {
		return &fly.MachineEvent{Type: kind, Status: status, Timestamp: int64(at * 1000)}
	}
	type events = []*fly.MachineEvent
	first := events{ev("start", "started", 99.9), ev("start", "starting", 99), ev("launch", "created", 90)}
	for _, c := range []struct {
		name   string
		m      fly.Machine
		events events // newest first, before those of the first boot
		want   epoch.Fate
	}{
		{"runs", fly.Machine{State: "started"}, nil, epoch.Running},
		{"runs, started is told late", fly.Machine{State: "started"}, events{ev("start", "started", 105)}, epoch.Running},
		{"stopped", fly.Machine{State: "stopped"}, events{ev("exit", "stopped", 200), ev("stop", "stopping", 199)}, epoch.Stopped},
		{"failed", fly.Machine{State: "failed"}, events{ev("exit", "failed", 200)}, epoch.Stopped},
		{"stopped, told of before the boot", fly.Machine{State: "stopped"}, nil, epoch.Unknown},
		{"stopped, host does not answer", fly.Machine{State: "stopped", HostStatus: "unreachable"}, events{ev("exit", "stopped", 200)}, epoch.Unknown},
		{"suspended", fly.Machine{State: "suspended"}, events{ev("suspend", "suspended", 200)}, epoch.Suspended},
		{"stopping", fly.Machine{State: "stopping"}, events{ev("stop", "stopping", 199)}, epoch.Unknown},
		{"destroying", fly.Machine{State: "destroying"}, events{ev("destroy", "destroying", 199)}, epoch.Unknown},
		{"destroyed", fly.Machine{State: "destroyed"}, events{ev("destroy", "destroyed", 199)}, epoch.Destroyed},
		{"rebooted", fly.Machine{State: "started"},
			events{ev("start", "started", 205), ev("start", "starting", 204), ev("exit", "stopped", 200)}, epoch.Rebooted},
		{"updated", fly.Machine{State: "started"}, events{ev("start", "started", 205), ev("update", "replacing", 200)}, epoch.Rebooted},
		{"restarted by policy", fly.Machine{State: "started"},
			events{ev("start", "started", 205), ev("restart", "starting", 204), ev("exit", "stopped", 203)}, epoch.Rebooted},
		{"resumed with its memory", fly.Machine{State: "started"},
			events{ev("start", "started", 205), ev("start", "starting", 204), ev("suspend", "suspended", 200)}, epoch.Unknown},
		{"rebooted, host does not answer", fly.Machine{State: "started", HostStatus: "unknown"},
			events{ev("start", "started", 205), ev("exit", "stopped", 200)}, epoch.Unknown},
		// The machine's clock lagged 5 s when it recorded the boot: start and
		// the exit before it were at 104 and 98.
		{"recorded by a clock that lags", fly.Machine{State: "started"},
			events{ev("start", "started", 104), ev("start", "starting", 103.5), ev("exit", "stopped", 98)}, epoch.Running},
		{"within the margin", fly.Machine{State: "started"},
			events{ev("start", "started", 101.9), ev("start", "starting", 101.5), ev("exit", "stopped", 101)}, epoch.Running},
	} {
		c.m.Events = append(c.events, first...)
		if c.name == "recorded by a clock that lags" {
			c.m.Events = c.events
		}
		if got := fateOf(&c.m, boot); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
	if got := fateOf(&fly.Machine{State: "started", Events: events{ev("start", "started", 205)}}, boot); got != epoch.Unknown {
		t.Errorf("a start without what was before it: got %s, want %s", got, epoch.Unknown)
	}
}

// TestFates looks machines of an emulator up after different ends.
func TestFates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := emulator(t, flytest.Options{})
		c := newClient(t, Options{Transport: s.Transport()})
		ctx := t.Context()
		ids := map[string]string{}
		var voters []epoch.Voter
		for _, name := range []string{"running", "stopped", "suspended", "resumed", "rebooted", "destroyed", "lost"} {
			m := seed(t, s, flytest.Spec{Start: true})
			ids[name] = m.ID
			voters = append(voters, epoch.Voter{App: testApp, Machine: m.ID, BootAt: time.Now().Add(100 * time.Millisecond)})
		}
		time.Sleep(time.Minute)
		for _, err := range []error{
			c.Stop(ctx, testApp, ids["stopped"], 0), c.Suspend(ctx, testApp, ids["suspended"]), c.Suspend(ctx, testApp, ids["resumed"]),
			c.Stop(ctx, testApp, ids["rebooted"], 0), c.Stop(ctx, testApp, ids["destroyed"], 0), s.SetHost(ids["lost"], fly.HostStatusUnreachable),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute)
		for _, err := range []error{c.Start(ctx, testApp, ids["rebooted"]), c.Start(ctx, testApp, ids["resumed"]), c.Destroy(ctx, testApp, ids["destroyed"])} {
			if err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute)
		voters = append(voters, epoch.Voter{App: "other", Machine: "m1"})
		got, err := NewArbiter(c, testApp).Fates(ctx, voters)
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]epoch.Fate{
			"running": epoch.Running, "stopped": epoch.Stopped, "suspended": epoch.Suspended, "resumed": epoch.Unknown,
			"rebooted": epoch.Rebooted, "destroyed": epoch.Destroyed, "lost": epoch.Unknown,
		} {
			if got[ids[name]] != want {
				t.Errorf("%s: got %s, want %s", name, got[ids[name]], want)
			}
		}
		if got["m1"] != epoch.Unknown {
			t.Errorf("a machine of an app without a token: got %s", got["m1"])
		}
		twice := []epoch.Voter{voters[0], {App: testApp, Machine: ids["running"], BootAt: time.Now().Add(-time.Hour)}, voters[0]}
		if got, err := NewArbiter(c, testApp).Fates(ctx, twice); err != nil || got[ids["running"]].Dead() {
			t.Errorf("two boots of one machine: %v, %v", got, err)
		}
		if err := s.AddFaults(flytest.Fault{Status: 503}); err != nil {
			t.Fatal(err)
		}
		if got, err := NewArbiter(c, testApp).Fates(ctx, voters); err == nil || got[ids["stopped"]].Dead() {
			t.Errorf("with the API down: %v, %v; want an error and no death", got, err)
		}
	})
}
