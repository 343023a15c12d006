package flytest_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	fly "github.com/superfly/fly-go"
	"github.com/superfly/fly-go/flaps"

	"flymesh/leader/flyapi/flytest"
)

// fleetOf seeds so many started machines and a stopped one, the first with
// the mark that the mesh puts on its primary.
func fleetOf(t *testing.T, s *flytest.Server, n int) (started []*fly.Machine, stopped *fly.Machine) {
	t.Helper()
	for i := range n {
		c := config("flymesh_op", fmt.Sprint("op-", i), "fly_release_version", "7")
		c.Env = map[string]string{"V": "old"}
		if i == 0 {
			c.Metadata["flymesh_primary"] = "web"
		}
		m, err := s.Seed(flytest.Spec{App: "web", Config: *c, Start: true})
		must(t, "seed", err)
		must(t, "start", s.Await(t.Context(), m.ID, "started"))
		started = append(started, m)
	}
	stopped, err := s.Seed(flytest.Spec{App: "web", Config: *config()})
	must(t, "seed", err)
	return started, stopped
}

func fresh(c fly.MachineConfig) fly.MachineConfig {
	c.Env, c.Metadata = map[string]string{"V": "new"}, map[string]string{"added": "yes"}
	return c
}

// watchFleet tells test each quarter of a second what the app looks like,
// until the function that it returns is called.
func watchFleet(t *testing.T, c *flaps.Client, each func([]*fly.Machine)) (stop func()) {
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-end:
				return
			case <-time.After(250 * time.Millisecond):
			}
			ms, err := c.List(t.Context(), "web", "include_leases=true")
			if err != nil {
				t.Errorf("list: %v", err)
				return
			}
			each(ms)
		}
	}()
	return func() { close(end); <-done }
}

func byID(ms []*fly.Machine, id string) *fly.Machine {
	i := slices.IndexFunc(ms, func(m *fly.Machine) bool { return m.ID == id })
	if i < 0 {
		return nil
	}
	return ms[i]
}

func audit(s *flytest.Server, by, action string) (n int) {
	for _, r := range s.Requests() {
		if r.By == by && r.Action == action {
			n++
		}
	}
	return n
}

func TestDeployInPlace(t *testing.T) {
	for _, tc := range []struct {
		strategy string
		down     int // at most, at once
		most     int // machines at once
	}{{"rolling", 1, 4}, {"canary", 1, 5}, {"immediate", 3, 4}} {
		t.Run(tc.strategy, func(t *testing.T) {
			o := flytest.Options{Timing: flytest.Timing{Create: time.Second, Update: 3 * time.Second}, NoLimits: true}
			bubble(t, o, func(t *testing.T, s *flytest.Server, c *flaps.Client) {
				started, stopped := fleetOf(t, s, 3)
				down, most, leased := 0, 0, false
				stop := watchFleet(t, c, func(ms []*fly.Machine) {
					n := 0
					for _, m := range ms {
						if byID(started, m.ID) != nil && m.State != "started" {
							n++
						}
					}
					down, most = max(down, n), max(most, len(ms))
					if !leased && tc.strategy != "immediate" { // which is over at once
						_, err := c.Start(t.Context(), "web", stopped.ID, "")
						leased = err != nil && strings.Contains(err.Error(), "lease currently held by flyctl@")
					}
				})
				must(t, "deploy", s.Deploy(t.Context(), "web", flytest.Deploy{Strategy: tc.strategy, Config: fresh, Release: "r8"}))
				for _, m := range started {
					must(t, "started again", s.Await(t.Context(), m.ID, "started"))
				}
				must(t, "stopped again", s.Await(t.Context(), stopped.ID, "stopped"))
				stop()
				time.Sleep(time.Second) // until a canary is forgotten
				if down != tc.down || most != tc.most || leased == (tc.strategy == "immediate") {
					t.Errorf("%d down at once, %d machines at once, leased %t; want %d, %d", down, most, leased, tc.down, tc.most)
				}
				ms, err := c.List(t.Context(), "web", "include_leases=true")
				must(t, "list", err)
				if len(ms) != 4 {
					t.Fatalf("got %d machines, want 4", len(ms))
				}
				for _, old := range started {
					m := byID(ms, old.ID)
					want := map[string]string{
						"flymesh_op": old.Config.Metadata["flymesh_op"], "added": "yes", "fly_release_version": "8", "fly_release_id": "r8",
						"fly_platform_version": "v2", "fly_process_group": "app", "fly_flyctl_version": m.Config.Metadata["fly_flyctl_version"],
					}
					if p := old.Config.Metadata["flymesh_primary"]; p != "" {
						want["flymesh_primary"] = p
					}
					if m.InstanceID == old.InstanceID || m.Config.Env["V"] != "new" || !maps.Equal(m.Config.Metadata, want) {
						t.Errorf("machine after the deploy: instance %s, was %s; env %v, metadata %v, want %v", m.InstanceID, old.InstanceID, m.Config.Env, m.Config.Metadata, want)
					}
				}
				if m := byID(ms, stopped.ID); m.State != "stopped" || m.Config.Metadata["fly_release_version"] != "8" {
					t.Errorf("stopped machine: %s with %v", m.State, m.Config.Metadata)
				}
				for _, m := range ms {
					if _, err := c.FindLease(t.Context(), "web", m.ID); err == nil {
						t.Errorf("machine %s is still leased", m.ID)
					}
				}
				if d := s.Deploys(); len(d) != 1 || d[0].Release != 8 || d[0].Ended == nil || d[0].Error != "" {
					t.Errorf("history: %+v", d)
				}
				if n := audit(s, "flyctl", "update"); n != 4 {
					t.Errorf("the audit log has %d updates by flyctl, want 4", n)
				}
			})
		})
	}
}

