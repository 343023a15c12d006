package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"flymesh/agent/api"
	"flymesh/leader/flyapi/flytest"
)

// down makes every call of the mesh fail.
var down = flytest.Fault{Status: 500}

// TestOutageInRecovery: the API, and the record with it, is away for 20 s
// while the mesh would recover.
func TestOutageInRecovery(t *testing.T) {
	long(t)
	m := newMesh(t, config)
	before := m.settle(10 * time.Second)
	at, n := time.Now(), 0
	if err := m.Server().AddFaults(down); err != nil {
		t.Fatal(err)
	}
	for _, x := range m.running() {
		if x.Service != "site" && n < 2 {
			n++
			m.kill(x)
		}
	}
	time.Sleep(20 * time.Second)
	m.Server().ClearFaults()
	after := m.settle(90 * time.Second)
	table.add(row{scenario: "API away for 20 s in a recovery", gap: m.watch.gap(at), from: before.Epoch, to: after.Epoch})
}

// TestOutage: without the API the mesh goes on, says so, and does nothing.
func TestOutage(t *testing.T) {
	long(t)
	m := newMesh(t, config)
	before := m.settle(10 * time.Second)
	history := m.events()
	pids := map[string]processes{}
	for _, x := range m.running() {
		pids[x.ID] = m.procs(x)
	}
	if err := m.Server().AddFaults(down); err != nil {
		t.Fatal(err)
	}
	at, two := time.Now(), 2
	if _, err := client(m.running()[0]).Scale(t.Context(), api.ScaleRequest{Service: "site", Target: &two, Reason: "e2e", By: "e2e"}); err != nil {
		t.Fatal(err)
	}
	m.until("status says that the API is away", 20*time.Second, func() bool {
		all, errs := ask(t.Context(), m.running(), 2*time.Second, status)
		for i, s := range all {
			if errs[i] != nil || s.Leader == nil || !strings.Contains(fmt.Sprint(s.Warnings), "API") {
				return false
			}
		}
		return true
	})
	time.Sleep(5 * time.Second)
	m.actedOnce("e2e-site", 0)
	for _, x := range m.running() {
		if now := m.procs(x); now != pids[x.ID] {
			t.Errorf("processes of %s were %+v, are %+v", x.Service, pids[x.ID], now)
		}
	}
	gap := m.watch.gap(at)
	m.Server().ClearFaults()
	after := m.settleWith(60*time.Second, func(s api.Status) string { return sized(s, "site", 2) })
	m.mustKeep(history)
	m.actedOnce("e2e-site", 1)
	table.add(row{scenario: "API away while a scaling is due", gap: gap, from: before.Epoch, to: after.Epoch, note: "held; afterwards: " + m.acts("e2e-site")})
}
