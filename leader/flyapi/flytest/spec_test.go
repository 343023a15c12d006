package flytest_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	fly "github.com/superfly/fly-go"
	"github.com/superfly/fly-go/flaps"

	"flymesh/leader/flyapi/flytest"
	"flymesh/leader/flyapi/flytest/openapi"
)

// document is Fly's OpenAPI document, as docs.machines.dev has it (2026-08-20).
const document = "testdata/machines-openapi.json"

// judged makes every request of the test's emulator, and its answer, be
// compared with the document.
func judged(t *testing.T, o *flytest.Options) *openapi.Judge {
	t.Helper()
	d, err := openapi.Load(document)
	must(t, "load", err)
	j := openapi.NewJudge(d, openapi.KnownErrors())
	o.Watch = j.Watch
	t.Cleanup(func() {
		for _, p := range j.Problems() {
			t.Errorf("not as documented: %s", p)
		}
	})
	return j
}

// TestKnownErrorsAreNeeded: each line of the allow-list stands for traffic
// that really is so. One that nothing shows would hide a mistake.
func TestKnownErrorsAreNeeded(t *testing.T) {
	o := flytest.Options{NoLimits: true}
	j := judged(t, &o)
	s, c := serverAndClient(t, o)
	ctx := t.Context()
	_, err := c.CreateApp(ctx, flaps.CreateAppRequest{Name: "api", Org: "personal"})
	must(t, "create app", err)
	cfg := config("k", "v")
	stop := fly.MachineAutostopStop
	cfg.Services = []fly.MachineService{{Protocol: "tcp", InternalPort: 8080, Autostop: &stop}}
	m, err := c.Launch(ctx, "web", fly.LaunchMachineInput{Name: "one", Config: cfg})
	must(t, "launch", err)
	must(t, "start", s.Await(ctx, m.ID, "started"))
	_, err = c.List(ctx, "web", "metadata.k=v")
	must(t, "list", err)
	ttl := 5
	l, err := c.AcquireLease(ctx, "web", m.ID, &ttl)
	must(t, "lease", err)
	raw(t, s, "DELETE", "/v1/apps/web/machines/"+m.ID+"/lease", "")
	must(t, "release", c.ReleaseLease(ctx, "web", m.ID, l.Data.Nonce))
	raw(t, s, "PATCH", "/v1/apps/web/machines/"+m.ID+"/metadata", `{"metadata":{"k":null}}`)
	raw(t, s, "POST", "/v1/apps/web/machines/"+m.ID+"/exec", `{"command":["true"]}`)
	_, err = c.GetRegions(ctx)
	must(t, "regions", err)
	_, err = c.GetPlacements(ctx, &flaps.GetPlacementsRequest{})
	must(t, "placements", err)
	must(t, "restart", c.Restart(ctx, "web", fly.RestartMachineInput{ID: m.ID, ForceStop: true}, ""))
	must(t, "restarted", s.Await(ctx, m.ID, "started"))
	must(t, "kill", c.Kill(ctx, "web", m.ID))
	must(t, "killed", s.Await(ctx, m.ID, "stopped"))
	time.Sleep(60 * time.Millisecond) // until it may be started
	_, err = c.Start(ctx, "web", m.ID, "")
	must(t, "start", err)
	must(t, "stop", c.Stop(ctx, "web", fly.StopMachineInput{ID: m.ID}, ""))
	must(t, "host", s.SetHost(m.ID, fly.HostStatusUnreachable))
	_, err = c.Get(ctx, "web", m.ID)
	must(t, "get", err)
	must(t, "host", s.SetHost(m.ID, fly.HostStatusOk))
	must(t, "destroy", c.Destroy(ctx, "web", fly.RemoveMachineInput{ID: m.ID, Kill: true}, ""))
	_, err = c.Get(ctx, "web", "00000000000000")
	wantStatus(t, "missing machine", err, 404, "machine not found")
	if got := j.Unused(); len(got) > 0 {
		t.Errorf("known errors of the document that nothing shows: %q", got)
	}
	if j.Seen() < 15 {
		t.Errorf("only %d exchanges were checked", j.Seen())
	}
}

// TestJudgeFindsWhatIsWrong: an answer or request that the document does not
// allow is found, in each way in which it can be wrong.
func TestJudgeFindsWhatIsWrong(t *testing.T) {
	d, err := openapi.Load(document)
	must(t, "load", err)
	const machine = "/v1/apps/web/machines/0"
	ok := flytest.Exchange{Method: "GET", Path: machine, Action: "get", Status: 200, ContentType: "application/json", Body: []byte(`{"id":"0","host_status":"ok"}`)}
	for _, tc := range []struct {
		name   string
		change func(*flytest.Exchange)
		want   string
	}{
		{"nothing", func(*flytest.Exchange) {}, ""},
		{"a type", func(x *flytest.Exchange) { x.Body = []byte(`{"id":7}`) }, "200.id: is number, not string"},
		{"a type deep inside", func(x *flytest.Exchange) { x.Body = []byte(`{"config":{"env":{"A":1}}}`) }, "200.config.env.*: is number, not string"},
		{"an enum", func(x *flytest.Exchange) { x.Body = []byte(`{"host_status":"fine"}`) }, "200.host_status: is fine"},
		{"a misspelt field", func(x *flytest.Exchange) { x.Body = []byte(`{"privateip":"::1"}`) }, "200.privateip: is not documented"},
		{"no JSON", func(x *flytest.Exchange) { x.Body, x.ContentType = []byte("ok"), "text/plain" }, "not JSON"},
		{"no body", func(x *flytest.Exchange) { x.Body = nil }, "200: has no body"},
		{"a status", func(x *flytest.Exchange) { x.Status = 204 }, "204: is not a documented status"},
		{"a query parameter", func(x *flytest.Exchange) { x.Query = map[string][]string{"verbose": {"1"}} }, "query verbose: is not documented"},
		{"an answer of a fault", func(x *flytest.Exchange) { x.Body, x.Fault = []byte("broken"), true }, ""},
		{"a list", func(x *flytest.Exchange) { x.Path, x.Action = "/v1/apps/web/machines", "list" }, "200: is object, not array"},
		{"a body of a request", func(x *flytest.Exchange) {
			x.Method, x.Path, x.Action, x.Body = "POST", machine+"/stop", "stop", []byte("{}")
			x.RequestBody = []byte(`{"timeout":5}`)
		}, "request.timeout: is number, not string"},
		{"a path", func(x *flytest.Exchange) { x.Path, x.Action = machine+"/reboot", "reboot" }, "path: is not documented"},
		{"a missing field", func(x *flytest.Exchange) {
			x.Method, x.Path, x.Action, x.Body = "POST", "/v1/platform/placements", "placements", []byte("{}")
			x.RequestBody = []byte(`{}`)
		}, "request.org_slug: is missing"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x := ok
			tc.change(&x)
			j := openapi.NewJudge(d, openapi.KnownErrors())
			j.Watch(x)
			got := j.Problems()
			if tc.want == "" && len(got) > 0 || tc.want != "" && !slices.ContainsFunc(got, func(p openapi.Problem) bool { return strings.Contains(p.String(), tc.want) }) {
				t.Errorf("got %v, want %q", got, tc.want)
			}
		})
	}
}
