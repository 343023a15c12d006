package flytest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	fly "github.com/superfly/fly-go"
	"github.com/superfly/fly-go/flaps"

	"flymesh/leader/flyapi/flytest"
)

// bubble runs a test with an in-process emulator and a real fly-go client of
// it in a bubble, where waiting takes no time.
func bubble(t *testing.T, o flytest.Options, test func(t *testing.T, s *flytest.Server, c *flaps.Client)) {
	t.Helper()
	judged(t, &o)
	synctest.Test(t, func(t *testing.T) {
		o.Apps = append(o.Apps, "web")
		s, err := flytest.New(o)
		must(t, "make server", err)
		defer s.Close()
		test(t, s, newClient(t, s, s.Transport(), ""))
	})
}

// seed makes a started machine.
func seed(t *testing.T, s *flytest.Server, name string) *fly.Machine {
	t.Helper()
	m, err := s.Seed(flytest.Spec{App: "web", Name: name, Config: *config(), Start: true})
	must(t, "seed", err)
	must(t, "start", s.Await(t.Context(), m.ID, "started"))
	return m
}

// raw sends a request that fly-go has no call for.
func raw(t *testing.T, s *flytest.Server, method, path, body string, header ...string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL()+path, strings.NewReader(body))
	must(t, "make request", err)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := s.Transport().RoundTrip(req)
	must(t, "send request", err)
	b, err := io.ReadAll(resp.Body)
	must(t, "read answer", err)
	return resp.StatusCode, string(b), resp.Header
}

func TestLeaseOfSomebodyElse(t *testing.T) {
	bubble(t, flytest.Options{NoLimits: true}, func(t *testing.T, s *flytest.Server, c *flaps.Client) {
		ctx := t.Context()
		m := seed(t, s, "one")
		_, err := s.HoldLease("web", m.ID, "deployer@example.com", 10*time.Second)
		must(t, "hold lease", err)
		began := time.Now()
		_, err = c.Start(ctx, "web", m.ID, "")
		wantStatus(t, "start", err, 409, "lease currently held by deployer@example.com, expires at ")
		_, err = c.Update(ctx, "web", fly.LaunchMachineInput{ID: m.ID, Config: config()}, "")
		wantStatus(t, "update", err, 409, "aborted: machine ID "+m.ID)
		code, body, _ := raw(t, s, "POST", "/v1/apps/web/machines/"+m.ID+"/lease", `{"ttl":5}`)
		if code != 409 || !strings.Contains(body, "currently held") {
			t.Errorf("acquire: got %d %s, want 409", code, body)
		}
		must(t, "metadata under a lease", c.SetMetadata(ctx, "web", m.ID, "k", "v"))
		_, err = c.Launch(ctx, "web", fly.LaunchMachineInput{Config: config()})
		must(t, "create beside a lease", err)
		if d := time.Since(began); d > 100*time.Millisecond {
			t.Errorf("calls that do not block took %v", d)
		}
		must(t, "stop", c.Stop(ctx, "web", fly.StopMachineInput{ID: m.ID}, ""))
		if d := time.Since(began); d < 10*time.Second || d > 11*time.Second {
			t.Errorf("stop under a lease of 10s took %v", d)
		}
		must(t, "stopped", s.Await(ctx, m.ID, "stopped"))

		nonce, err := s.HoldLease("web", m.ID, "deployer@example.com", time.Hour)
		must(t, "hold lease", err)
		short, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		if err := c.Destroy(short, "web", fly.RemoveMachineInput{ID: m.ID}, ""); err == nil || short.Err() == nil {
			t.Errorf("destroy under a lease: got %v, want it to block until its deadline", err)
		}
		time.AfterFunc(5*time.Second, func() {
			if err := s.DropLease("web", m.ID, nonce); err != nil {
				t.Errorf("drop lease: %v", err)
			}
		})
		began = time.Now()
		must(t, "destroy", c.Destroy(ctx, "web", fly.RemoveMachineInput{ID: m.ID}, ""))
		if d := time.Since(began); d != 5*time.Second {
			t.Errorf("destroy returned after %v, want 5s, when the lease was dropped", d)
		}
	})
}

