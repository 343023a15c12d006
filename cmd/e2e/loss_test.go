package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"flymesh/agent/api"
	"flymesh/cmd/agentctl/emulator"
	"flymesh/leader/flyapi/flytest"
)

// TestLoseMajority: the mesh halves of two of three voters die at once. Their
// machines run on, with new boots: that is the proof by which the next epoch
// may be founded.
func TestLoseMajority(t *testing.T) {
	long(t)
	m := newMesh(t, config)
	before := m.settle(10 * time.Second)
	direct := load(t, m.direct()...)
	at := time.Now()
	var killed []emulator.Machine
	for _, x := range m.running() {
		if x.Service != "site" && len(killed) < 2 {
			killed = append(killed, x)
		}
	}
	for _, x := range killed {
		m.kill(x)
	}
	after := m.settle(90 * time.Second)
	asked, failed, causes := direct()
	if failed > 0 {
		t.Errorf("%d of %d requests failed: %v", failed, asked, causes)
	}
	table.add(row{scenario: "kill -9 two of three voters", gap: m.watch.gap(at), from: before.Epoch, to: after.Epoch, asked: asked, failed: failed})
}

// TestLoseMachines: two of three voters' machines are ended by a host, and the
// restart policy starts them again.
func TestLoseMachines(t *testing.T) {
	long(t)
	m := newMesh(t, config)
	before := m.settle(10 * time.Second)
	at, n := time.Now(), 0
	for _, x := range m.running() {
		if x.Service != "site" && n < 2 {
			n++
			if err := m.Server().Kill(x.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	after := m.settle(90 * time.Second)
	table.add(row{scenario: "end two of three voters' machines", gap: m.watch.gap(at), from: before.Epoch, to: after.Epoch})
}

// TestFreezeLeader: the leader stands still for 5 s while something is to be
// done, and goes on as if nothing had been.
func TestFreezeLeader(t *testing.T) {
	long(t)
	m := newMesh(t, config)
	before := m.settle(10 * time.Second)
	x, _ := m.pick("leader", before.Leader.Machine)
	other := m.others(x)[0]
	history := m.events()
	two := 2
	if _, err := client(other).Scale(t.Context(), api.ScaleRequest{Service: "site", Target: &two, Reason: "e2e", By: "e2e"}); err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	pid := m.procs(x).mesh
	m.signal(pid, syscall.SIGSTOP)
	time.Sleep(5 * time.Second)
	m.signal(pid, syscall.SIGCONT)
	after := m.settleWith(60*time.Second, func(s api.Status) string { return sized(s, "site", 2) })
	m.mustKeep(history)
	if after.Term == before.Term {
		t.Errorf("term %d is still the same", after.Term)
	}
	m.actedOnce("e2e-site", 1)
	table.add(row{scenario: "freeze the leader for 5 s", gap: m.watch.gap(at), from: before.Epoch, to: after.Epoch, note: "+1 on the way: " + m.acts("e2e-site")})
}

// sized says what is missing until a service has so many started machines.
func sized(s api.Status, service string, want int) string {
	for _, x := range s.Services {
		if x.Name == service && x.Started != nil && *x.Started == want {
			return ""
		}
	}
	return fmt.Sprintf("%s has not %d machines", service, want)
}

// settleWith waits for a settled mesh of which also says nothing is missing.
func (m *mesh) settleWith(limit time.Duration, also func(api.Status) string) api.Status {
	m.t.Helper()
	missing := ""
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(250 * time.Millisecond) {
		s, why := m.settled()
		if why == "" {
			why = also(s)
		}
		if why == "" {
			return s
		}
		missing = why
	}
	m.t.Fatalf("the mesh has not settled after %s: %s", limit, missing)
	return api.Status{}
}

// changes are the actions that make or end machines.
var changes = []string{"create", "start", "stop", "suspend", "destroy", "update", "restart"}

// actions are the mesh's own changes to an app that were carried out.
func (m *mesh) actions(app string) (out []flytest.Request) {
	for _, r := range m.Requests() {
		if r.App == app && r.Committed && strings.HasPrefix(r.By, "token-") {
			for _, c := range changes {
				if r.Action == c {
					out = append(out, r)
				}
			}
		}
	}
	return out
}

func (m *mesh) acts(app string) string {
	var out []string
	for _, r := range m.actions(app) {
		out = append(out, r.Action)
	}
	return strings.Join(out, ", ")
}

// actedOnce fails unless the mesh has changed an app exactly so often.
func (m *mesh) actedOnce(app string, want int) {
	m.t.Helper()
	if n := len(m.actions(app)); n != want {
		m.t.Errorf("%d changes of %s were carried out, want %d: %s", n, app, want, m.acts(app))
	}
}
