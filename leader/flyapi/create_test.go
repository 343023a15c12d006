package flyapi

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	fly "github.com/superfly/fly-go"

	"flymesh/leader"
	"flymesh/leader/flyapi/flytest"
)

// template is a config with everything that a new machine must and must not have.
const template = `{
	"image":"registry.fly.io/n8n:deployment-1","env":{"A":"1","PRIMARY_REGION":"fra"},
	"guest":{"cpu_kind":"shared","cpus":2,"memory_mb":1024,"kernel_args":["x"]},
	"init":{"exec":["/agent","run"],"swap_size_mb":512},
	"restart":{"policy":"always"},"stop_config":{"timeout":"30s","signal":"SIGTERM"},
	"services":[{"protocol":"tcp","internal_port":80,"autostop":"suspend","autostart":true,"min_machines_running":1,
		"ports":[{"port":443,"handlers":["tls","http"]}],"concurrency":{"type":"requests","soft_limit":20,"hard_limit":25},"force_instance_key":null}],
	"checks":{"health":{"port":9470,"type":"http","path":"/health","interval":"5s","timeout":"2s","grace_period":"10s"}},
	"metrics":{"port":9470,"path":"/metrics"},
	"files":[{"guest_path":"/etc/x","raw_value":"eA=="}],
	"mounts":[{"volume":"vol_1","path":"/data"}],"standbys":["e8e"],"schedule":"daily","auto_destroy":true,
	"metadata":{"fly_platform_version":"v2","fly_process_group":"worker","fly_release_id":"r9","fly_release_version":"9",
		"fly_flyctl_version":"1","primary":"yes","flymesh_primary":"n8n","flymesh_epoch":"{}","flymesh_op":"old"}}`

func TestCopyConfig(t *testing.T) {
	tpl := new(fly.MachineConfig)
	if err := json.Unmarshal([]byte(template), tpl); err != nil {
		t.Fatal(err)
	}
	before, err := json.Marshal(tpl)
	if err != nil {
		t.Fatal(err)
	}
	got, err := copyConfig(tpl, "3-17")
	if err != nil {
		t.Fatal(err)
	}
	want := new(fly.MachineConfig)
	if err := json.Unmarshal([]byte(template), want); err != nil {
		t.Fatal(err)
	}
	want.Mounts, want.Standbys, want.Schedule, want.AutoDestroy = nil, nil, "", false
	want.Env = map[string]string{"A": "1", "PRIMARY_REGION": "fra", "FLYMESH_BURST": "1"}
	want.Metadata = map[string]string{"fly_platform_version": "v2", "fly_process_group": "worker", "fly_release_id": "r9",
		"fly_release_version": "9", "flymesh_op": "3-17"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("config of the new machine (-want +got):\n%s", d)
	}
	after, err := json.Marshal(tpl)
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != string(after) {
		t.Error("the template itself was changed")
	}
	bare, err := copyConfig(&fly.MachineConfig{Image: "i"}, "1-1")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]string{"fly_platform_version": "v2", "fly_process_group": "app", "flymesh_op": "1-1"}, bare.Metadata); d != "" {
		t.Errorf("metadata from a bare template (-want +got):\n%s", d)
	}
}

// TestCreateFromUnreachableTemplate copies nothing incomplete.
func TestCreateFromUnreachableTemplate(t *testing.T) {
	for _, body := range []string{
		`{"id":"m1","host_status":"unreachable","incomplete_config":{"image":"i"}}`,
		`{"id":"m1","host_status":"ok"}`,
		`{"id":"m1","host_status":"unknown","config":{"image":"i"}}`,
	} {
		c := newClient(t, Options{Transport: transport(func(r *http.Request) (*http.Response, error) {
			if r.Method != http.MethodGet {
				t.Errorf("sent %s %s", r.Method, r.URL)
			}
			return answer(200, body), nil
		})})
		if m, err := c.Create(t.Context(), leader.CreateRequest{App: testApp, Name: "x", Template: "m1"}); leader.FaultOf(err) != leader.Retry {
			t.Errorf("%s: got %+v, %v; want fault retry", body, m, err)
		}
	}
}