func TestLeaseExpiresAndKeepsItsNonce(t *testing.T) {
	bubble(t, flytest.Options{NoLimits: true}, func(t *testing.T, s *flytest.Server, c *flaps.Client) {
		ctx, ttl := t.Context(), 13
		m := seed(t, s, "one")
		path := "/v1/apps/web/machines/" + m.ID + "/lease"
		l, err := c.AcquireLease(ctx, "web", m.ID, &ttl)
		must(t, "acquire", err)
		for range 5 {
			time.Sleep(10 * time.Second)
			r, err := c.RefreshLease(ctx, "web", m.ID, &ttl, l.Data.Nonce)
			must(t, "refresh", err)
			if r.Data.Nonce != l.Data.Nonce || r.Data.ExpiresAt != time.Now().Add(13*time.Second).Unix() {
				t.Errorf("refreshed lease: got %+v", r.Data)
			}
		}
		if code, body, _ := raw(t, s, "DELETE", path, ""); code != 400 {
			t.Errorf("release without a nonce: got %d %s, want 400", code, body)
		}
		err = c.ReleaseLease(ctx, "web", m.ID, "wrong")
		wantStatus(t, "release with a wrong nonce", err, 409, "currently held")
		time.Sleep(14 * time.Second)
		_, err = c.FindLease(ctx, "web", m.ID)
		wantStatus(t, "find expired lease", err, 404, "lease not found")
		code, body, _ := raw(t, s, "POST", path, `{"ttl":5,"description":"deploy"}`)
		if code != 201 || !strings.Contains(body, `"status":"success"`) || !strings.Contains(body, `"description":"deploy"`) {
			t.Errorf("acquire with a body: got %d %s", code, body)
		}
	})
}

func TestStatesOverTime(t *testing.T) {
	bubble(t, flytest.Options{NoLimits: true, Timing: flytest.FlyTiming()}, func(t *testing.T, s *flytest.Server, c *flaps.Client) {
		ctx := t.Context()
		m, err := c.Launch(ctx, "web", fly.LaunchMachineInput{Name: "one", Config: config()})
		must(t, "launch", err)
		_, err = c.Start(ctx, "web", m.ID, "")
		wantStatus(t, "start while created", err, 412, "from current state: 'created'")
		time.Sleep(7100 * time.Millisecond)
		_, err = c.Start(ctx, "web", m.ID, "")
		wantStatus(t, "start while starting", err, 409, "aborted: machine still attempting to start")
		err = c.Wait(ctx, "web", m.ID, flaps.WithWaitStates("stopped"), flaps.WithWaitTimeout(time.Hour))
		wantStatus(t, "wait for long", err, 408, "deadline_exceeded: machine failed to reach desired state, stopped, currently started")
		if d := time.Since(s.Requests()[0].At); d < 67*time.Second || d > 68*time.Second {
			t.Errorf("a wait of an hour ended after %v, want 60s", d)
		}
		must(t, "stop", c.Stop(ctx, "web", fly.StopMachineInput{ID: m.ID}, ""))
		must(t, "wait", c.Wait(ctx, "web", m.ID, flaps.WithWaitStates("stopped", "destroyed")))
		_, err = c.Start(ctx, "web", m.ID, "")
		wantStatus(t, "start just after stop", err, 412, "machine still active, refusing to start")
		time.Sleep(2 * time.Second)
		u, err := c.Update(ctx, "web", fly.LaunchMachineInput{ID: m.ID, Config: config()}, "")
		must(t, "update", err)
		_, err = c.Start(ctx, "web", m.ID, "")
		wantStatus(t, "start while replaced", err, 412, "machine getting replaced, refusing to start")
		_, err = c.Update(ctx, "web", fly.LaunchMachineInput{ID: m.ID, Config: config()}, "")
		wantStatus(t, "update while replaced", err, 409, "machine update failed due to concurrent update")
		time.Sleep(4 * time.Second)
		m, err = c.Get(ctx, "web", m.ID)
		must(t, "get", err)
		if m.State != "stopped" || m.InstanceID != u.InstanceID {
			t.Errorf("a stopped machine after an update: got %s %s, want stopped %s", m.State, m.InstanceID, u.InstanceID)
		}
		must(t, "destroy", c.Destroy(ctx, "web", fly.RemoveMachineInput{ID: m.ID}, ""))
		err = c.Wait(ctx, "web", m.ID)
		wantStatus(t, "wait for a machine that goes", err, 400, "it will not be started")
		must(t, "wait", c.Wait(ctx, "web", m.ID, flaps.WithWaitStates("destroyed")))
		time.Sleep(6 * time.Second)
		err = c.Wait(ctx, "web", m.ID, flaps.WithWaitStates("destroyed"))
		wantStatus(t, "wait for a machine that is gone", err, 404, "machine not found")
		_, err = c.Launch(ctx, "web", fly.LaunchMachineInput{Name: "one", Config: config(), SkipLaunch: true})
		must(t, "launch with the name of a destroyed machine", err)
	})
}