func TestDeployBlueGreen(t *testing.T) {
	bubble(t, flytest.Options{Timing: flytest.Timing{Create: 5 * time.Second}, NoLimits: true}, func(t *testing.T, s *flytest.Server, c *flaps.Client) {
		started, stopped := fleetOf(t, s, 2)
		twice, early := false, false
		stop := watchFleet(t, c, func(ms []*fly.Machine) {
			primaries := 0
			for _, m := range ms {
				if m.Config.Metadata["flymesh_primary"] != "" {
					primaries++
				}
				old := byID(started, m.ID) != nil || m.ID == stopped.ID
				early = early || !old && !m.Cordoned && m.State != "started" && m.State != "stopped"
			}
			twice = twice || primaries == 2
		})
		must(t, "deploy", s.Deploy(t.Context(), "web", flytest.Deploy{Strategy: "bluegreen", Config: fresh}))
		stop()
		time.Sleep(time.Second)
		if !twice || early {
			t.Errorf("the primary's mark was there twice: %t, traffic went to machines that had not started: %t", twice, early)
		}
		ms, err := c.List(t.Context(), "web", "")
		must(t, "list", err)
		states, primaries := map[string]int{}, 0
		for _, m := range ms {
			states[m.State]++
			if byID(started, m.ID) != nil || m.ID == stopped.ID {
				t.Errorf("machine %s of the old set is still there, %s", m.ID, m.State)
			}
			if m.Cordoned && m.State == "started" {
				t.Errorf("machine %s is cordoned", m.ID)
			}
			if m.Config.Metadata["flymesh_primary"] == "web" {
				primaries++
			}
			if m.Config.Metadata["fly_bluegreen_deployment_tag"] == "" || m.Config.Metadata["fly_release_version"] != "8" {
				t.Errorf("metadata: %v", m.Config.Metadata)
			}
		}
		if !maps.Equal(states, map[string]int{"started": 2, "stopped": 1}) || primaries != 1 {
			t.Errorf("after the deploy: %v, %d primaries", states, primaries)
		}
		for _, m := range started {
			if code, _, _ := raw(t, s, "GET", "/v1/apps/web/machines/"+m.ID, ""); code != 404 {
				t.Errorf("machine %s is not gone: %d", m.ID, code)
			}
		}
	})
}

