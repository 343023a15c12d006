package flytest_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	fly "github.com/superfly/fly-go"
	"github.com/superfly/fly-go/flaps"
	"github.com/superfly/fly-go/tokens"

	"flymesh/leader/flyapi/flytest"
)

// newServer returns a listening emulator with the app "web" and a real fly-go
// client of it.
func newServer(t *testing.T, o flytest.Options) (*flytest.Server, *flaps.Client) {
	t.Helper()
	judged(t, &o)
	return serverAndClient(t, o)
}

func serverAndClient(t *testing.T, o flytest.Options) (*flytest.Server, *flaps.Client) {
	t.Helper()
	o.Apps = append(o.Apps, "web")
	s, err := flytest.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	if err := s.Listen("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	return s, newClient(t, s, nil, "")
}

// baseMu guards the environment variable that fly-go's constructor reads.
var baseMu sync.Mutex

func newClient(t *testing.T, s *flytest.Server, rt http.RoundTripper, token string) *flaps.Client {
	t.Helper()
	baseMu.Lock()
	defer baseMu.Unlock()
	os.Setenv("FLY_FLAPS_BASE_URL", s.URL()) // read by the constructor alone
	o := flaps.NewClientOpts{UserAgent: "flytest-test", Transport: rt}
	if token != "" {
		o.Tokens = tokens.Parse(token)
	}
	c, err := flaps.NewWithOptions(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func config(metadata ...string) *fly.MachineConfig {
	c := &fly.MachineConfig{Image: "registry.fly.io/web:v1", Metadata: map[string]string{}}
	for i := 0; i+1 < len(metadata); i += 2 {
		c.Metadata[metadata[i]] = metadata[i+1]
	}
	return c
}

func wantStatus(t *testing.T, what string, err error, code int, text string) {
	t.Helper()
	var fe *flaps.FlapsError
	if !errors.As(err, &fe) {
		t.Fatalf("%s: got error %v, want status %d", what, err, code)
	}
	if fe.ResponseStatusCode != code || !strings.Contains(string(fe.ResponseBody), text) {
		t.Errorf("%s: got %d %s, want %d with %q", what, fe.ResponseStatusCode, fe.ResponseBody, code, text)
	}
}

func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func TestEveryCallOfTheClient(t *testing.T) {
	s, c := newServer(t, flytest.Options{NoLimits: true})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()

	app, err := c.CreateApp(ctx, flaps.CreateAppRequest{Name: "api", Org: "personal"})
	must(t, "create app", err)
	if app.Name != "api" {
		t.Errorf("created app: got %+v", app)
	}
	_, err = c.GetApp(ctx, "nowhere")
	wantStatus(t, "get missing app", err, 404, "app not found")

	m, err := c.Launch(ctx, "api", fly.LaunchMachineInput{Name: "one", Config: config("fly_process_group", "worker"), LeaseTTL: 30})
	must(t, "launch", err)
	if len(m.ID) != 14 || len(m.InstanceID) != 26 || m.State != "created" || m.LeaseNonce == "" || m.Region != "fra" || !strings.HasPrefix(m.PrivateIP, "fdaa:") {
		t.Errorf("launched machine: got %+v", m)
	}
	nonce := m.LeaseNonce
	_, err = c.Start(ctx, "api", m.ID, nonce)
	wantStatus(t, "start while created", err, 412, "unable to start machine from current state: 'created'")
	must(t, "wait", c.Wait(ctx, "api", m.ID, flaps.WithWaitStates("started"), flaps.WithWaitTimeout(5*time.Second)))
	m, err = c.Get(ctx, "api", m.ID)
	must(t, "get", err)
	if m.State != "started" || m.ProcessGroup() != "worker" || m.ImageRef.Tag != "v1" {
		t.Errorf("started machine: got %+v", m)
	}
	if e := m.GetLatestEventOfType("start"); e == nil || e.Status != "started" || time.Since(e.Time()) > time.Minute {
		t.Errorf("start event: got %+v", e)
	}
	if _, err := m.MostRecentStartTimeAfterLaunch(); err != nil {
		t.Errorf("start time: %v", err)
	}

	_, err = c.Launch(ctx, "api", fly.LaunchMachineInput{Name: "one", Config: config()})
	wantStatus(t, "launch the same name", err, 409, `already_exists: unique machine name violation, machine ID `+m.ID+` already exists with name \"one\"`)

	ttl := 30
	l, err := c.FindLease(ctx, "api", m.ID)
	must(t, "find lease", err)
	if l.Status != "success" || l.Data.ExpiresAt <= time.Now().Unix() {
		t.Errorf("found lease: got %+v", l)
	}
	l, err = c.RefreshLease(ctx, "api", m.ID, &ttl, nonce)
	must(t, "refresh lease", err)
	if l.Data.Nonce != nonce {
		t.Errorf("refreshed lease: got nonce %s, want %s", l.Data.Nonce, nonce)
	}
	_, err = c.Update(ctx, "api", fly.LaunchMachineInput{ID: m.ID, Config: config()}, "")
	wantStatus(t, "update under a foreign lease", err, 409, "lease currently held by")
	must(t, "release lease", c.ReleaseLease(ctx, "api", m.ID, nonce))
	_, err = c.FindLease(ctx, "api", m.ID)
	wantStatus(t, "find released lease", err, 404, "lease not found")
	l, err = c.AcquireLease(ctx, "api", m.ID, &ttl)
	must(t, "acquire lease", err)

	must(t, "set metadata", c.SetMetadata(ctx, "api", m.ID, "role", "primary"))
	before := m.InstanceID
	m, err = c.Get(ctx, "api", m.ID)
	must(t, "get", err)
	if m.InstanceID != before || m.Config.Metadata["role"] != "primary" {
		t.Errorf("after metadata: got instance %s, metadata %v; want instance %s", m.InstanceID, m.Config.Metadata, before)
	}
	u, err := c.Update(ctx, "api", fly.LaunchMachineInput{ID: m.ID, Config: config("fly_process_group", "worker")}, l.Data.Nonce)
	must(t, "update", err)
	if u.InstanceID == before {
		t.Error("update: the instance ID is the same as before")
	}
	must(t, "wait", c.Wait(ctx, "api", m.ID, flaps.WithWaitVersion(u.InstanceID)))
	must(t, "release lease", c.ReleaseLease(ctx, "api", m.ID, l.Data.Nonce))
	md, err := c.GetMetadata(ctx, "api", m.ID)
	must(t, "get metadata", err)
	if md["role"] != "primary" {
		t.Errorf("metadata after update: got %v, want role primary", md)
	}
	must(t, "delete metadata", c.DeleteMetadata(ctx, "api", m.ID, "role"))

	must(t, "cordon", c.Cordon(ctx, "api", m.ID, ""))
	must(t, "uncordon", c.Uncordon(ctx, "api", m.ID, ""))
	must(t, "suspend", c.Suspend(ctx, "api", m.ID, ""))
	must(t, "wait", c.Wait(ctx, "api", m.ID, flaps.WithWaitStates("suspended")))
	_, err = c.Start(ctx, "api", m.ID, "")
	must(t, "start suspended", err)
	must(t, "wait", c.Wait(ctx, "api", m.ID))
	must(t, "restart", c.Restart(ctx, "api", fly.RestartMachineInput{ID: m.ID, Timeout: time.Second, Signal: "SIGTERM"}, ""))
	must(t, "wait", c.Wait(ctx, "api", m.ID))
	_, err = c.GetProcesses(ctx, "api", m.ID)
	must(t, "ps", err)
	_, err = c.Exec(ctx, "api", m.ID, &fly.MachineExecRequest{Cmd: "true"})
	wantStatus(t, "exec", err, 501, "unimplemented")

	err = c.Destroy(ctx, "api", fly.RemoveMachineInput{ID: m.ID}, "")
	wantStatus(t, "destroy a started machine", err, 412, "unable to destroy machine, not currently stopped")
	must(t, "stop", c.Stop(ctx, "api", fly.StopMachineInput{ID: m.ID}, ""))
	must(t, "wait", c.Wait(ctx, "api", m.ID, flaps.WithWaitStates("stopped")))
	must(t, "stop again", c.Stop(ctx, "api", fly.StopMachineInput{ID: m.ID}, ""))
	err = c.Wait(ctx, "api", m.ID, flaps.WithWaitTimeout(time.Second))
	wantStatus(t, "wait for what does not come", err, 408, "deadline_exceeded: machine failed to reach desired state, started, currently stopped")
	err = c.Wait(ctx, "api", m.ID, flaps.WithWaitStates("sideways"))
	wantStatus(t, "wait for no state", err, 400, "cannot wait")

	ms, err := c.List(ctx, "api", "state=stopped&metadata.fly_process_group=worker")
	must(t, "list", err)
	if len(ms) != 1 || ms[0].ID != m.ID {
		t.Errorf("list: got %v", ms)
	}
	ms, err = c.List(ctx, "api", "state=started")
	must(t, "list", err)
	if len(ms) != 0 {
		t.Errorf("list of started machines: got %v", ms)
	}
	must(t, "destroy", c.Destroy(ctx, "api", fly.RemoveMachineInput{ID: m.ID, Kill: true}, ""))
	must(t, "wait", c.Wait(ctx, "api", m.ID, flaps.WithWaitStates("destroyed")))
	must(t, "await", poll(ctx, func() bool {
		_, err := c.Get(ctx, "api", m.ID)
		return errors.Is(err, flaps.ErrFlapsNotFound)
	}))

	r, err := c.GetRegions(ctx)
	must(t, "regions", err)
	if len(r.Regions) != 3 || r.Regions[0].Code != "fra" {
		t.Errorf("regions: got %+v", r)
	}
	p, err := c.GetPlacements(ctx, &flaps.GetPlacementsRequest{})
	must(t, "placements", err)
	if len(p) != 3 {
		t.Errorf("placements: got %+v", p)
	}
	for _, l := range s.Requests() {
		if l.Action == "" || l.RequestID == "" || l.UserAgent == "" || l.Status == 0 {
			t.Errorf("audit: got %+v", l)
		}
	}
}

func TestFaultsOnRealConnections(t *testing.T) {
	s, c := newServer(t, flytest.Options{NoLimits: true})
	must(t, "add faults", s.AddFaults(
		flytest.Fault{Action: "create", Count: 1, Drop: "after"},
		flytest.Fault{Action: "create", Count: 1, Delay: flytest.Delay(time.Hour)},
	))
	_, err := c.Launch(t.Context(), "web", fly.LaunchMachineInput{Name: "one", Config: config()})
	if !errors.Is(err, io.EOF) {
		t.Errorf("a dropped answer: got %v, want EOF", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err = c.Launch(ctx, "web", fly.LaunchMachineInput{Name: "two", Config: config()}); err == nil {
		t.Error("a launch that hangs succeeded")
	}
	all, stop := context.WithTimeout(t.Context(), 5*time.Second)
	defer stop()
	must(t, "the emulator notices that the client went away", poll(all, func() bool { return s.Requests()[1].DurationMS >= 0 }))
	if ms := s.Machines(); len(ms) != 1 || ms[0].Name != "one" {
		t.Errorf("machines: got %+v, want one alone", ms)
	}
}

// poll waits until ok says so.
func poll(ctx context.Context, ok func() bool) error {
	for !ok() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}