func TestSkipLaunchStops(t *testing.T) {
	bubble(t, flytest.Options{NoLimits: true}, func(t *testing.T, s *flytest.Server, c *flaps.Client) {
		m, err := c.Launch(t.Context(), "web", fly.LaunchMachineInput{Config: config(), SkipLaunch: true})
		must(t, "launch", err)
		must(t, "await", s.Await(t.Context(), m.ID, "stopped"))
		if u := s.Usage()["web"]; u.MachineSeconds != 0 {
			t.Errorf("usage: got %+v", u)
		}
	})
}

func TestWaitFromAnEventSeesAFastTransition(t *testing.T) {
	bubble(t, flytest.Options{NoLimits: true}, func(t *testing.T, s *flytest.Server, c *flaps.Client) {
		m := seed(t, s, "one")
		_, body, _ := raw(t, s, "GET", "/v1/apps/web/machines/"+m.ID+"/events", "")
		var events []struct{ ID, Type, Status string }
		must(t, "read events", json.Unmarshal([]byte(body), &events))
		if events[0].Type != "start" || events[0].Status != "started" || events[len(events)-1].Type != "launch" || len(events[0].ID) != 26 {
			t.Errorf("events, newest first: got %+v", events)
		}
		must(t, "restart", c.Restart(t.Context(), "web", fly.RestartMachineInput{ID: m.ID}, ""))
		must(t, "await", s.Await(t.Context(), m.ID, "started"))
		must(t, "wait", c.Wait(t.Context(), "web", m.ID, flaps.WithWaitStates("started"), flaps.WithWaitFromEventID(events[0].ID)))
		err := c.Wait(t.Context(), "web", m.ID, flaps.WithWaitStates("suspended"), flaps.WithWaitFromEventID(events[0].ID), flaps.WithWaitTimeout(time.Second))
		wantStatus(t, "wait", err, 408, "suspended")
		err = c.Wait(t.Context(), "web", m.ID, flaps.WithWaitVersion("01ARZ3NDEKTSV4RRFFQ69G5FAV"))
		wantStatus(t, "wait for another version", err, 400, "was replaced")
	})
}

func TestRateLimit(t *testing.T) {
	bubble(t, flytest.Options{}, func(t *testing.T, s *flytest.Server, c *flaps.Client) {
		m, other := seed(t, s, "one"), seed(t, s, "two")
		burst := func(n int, call func() error) (ok int) {
			for range n {
				switch err := call(); {
				case err == nil:
					ok++
				default:
					wantStatus(t, "over the limit", err, 429, "rate limit exceeded")
				}
			}
			return ok
		}
		list := func() error { _, err := c.List(t.Context(), "web", ""); return err }
		get := func() error { _, err := c.Get(t.Context(), "web", m.ID); return err }
		cordon := func(id string) func() error {
			return func() error { return c.Cordon(t.Context(), "web", id, "") }
		}
		for _, tt := range []struct {
			what string
			call func() error
			want int
		}{
			{"list", list, 3}, {"get", get, 10}, {"cordon", cordon(m.ID), 3}, {"cordon of another machine", cordon(other.ID), 3},
		} {
			if got := burst(15, tt.call); got != tt.want {
				t.Errorf("%s: %d of 15 got through, want %d", tt.what, got, tt.want)
			}
		}
		time.Sleep(time.Second)
		if got := burst(15, list); got != 1 {
			t.Errorf("list, a second later: %d of 15 got through, want 1", got)
		}
		if got := burst(15, get); got != 5 {
			t.Errorf("get, a second later: %d of 15 got through, want 5", got)
		}
	})
}