// TestAdoptWithoutID finds the machine that has the name when the API's text
// does not say which it is and its listing is late.
func TestAdoptWithoutID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lists := 0
		c := newClient(t, Options{Transport: transport(func(r *http.Request) (*http.Response, error) {
			switch {
			case r.Method == http.MethodPost:
				return answer(409, `{"error":"already_exists: unique machine name violation"}`), nil
			case strings.HasSuffix(r.URL.Path, "/machines"):
				if lists++; lists < 3 {
					return answer(200, `[]`), nil
				}
				return answer(200, `[{"id":"m9","name":"x","state":"starting"}]`), nil
			case strings.HasSuffix(r.URL.Path, "/m9"):
				return answer(200, `{"id":"m9","name":"x","state":"started","config":{"metadata":{"flymesh_op":"1-1"}}}`), nil
			}
			return answer(200, `{"id":"m1","config":{"image":"i"}}`), nil
		})})
		m, err := c.Create(t.Context(), leader.CreateRequest{App: testApp, Name: "x", Template: "m1", Op: "1-1"})
		if err != nil || m.ID != "m9" || m.State != "started" {
			t.Errorf("got %+v, %v", m, err)
		}
	})
}

// TestAdoptNothing stays unknown while nobody has the name that is taken.
func TestAdoptNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, Options{Transport: transport(func(r *http.Request) (*http.Response, error) {
			switch {
			case r.Method == http.MethodPost:
				return answer(409, `{"error":"already_exists: unique machine name violation"}`), nil
			case strings.HasSuffix(r.URL.Path, "/machines"):
				return answer(200, `[]`), nil
			}
			return answer(200, `{"id":"m1","config":{"image":"i"}}`), nil
		})})
		if m, err := c.Create(t.Context(), leader.CreateRequest{App: testApp, Name: "x", Template: "m1", Op: "1-1"}); leader.FaultOf(err) != leader.Unknown {
			t.Errorf("got %+v, %v; want fault unknown", m, err)
		}
	})
}

