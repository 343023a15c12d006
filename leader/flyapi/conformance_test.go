package flyapi

import (
	"net/http"
	"testing"

	fly "github.com/superfly/fly-go"

	"flymesh/leader/cloudtest"
	"flymesh/leader/flyapi/flytest"
)

// TestConformance runs the adapter over real HTTP against the emulator, with
// its rate limiter on: a 429 would fail a promise.
func TestConformance(t *testing.T) {
	cloudtest.Conform(t, func(t *testing.T) cloudtest.World {
		s := emulator(t, flytest.Options{})
		if err := s.Listen("127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		m := seed(t, s, flytest.Spec{Group: "worker", Start: true, Config: fly.MachineConfig{
			Image: "registry.fly.io/n8n:1", Env: map[string]string{"A": "b"}, Schedule: "",
			Metadata: map[string]string{"fly_release_version": "7", "fly_release_id": "r7", "flymesh_primary": testApp},
		}})
		return cloudtest.World{
			Cloud: newClient(t, Options{BaseURL: s.URL()}), App: testApp, Template: m.ID,
			LoseCreate: func(t *testing.T) {
				if err := s.AddFaults(flytest.Fault{Method: http.MethodPost, Action: "create", Count: 1, Drop: "after"}); err != nil {
					t.Fatal(err)
				}
			},
		}
	})
}