func TestFaultsBeforeAndAfterCommit(t *testing.T) {
	bubble(t, flytest.Options{NoLimits: true}, func(t *testing.T, s *flytest.Server, c *flaps.Client) {
		ctx := t.Context()
		add := func(list string) {
			t.Helper()
			s.ClearFaults()
			if code, body, _ := raw(t, s, "POST", "/_emulator/faults", list); code != 200 {
				t.Fatalf("add faults: got %d %s", code, body)
			}
		}
		launch := func(name string) (*fly.Machine, error) {
			return c.Launch(ctx, "web", fly.LaunchMachineInput{Name: name, Config: config()})
		}
		count := func() int {
			ms, err := c.List(ctx, "web", "")
			must(t, "list", err)
			return len(ms)
		}
		add(`[{"method":"POST","path":"/v1/apps/*/machines","count":1,"status":500}]`)
		_, err := launch("a")
		wantStatus(t, "500 before commit", err, 500, "injected fault")
		if n := count(); n != 0 {
			t.Errorf("500 before commit: %d machines, want 0", n)
		}
		add(`[{"match":{"method":"POST","path":"machines","count":1},"then":{"status":408,"body":"{\"error\":\"too late\"}","drop":"after"}}]`)
		_, err = launch("b")
		wantStatus(t, "408 after commit", err, 408, "too late")
		if n := count(); n != 1 {
			t.Errorf("408 after commit: %d machines, want 1", n)
		}
		_, err = launch("b")
		wantStatus(t, "launch again", err, 409, "already_exists")

		add(`[{"path":"^/v1/apps/web/machines$","method":"post","count":1,"drop":"before"},{"action":"create","count":1,"drop":"after"}]`)
		for i, want := range []int{1, 2} {
			if _, err = launch("c"); err == nil || !errors.Is(err, io.EOF) {
				t.Errorf("drop: got %v, want EOF", err)
			}
			if n := count(); n != want {
				t.Errorf("drop %d: %d machines, want %d", i, n, want)
			}
		}
		add(`[{"action":"get","skip":1,"count":1,"delay":"5s"},{"action":"get","answer_delay":2000,"count":1}]`)
		id := s.Machines()[0].ID
		for i, want := range []time.Duration{2 * time.Second, 5 * time.Second, 0} {
			began := time.Now()
			_, err := c.Get(ctx, "web", id)
			must(t, "get", err)
			if d := time.Since(began); d != want {
				t.Errorf("get %d took %v, want %v", i, d, want)
			}
		}
		var hits int
		add(`[{"action":"get","chance":0.5,"status":500}]`)
		for range 200 {
			if _, err := c.Get(ctx, "web", id); err != nil {
				hits++
			}
		}
		if hits < 60 || hits > 140 {
			t.Errorf("a chance of 0.5 hit %d of 200", hits)
		}
		for _, bad := range []string{`{}`, `[{}]`, `[{"status":99}]`, `[{"drop":"sideways"}]`, `[{"path":"^(","status":500}]`, `[{"metod":"GET","status":500}]`, `[{"delay":"soon"}]`} {
			if code, body, _ := raw(t, s, "POST", "/_emulator/faults", bad); code != 400 {
				t.Errorf("faults %s: got %d %s, want 400", bad, code, body)
			}
		}
		raw(t, s, "DELETE", "/_emulator/faults", "")
		_, err = c.Get(ctx, "web", id)
		must(t, "get without faults", err)

		var faults, committed int
		for _, r := range s.Requests() {
			if r.Action == "create" && r.Fault != "" {
				faults++
				if r.Committed {
					committed++
				}
			}
		}
		if faults != 4 || committed != 2 {
			t.Errorf("audit: %d faulty creates of which %d committed, want 4 and 2", faults, committed)
		}
	})
}