// TestDeployKeepsItsLeases: 13 s, refreshed each 4 s for as long as it takes,
// never lost in between; and a deploy that cannot have them fails.
func TestDeployKeepsItsLeases(t *testing.T) {
	bubble(t, flytest.Options{Timing: flytest.Timing{Update: 40 * time.Second}, NoLimits: true}, func(t *testing.T, s *flytest.Server, c *flaps.Client) {
		m := seed(t, s, "one")
		done := make(chan error, 1)
		go func() { done <- s.Deploy(t.Context(), "web", flytest.Deploy{}) }()
		for range 30 {
			time.Sleep(time.Second)
			l, err := c.FindLease(t.Context(), "web", m.ID)
			must(t, "find lease", err)
			if left := time.Until(time.Unix(l.Data.ExpiresAt, 0)); left > 13*time.Second || left < 7*time.Second {
				t.Errorf("the lease has %s left", left)
			}
		}
		if _, err := s.HoldLease("web", m.ID, "somebody", time.Hour); err == nil {
			t.Error("another took the lease")
		}
		must(t, "deploy", <-done)
		if n := audit(s, "flyctl", "acquire_lease"); n < 10 || n > 12 {
			t.Errorf("%d lease requests in 40 s", n)
		}
		_, err := s.HoldLease("web", m.ID, "somebody", time.Hour)
		must(t, "hold lease", err)
		began := time.Now()
		if err := s.Deploy(t.Context(), "web", flytest.Deploy{}); err == nil || !strings.Contains(err.Error(), "somebody") {
			t.Errorf("deploy under a foreign lease: %v", err)
		}
		if d := time.Since(began); d < time.Minute || d > 62*time.Second {
			t.Errorf("it gave up after %s", d)
		}
	})
}

func TestDeployReplacesWhatItCannotReach(t *testing.T) {
	bubble(t, flytest.Options{NoLimits: true}, func(t *testing.T, s *flytest.Server, c *flaps.Client) {
		started, _ := fleetOf(t, s, 2)
		lost := started[1]
		must(t, "fail host", s.FailHost(lost.ID))
		m, err := c.Get(t.Context(), "web", lost.ID)
		must(t, "get", err)
		if m.State != "started" || m.HostStatus != fly.HostStatusUnreachable || m.Config != nil {
			t.Errorf("machine on a lost host: %s, %s, config %v", m.State, m.HostStatus, m.Config)
		}
		must(t, "deploy", s.Deploy(t.Context(), "web", flytest.Deploy{}))
		must(t, "restore host", s.RestoreHost(lost.ID))
		must(t, "start", s.Await(t.Context(), lost.ID, "started"))
		ms, err := c.List(t.Context(), "web", "state=started")
		must(t, "list", err)
		releases := map[string]int{}
		for _, m := range ms {
			releases[m.Config.Metadata["fly_release_version"]]++
		}
		if !maps.Equal(releases, map[string]int{"8": 2, "7": 1}) {
			t.Errorf("started machines by release: %v", releases)
		}
	})
}

func TestMigrationChangesTheAddressAtBoot(t *testing.T) {
	bubble(t, flytest.Options{NoLimits: true}, func(t *testing.T, s *flytest.Server, c *flaps.Client) {
		m := seed(t, s, "one")
		address := func() string {
			now, err := c.Get(t.Context(), "web", m.ID)
			must(t, "get", err)
			return now.PrivateIP
		}
		must(t, "migrate", s.Migrate(m.ID))
		if got := address(); got != m.PrivateIP {
			t.Errorf("the address changed to %s while it runs", got)
		}
		must(t, "restart", c.Restart(t.Context(), "web", fly.RestartMachineInput{ID: m.ID}, ""))
		must(t, "restarted", s.Await(t.Context(), m.ID, "started"))
		moved := address()
		if moved == m.PrivateIP {
			t.Errorf("the address is still %s", moved)
		}
		must(t, "restart", c.Restart(t.Context(), "web", fly.RestartMachineInput{ID: m.ID}, ""))
		must(t, "restarted", s.Await(t.Context(), m.ID, "started"))
		if got := address(); got != moved {
			t.Errorf("the address changed again, to %s", got)
		}
	})
}

// TestFaultsSpareTheActors: tokens, limits and faults are for the mesh.
func TestFaultsSpareTheActors(t *testing.T) {
	bubble(t, flytest.Options{Tokens: map[string]string{"web": "secret"}}, func(t *testing.T, s *flytest.Server, _ *flaps.Client) {
		m := seed(t, s, "one")
		must(t, "fault", s.AddFaults(flytest.Fault{Status: 500}))
		for range 5 {
			must(t, "deploy", s.Deploy(t.Context(), "web", flytest.Deploy{Strategy: "immediate"}))
			must(t, "start", s.Await(t.Context(), m.ID, "started"))
		}
	})
}

