package flyapi

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"flymesh/leader"
)

func TestToMachine(t *testing.T) {
	created := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range []struct {
		name, in string
		want     leader.Machine
	}{
		{"full", `{"id":"d8d","name":"n","state":"started","region":"fra","instance_id":"01J","private_ip":"fdaa::1",
			"created_at":"2026-01-02T03:04:05Z","host_status":"ok","cordoned":true,"lease":{"owner":"a@b.c","expires_at":1},
			"config":{"metadata":{"fly_process_group":"worker","fly_release_version":"12"},
				"services":[{"protocol":"tcp","autostop":false,"autostart":false},{"protocol":"tcp","autostop":"suspend","autostart":true}],
				"mounts":[{"volume":"vol_1","path":"/data"}],"standbys":["e8e"]},
			"events":[{"type":"exit","timestamp":1700000005000},{"type":"start","status":"started","timestamp":1700000002000},
				{"type":"start","status":"starting","timestamp":1700000001000}]}`,
			leader.Machine{ID: "d8d", Name: "n", App: testApp, Group: "worker", Region: "fra", State: "started", InstanceID: "01J",
				PrivateIP: "fdaa::1", Created: created, Started: time.Unix(1700000002, 0).UTC(), Release: "12",
				Metadata: map[string]string{"fly_process_group": "worker", "fly_release_version": "12"}, HostOK: true, Cordoned: true,
				Mounts: true, Standby: true, Autostop: true, Autostart: true, LeaseOwner: "a@b.c"}},
		{"bare", `{"id":"d8d","state":"created","config":{}}`,
			leader.Machine{ID: "d8d", App: testApp, Group: "app", State: "created", HostOK: true}},
		{"unreachable host", `{"id":"d8d","state":"started","host_status":"unreachable","config":null,
			"incomplete_config":{"metadata":{"fly_process_group":"worker"}}}`,
			leader.Machine{ID: "d8d", App: testApp, Group: "worker", State: "started", Metadata: map[string]string{"fly_process_group": "worker"}}},
		{"no config at all", `{"id":"d8d","state":"started","host_status":"unknown"}`,
			leader.Machine{ID: "d8d", App: testApp, Group: "app", State: "started"}},
		{"autostop true", `{"id":"d8d","config":{"services":[{"autostop":true}]}}`,
			leader.Machine{ID: "d8d", App: testApp, Group: "app", HostOK: true, Autostop: true}},
		{"autostop off", `{"id":"d8d","config":{"services":[{"autostop":"off"}]}}`,
			leader.Machine{ID: "d8d", App: testApp, Group: "app", HostOK: true}},
		{"release command", `{"id":"d8d","config":{"metadata":{"fly_process_group":"fly_app_release_command"}}}`,
			leader.Machine{ID: "d8d", App: testApp, Group: "fly_app_release_command", HostOK: true, Special: true,
				Metadata: map[string]string{"fly_process_group": "fly_app_release_command"}}},
		{"console", `{"id":"d8d","config":{"metadata":{"fly_process_group":"fly_app_console"}}}`,
			leader.Machine{ID: "d8d", App: testApp, Group: "fly_app_console", HostOK: true, Special: true,
				Metadata: map[string]string{"fly_process_group": "fly_app_console"}}},
		{"scheduled", `{"id":"d8d","config":{"schedule":"daily"}}`,
			leader.Machine{ID: "d8d", App: testApp, Group: "app", HostOK: true, Special: true}},
	} {
		var w wireMachine
		if err := json.Unmarshal([]byte(c.in), &w); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if d := cmp.Diff(c.want, toMachine(testApp, w)); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}