func TestDelayAndAClientThatGoesAway(t *testing.T) {
	for _, late := range []bool{false, true} {
		bubble(t, flytest.Options{NoLimits: true}, func(t *testing.T, s *flytest.Server, c *flaps.Client) {
			must(t, "add fault", s.AddFaults(flytest.Fault{Action: "create", Delay: flytest.Delay(10 * time.Second), Late: late}))
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := c.Launch(ctx, "web", fly.LaunchMachineInput{Config: config()}); err == nil {
				t.Error("a launch outlived its deadline")
			}
			if n := len(s.Machines()); n != 0 {
				t.Errorf("late %v: %d machines before the delay has passed", late, n)
			}
			time.Sleep(10 * time.Second)
			if n := len(s.Machines()); (n == 1) != late {
				t.Errorf("late %v: %d machines in the end", late, n)
			}
			if r := s.Requests()[0]; r.Status != 0 || r.Committed != late {
				t.Errorf("late %v: audit got %+v", late, r)
			}
		})
	}
}

func TestRetriedPostMakesOneMachineByName(t *testing.T) {
	bubble(t, flytest.Options{NoLimits: true}, func(t *testing.T, s *flytest.Server, c *flaps.Client) {
		must(t, "add fault", s.AddFaults(flytest.Fault{Action: "create", Count: 1, Status: 502, Drop: "after"}))
		_, err := c.Launch(t.Context(), "web", fly.LaunchMachineInput{Name: "one", Config: config()})
		wantStatus(t, "launch that fly-go sends again", err, 409, "unique machine name violation")
		if n := len(s.Machines()); n != 1 {
			t.Errorf("%d machines, want 1", n)
		}
	})
}

func TestTokensAndUnknownRoutes(t *testing.T) {
	bubble(t, flytest.Options{NoLimits: true, Tokens: map[string]string{"web": "FlyV1 fm2_web", "api": "plain"}}, func(t *testing.T, s *flytest.Server, c *flaps.Client) {
		_, err := c.List(t.Context(), "web", "")
		wantStatus(t, "without a token", err, 401, "Authenticate: token validation error")
		_, err = newClient(t, s, s.Transport(), "nonsense").List(t.Context(), "web", "")
		wantStatus(t, "with a wrong token", err, 401, "Authenticate: token validation error")
		_, err = newClient(t, s, s.Transport(), "plain").List(t.Context(), "web", "")
		wantStatus(t, "with another app's token", err, 403, "unauthorized")
		_, err = newClient(t, s, s.Transport(), "FlyV1 fm2_web").List(t.Context(), "web", "")
		must(t, "with the token", err)
		for _, r := range []string{"GET /v1/nonsense", "PUT /v1/apps/web/machines", "GET /"} {
			method, path, _ := strings.Cut(r, " ")
			code, body, h := raw(t, s, method, path, "")
			if code != 404 || !strings.HasPrefix(body, "404 page not found") || h.Get("fly-request-id") == "" || strings.Contains(h.Get("Content-Type"), "json") {
				t.Errorf("%s: got %d %q %v", r, code, body, h)
			}
		}
		for _, r := range s.Requests() {
			if strings.Contains(r.By, "fm2_") || strings.Contains(r.By, "plain") {
				t.Errorf("audit shows a token: %+v", r)
			}
		}
	})
}

func TestListLagAndAffinity(t *testing.T) {
	bubble(t, flytest.Options{NoLimits: true, Timing: flytest.Timing{ListLag: 2 * time.Second}}, func(t *testing.T, s *flytest.Server, c *flaps.Client) {
		ctx := t.Context()
		reader := newClient(t, s, s.Transport(), "")
		states := func(c *flaps.Client) string {
			ms, err := c.List(ctx, "web", "")
			must(t, "list", err)
			var out []string
			for _, m := range ms {
				out = append(out, m.State)
			}
			return strings.Join(out, ",")
		}
		_, err := c.Launch(ctx, "web", fly.LaunchMachineInput{Config: config()})
		must(t, "launch", err)
		if mine, others := states(c), states(reader); mine != "created" || others != "" {
			t.Errorf("after a create: the creator sees %q, others %q", mine, others)
		}
		time.Sleep(time.Second)
		if mine, others := states(c), states(reader); mine != "started" || others != "" {
			t.Errorf("a second later: the creator sees %q, others %q", mine, others)
		}
		time.Sleep(2 * time.Second)
		if others := states(reader); others != "started" {
			t.Errorf("three seconds later: others see %q", others)
		}
	})
}