func TestControlDeploys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := flytest.New(flytest.Options{NoLimits: true, Apps: []string{"web"}})
		must(t, "new", err)
		defer s.Close()
		c := newClient(t, s, s.Transport(), "")
		m := seed(t, s, "one")
		for body, want := range map[string]int{
			`{"app":"web","strategy":"sideways"}`:      http.StatusBadRequest,
			`{"app":"nowhere"}`:                        http.StatusNotFound,
			`{"app":"web","stratgy":"rolling"}`:        http.StatusBadRequest,
			`{"app":"web","config":{"services":"no"}}`: http.StatusBadRequest,
		} {
			if code, text, _ := raw(t, s, "POST", "/_emulator/deploys", body); code != want {
				t.Errorf("%s: got %d %s, want %d", body, code, text, want)
			}
		}
		code, text, _ := raw(t, s, "POST", "/_emulator/deploys", `{"app":"web","strategy":"immediate","config":{"env":{"V":"new"}}}`)
		if code != http.StatusAccepted {
			t.Fatalf("deploy: %d %s", code, text)
		}
		synctest.Wait()
		time.Sleep(2 * time.Second)
		_, text, _ = raw(t, s, "GET", "/_emulator/deploys", "")
		var list []flytest.DeployInfo
		must(t, "read", json.Unmarshal([]byte(text), &list))
		if len(list) != 1 || list[0].Ended == nil || list[0].Error != "" || list[0].Strategy != "immediate" {
			t.Errorf("deploys: %s", text)
		}
		now, err := c.Get(t.Context(), "web", m.ID)
		must(t, "get", err)
		if now.Config.Env["V"] != "new" || now.State != "started" {
			t.Errorf("after the deploy: %s, env %v", now.State, now.Config.Env)
		}
		if code, text, _ := raw(t, s, "POST", "/_emulator/machines/"+m.ID+"/migrate", ""); code != 200 {
			t.Errorf("migrate: %d %s", code, text)
		}
		if code, text, _ := raw(t, s, "POST", "/_emulator/machines/"+m.ID+"/fail", ""); code != 200 || !strings.Contains(text, `"host":"unreachable"`) {
			t.Errorf("fail: %d %s", code, text)
		}
		if code, text, _ := raw(t, s, "POST", "/_emulator/machines/"+m.ID+"/restore", ""); code != 200 {
			t.Errorf("restore: %d %s", code, text)
		}
	})
}

// TestProxyStopsAndStarts: the proxy's own scaling, on real processes: what
// is too much is stopped one by one, and a request wakes a machine.
func TestProxyStopsAndStarts(t *testing.T) {
	t.Parallel()
	p := newProcesses(t, flytest.ProcessOptions{}, flytest.Options{Proxy: flytest.Checks{Every: 20 * time.Millisecond}, NoLimits: true})
	r, err := p.Route("web", "127.0.0.1:0", 8080)
	must(t, "route", err)
	auto := func(c *fly.MachineConfig) {
		stop, yes := fly.MachineAutostopStop, true
		c.Services = []fly.MachineService{{Protocol: "tcp", InternalPort: 8080, Autostop: &stop, Autostart: &yes}}
	}
	a, b, keep := p.run("serve", auto), p.run("serve", auto), p.run("serve", nil)
	p.Autostop("web", 60*time.Millisecond)
	p.eventually("the proxy stops both that it may", func() bool {
		return p.info(a).State == "stopped" && p.info(b).State == "stopped"
	})
	must(t, "sick", os.WriteFile(p.info(keep).Rootfs+"/home/sick", nil, 0o600))
	p.eventually("a request wakes one", func() bool {
		resp, err := http.Get(r.URL() + "/")
		must(t, "ask", err)
		resp.Body.Close()
		id := resp.Header.Get("Fly-Machine-Id")
		return resp.StatusCode == 200 && (id == a || id == b)
	})
	if p.info(keep).State != "started" {
		t.Error("a machine without autostop was stopped")
	}
	if audit(p.Server, "fly-proxy", "stop") < 2 || audit(p.Server, "fly-proxy", "start") < 1 {
		t.Error("the audit log does not name the proxy")
	}
	p.Autostop("web", 0)
}