// TestListingLags runs against an emulator whose listing is 8 s behind, and
// keeps the affinity cookie from the client, so that nothing but the overlay
// makes its own writes visible.
func TestListingLags(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := emulator(t, flytest.Options{Timing: flytest.Timing{ListLag: 8 * time.Second}})
		inner := s.Transport()
		tpl := seed(t, s, flytest.Spec{Start: true, Config: fly.MachineConfig{Image: "i"}})
		spare := seed(t, s, flytest.Spec{Config: fly.MachineConfig{Image: "i"}})
		time.Sleep(time.Minute)
		strip := transport(func(r *http.Request) (*http.Response, error) {
			resp, err := inner.RoundTrip(r)
			if err == nil {
				resp.Header.Del("Set-Cookie")
			}
			return resp, err
		})
		c := newClient(t, Options{Transport: strip})
		other := newClient(t, Options{Transport: strip})
		ctx := t.Context()

		m, err := c.Create(ctx, leader.CreateRequest{App: testApp, Name: "x", Template: tpl.ID, Op: "1-1"})
		if err != nil {
			t.Fatal(err)
		}
		for name, err := range map[string]error{
			"start":  c.Start(ctx, testApp, spare.ID),
			"stop":   c.Stop(ctx, testApp, tpl.ID, 0),
			"cordon": c.Cordon(ctx, testApp, tpl.ID),
			"set":    c.SetMetadata(ctx, testApp, tpl.ID, "k", "v"),
		} {
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		stale, err := other.List(ctx, testApp)
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(stale, func(x leader.Machine) bool { return x.ID == m.ID }) {
			t.Fatal("the listing does not lag: nothing is tested")
		}
		byID := func() map[string]leader.Machine {
			ms, err := c.List(ctx, testApp)
			if err != nil {
				t.Fatal(err)
			}
			out := map[string]leader.Machine{}
			for _, m := range ms {
				out[m.ID] = m
			}
			return out
		}
		got := byID()
		if len(got) != 3 || got[m.ID].Name != "x" {
			t.Errorf("listing lacks the machine that was just created: %+v", got)
		}
		if st := got[spare.ID].State; st != "starting" && st != "started" {
			t.Errorf("the machine that was just started is %s", st)
		}
		if st := got[tpl.ID].State; st != "stopping" && st != "stopped" {
			t.Errorf("the machine that was just stopped is %s", st)
		}
		if !got[tpl.ID].Cordoned || got[tpl.ID].Metadata["k"] != "v" {
			t.Errorf("cordon and metadata are not seen: %+v", got[tpl.ID])
		}
		time.Sleep(time.Minute)
		got = byID()
		if got[m.ID].State != "started" || got[spare.ID].State != "started" || got[tpl.ID].State != "stopped" {
			t.Errorf("once settled: %+v", got)
		}

		// What somebody else undoes is believed after a while.
		if err := c.Stop(ctx, testApp, m.ID, 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		if err := other.Destroy(ctx, testApp, m.ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		if got := byID(); got[m.ID].ID != "" {
			t.Errorf("a destroyed machine is still told: %+v", got[m.ID])
		}
	})
}

// TestNewMachineIsNotGone bridges the moment in which the API does not find
// what it has just created, and no longer than that.
func TestNewMachineIsNotGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, Options{Transport: transport(func(r *http.Request) (*http.Response, error) {
			switch {
			case r.Method == http.MethodPost:
				return answer(200, `{"id":"m2","name":"x","state":"created","config":{"metadata":{"flymesh_op":"1-1"}}}`), nil
			case strings.HasSuffix(r.URL.Path, "/machines"):
				return answer(200, `[]`), nil
			case strings.HasSuffix(r.URL.Path, "/m1"):
				return answer(200, `{"id":"m1","config":{"image":"i"}}`), nil
			}
			return answer(404, `{"error":"machine not found"}`), nil
		})})
		if _, err := c.Create(t.Context(), leader.CreateRequest{App: testApp, Name: "x", Template: "m1", Op: "1-1"}); err != nil {
			t.Fatal(err)
		}
		look := func() (n int, err error) {
			ms, lerr := c.List(t.Context(), testApp)
			if lerr != nil {
				t.Fatal(lerr)
			}
			_, err = c.Get(t.Context(), testApp, "m2")
			return len(ms), err
		}
		if n, err := look(); n != 1 || err != nil {
			t.Errorf("at once: %d listed, get says %v", n, err)
		}
		time.Sleep(goneGrace + time.Second)
		if n, err := look(); n != 0 || leader.FaultOf(err) != leader.Gone {
			t.Errorf("after %s: %d listed, get says %v; want it gone", goneGrace, n, err)
		}
	})
}

// TestBlockedStopEnds stops a machine whose lease a deploy holds.
func TestBlockedStopEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := emulator(t, flytest.Options{})
		m := seed(t, s, flytest.Spec{Start: true})
		if _, err := s.HoldLease(testApp, m.ID, "deployer", time.Hour); err != nil {
			t.Fatal(err)
		}
		c := newClient(t, Options{Transport: s.Transport()})
		start := time.Now()
		err := c.Stop(t.Context(), testApp, m.ID, 0)
		if leader.FaultOf(err) != leader.Leased || time.Since(start) > ActStop.deadline()+lookAfter {
			t.Errorf("stop: %v after %s, want fault leased", err, time.Since(start))
		}
		if err := c.Start(t.Context(), testApp, m.ID); leader.FaultOf(err) != leader.Leased {
			t.Errorf("start: got %v, want fault leased", err)
		}
		ms, err := c.List(t.Context(), testApp)
		if err != nil || ms[0].LeaseOwner != "deployer" {
			t.Errorf("listing says that %q holds the lease (%v)", ms[0].LeaseOwner, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Stop(ctx, testApp, m.ID, 0); leader.FaultOf(err) != leader.Unknown {
			t.Errorf("stop with a context that ended: got %v, want fault unknown", err)
		}
	})
}