func TestMetadataPatchChecksTheVersionOnly(t *testing.T) {
	bubble(t, flytest.Options{NoLimits: true}, func(t *testing.T, s *flytest.Server, c *flaps.Client) {
		m := seed(t, s, "one")
		path := "/v1/apps/web/machines/" + m.ID + "/metadata"
		for i := range 2 { // a second write with the version of before the first succeeds: no compare-and-set
			body := fmt.Sprintf(`{"machine_version":%q,"metadata":{"epoch":"%d"}}`, m.InstanceID, i)
			if code, text, _ := raw(t, s, "PATCH", path, body); code != 204 {
				t.Errorf("patch %d: got %d %s, want 204", i, code, text)
			}
		}
		if code, _, _ := raw(t, s, "PATCH", path, `{"machine_version":"01ARZ3NDEKTSV4RRFFQ69G5FAV","metadata":{"epoch":"9"}}`); code != 412 {
			t.Errorf("patch with a stale version: got %d, want 412", code)
		}
		md, err := c.GetMetadata(t.Context(), "web", m.ID)
		must(t, "get metadata", err)
		if md["epoch"] != "1" || md["fly_process_group"] != "app" || md["fly_platform_version"] != "v2" {
			t.Errorf("metadata: got %v", md)
		}
		raw(t, s, "PUT", path, `{"metadata":{"only":"this","not":null}}`)
		md, err = c.GetMetadata(t.Context(), "web", m.ID)
		must(t, "get metadata", err)
		if len(md) != 1 || md["only"] != "this" {
			t.Errorf("metadata after put: got %v", md)
		}
	})
}

func TestUnreachableHost(t *testing.T) {
	bubble(t, flytest.Options{NoLimits: true}, func(t *testing.T, s *flytest.Server, c *flaps.Client) {
		m := seed(t, s, "one")
		must(t, "set host", s.SetHost(m.ID, fly.HostStatusUnreachable))
		got, err := c.Get(t.Context(), "web", m.ID)
		must(t, "get", err)
		if got.Config != nil || got.GetConfig() == nil || got.HostStatus != fly.HostStatusUnreachable || got.ProcessGroup() != "app" {
			t.Errorf("machine of an unreachable host: got %+v", got)
		}
		if code, _, _ := raw(t, s, "POST", "/v1/apps/web/machines/"+m.ID+"/stop", ""); code != 503 {
			t.Errorf("stop on an unreachable host: got %d, want 503", code)
		}
	})
}

func TestUsageCountsStartedTimeAndPeaks(t *testing.T) {
	bubble(t, flytest.Options{NoLimits: true}, func(t *testing.T, s *flytest.Server, c *flaps.Client) {
		a, b := seed(t, s, "a"), seed(t, s, "b")
		_, err := s.Seed(flytest.Spec{App: "web", Name: "pool", Config: *config()})
		must(t, "seed", err)
		time.Sleep(time.Minute)
		must(t, "stop", c.Stop(t.Context(), "web", fly.StopMachineInput{ID: a.ID}, ""))
		time.Sleep(time.Minute)
		u := s.Usage()["web"]
		if x := u.Machines[a.ID]; x < 60 || x > 61 {
			t.Errorf("machine a: got %vs, want 60s", x)
		}
		if x := u.Machines[b.ID]; x < 120 || x > 121 {
			t.Errorf("machine b: got %vs, want 120s", x)
		}
		if u.Counted["app"] != 1 || u.Peak["app"] != 2 {
			t.Errorf("counted: got %v, peak %v, want 1 and 2", u.Counted, u.Peak)
		}
		if code, body, _ := raw(t, s, "GET", "/_emulator/usage", ""); code != 200 || !strings.Contains(body, `"machine_seconds":18`) {
			t.Errorf("usage: got %d %s", code, body)
		}
	})
}

