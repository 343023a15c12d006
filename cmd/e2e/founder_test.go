package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"flymesh/agent/api"
	"flymesh/cmd/agentctl/emulator"
	"flymesh/leader/flyapi/flytest"
)

// TestLateFounder: the machine that founds the first cluster stalls between
// its lease and its write. Its lease runs out, another founds; then the first
// one's write arrives after all, and it wakes.
func TestLateFounder(t *testing.T) {
	long(t)
	m := startMesh(t, config)
	const held = 45 * time.Second
	if err := m.Server().AddFaults(flytest.Fault{Method: "POST", Path: "^/v1/apps/e2e-cache/.*/metadata", Count: 1, Delay: flytest.Delay(held), Late: true}); err != nil {
		t.Fatal(err)
	}
	write := func(r flytest.Request) bool {
		return r.Method == "POST" && r.App == "e2e-cache" && strings.Contains(r.Path, "/metadata")
	}
	m.until("somebody is about to write the record", 30*time.Second, func() bool { return slices.ContainsFunc(m.Requests(), write) })
	at := time.Now()
	var founder emulator.Machine // the lowest ID of those that may vote goes first
	for _, x := range m.running() {
		if x.Service != "site" && (founder.ID == "" || x.ID < founder.ID) {
			founder = x
		}
	}
	if err := m.Server().Freeze(founder.ID); err != nil {
		t.Fatal(err)
	}
	m.until("another has founded", held-2*time.Second, func() bool {
		all, errs := ask(t.Context(), m.others(founder), 3*time.Second, status)
		return slices.ContainsFunc(all, func(s api.Status) bool { return s.Leader != nil && s.Leader.Machine != founder.ID }) && errs[0] == nil
	})
	second, took := m.record(), time.Since(at)
	m.until("the late write arrives", held+10*time.Second, func() bool {
		i := slices.IndexFunc(m.Requests(), write)
		return m.Requests()[i].Committed
	})
	late := m.record()
	if err := m.Server().Thaw(founder.ID); err != nil {
		t.Fatal(err)
	}
	if second.Founder.Machine == founder.ID || second.Epoch == 0 {
		t.Errorf("the second founder is %+v, the first was %s", second, founder.ID)
	}
	after := m.settle(120 * time.Second)
	table.add(row{scenario: "founder stalls, writes late", gap: m.watch.gap(at), from: late.Epoch, to: after.Epoch,
		note: fmt.Sprintf("another founded %s after %.0f s; the late write named %s; in the end %s", second.Cluster, took.Seconds(), late.Cluster, m.record().Cluster)})
}