func TestInProcessAgentsAsMachines(t *testing.T) {
	var events []string
	l := &flytest.Memory{
		OnStart: func(b flytest.Boot) { events = append(events, "start "+b.Name+" "+b.Env["FLY_APP_NAME"]) },
		OnStop: func(b flytest.Boot, killed bool) {
			time.Sleep(time.Second) // an agent that takes its time
			events = append(events, fmt.Sprintf("stop %s %v", b.Name, killed))
		},
		OnFreeze: func(b flytest.Boot, frozen bool) {
			events = append(events, fmt.Sprintf("freeze %s %v", b.Name, frozen))
		},
	}
	bubble(t, flytest.Options{Launcher: l, NoLimits: true}, func(t *testing.T, s *flytest.Server, c *flaps.Client) {
		m := seed(t, s, "one")
		must(t, "suspend", c.Suspend(t.Context(), "web", m.ID, ""))
		must(t, "await", s.Await(t.Context(), m.ID, "suspended"))
		_, err := c.Start(t.Context(), "web", m.ID, "")
		must(t, "start", err)
		must(t, "await", s.Await(t.Context(), m.ID, "started"))
		must(t, "stop", c.Stop(t.Context(), "web", fly.StopMachineInput{ID: m.ID}, ""))
		if got := s.Machines()[0].State; got != "stopping" {
			t.Errorf("while the agent stops the machine is %s", got)
		}
		must(t, "await", s.Await(t.Context(), m.ID, "stopped"))
		time.Sleep(time.Second)
		_, err = c.Start(t.Context(), "web", m.ID, "")
		must(t, "start", err)
		must(t, "await", s.Await(t.Context(), m.ID, "started"))
		if code, body, _ := raw(t, s, "POST", "/_emulator/machines/"+m.ID+"/kill", ""); code != 200 {
			t.Errorf("kill: got %d %s", code, body)
		}
		must(t, "await", s.Await(t.Context(), m.ID, "stopped"))
		two := seed(t, s, "two")
		must(t, "exit", l.Exit(two.ID, 7))
		must(t, "await", s.Await(t.Context(), two.ID, "stopped"))
		got, err := c.Get(t.Context(), "web", two.ID)
		must(t, "get", err)
		if e := got.GetLatestEventOfType("exit"); e == nil || e.Request.ExitEvent.ExitCode != 7 || e.Request.ExitEvent.RequestedStop {
			t.Errorf("exit event: got %+v", e)
		}
	})
	want := "start one web, freeze one true, freeze one false, stop one false, start one web, stop one true, start two web, stop two false"
	if got := strings.Join(events, ", "); got != want {
		t.Errorf("hooks:\n got %s\nwant %s", got, want)
	}
}

func TestCloseRefusesAndEndsWaits(t *testing.T) {
	bubble(t, flytest.Options{NoLimits: true}, func(t *testing.T, s *flytest.Server, c *flaps.Client) {
		m := seed(t, s, "one")
		waited := make(chan error, 1)
		go func() { waited <- c.Wait(t.Context(), "web", m.ID, flaps.WithWaitStates("stopped")) }()
		synctest.Wait()
		must(t, "close", s.Close())
		if err := <-waited; err == nil {
			t.Error("a wait outlived the emulator")
		}
		if _, err := c.List(t.Context(), "web", ""); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("list after close: got %v, want connection refused", err)
		}
	})
}

func TestControlListsMachinesAndRequests(t *testing.T) {
	bubble(t, flytest.Options{NoLimits: true}, func(t *testing.T, s *flytest.Server, c *flaps.Client) {
		m, err := c.Launch(t.Context(), "web", fly.LaunchMachineInput{Name: "flymesh-web-1-7", Config: config("flymesh_op", "1-7")})
		must(t, "launch", err)
		_, body, _ := raw(t, s, "GET", "/_emulator/machines", "")
		var ms []flytest.MachineInfo
		must(t, "read machines", json.NewDecoder(bytes.NewBufferString(body)).Decode(&ms))
		if len(ms) != 1 || ms[0].ID != m.ID || ms[0].Op != "1-7" || ms[0].App != "web" || ms[0].Group != "app" || ms[0].Accounting != "none" {
			t.Errorf("machines: got %s", body)
		}
		_, body, _ = raw(t, s, "GET", "/_emulator/requests", "")
		var rs []flytest.Request
		must(t, "read requests", json.Unmarshal([]byte(body), &rs))
		if len(rs) != 1 || rs[0].Action != "create" || rs[0].Machine != m.ID || rs[0].Name != "flymesh-web-1-7" || rs[0].Status != 200 || !rs[0].Committed || rs[0].UserAgent != "flytest-test" {
			t.Errorf("requests: got %s", body)
		}
		if code, _, _ := raw(t, s, "POST", "/_emulator/machines/nope/kill", ""); code != 404 {
			t.Errorf("kill of no machine: got %d, want 404", code)
		}
	})
}
