package e2e

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flymesh/agent/api"
	"flymesh/leader"
	"flymesh/leader/flyapi/flytest"
)

// TestFenceBlocked: the holder's machine is frozen and cannot be stopped. Its
// fenced lock is not granted, an alert says why, and a person frees it; a lock
// by expiry comes back by itself.
func TestFenceBlocked(t *testing.T) {
	long(t)
	m := newMesh(t, config)
	s := m.settle(30 * time.Second)
	_, holder, other := m.three(s, 0)
	dir := t.TempDir()
	hard, soft := filepath.Join(dir, "hard"), filepath.Join(dir, "soft")
	const work = 3 * time.Minute
	m.lock(holder, "hard", time.Minute, beats(hard, work))
	m.lock(holder, "soft", time.Minute, beats(soft, work), "--policy", "expiry")
	m.until("both locks are held", time.Minute, func() bool { return worked(t, hard) == 1 && worked(t, soft) == 1 })
	if err := m.Server().AddFaults(flytest.Fault{Action: "stop", Status: 503, Body: `{"error":"the machines API is down"}`}); err != nil {
		t.Fatal(err)
	}
	if err := m.Server().Freeze(holder.ID); err != nil {
		t.Fatal(err)
	}
	frozen := time.Now()

	_, endSoft := m.lock(other, "soft", time.Minute, beats(soft, time.Second), "--policy", "expiry")
	out, code := m.agentctl(other, "lock", "hard", "--wait", "50s", "--", "true")
	if code != 75 || !strings.Contains(out, "cannot be stopped") || !strings.Contains(out, holder.ID) {
		t.Errorf("agentctl lock hard = %d, %q; want 75 and why", code, out)
	}
	t.Logf("agentctl lock hard --wait 50s: exit code %d: %s", code, out)
	if code := endSoft(); code != 0 {
		t.Errorf("the lock by expiry was not obtained: %d", code)
	}
	late := time.Unix(0, oracle(t, soft)[1].start).Sub(frozen)
	longest := leader.LockLease + leader.LockMargin + leader.LockGrace + leader.LockDelay
	if late < longest-leader.LockRenew {
		t.Errorf("the lock by expiry was granted %s after the freeze", late)
	}
	t.Logf("the lock by expiry was granted %s after the freeze", late.Round(100*time.Millisecond))
	for _, args := range [][]string{{"alerts"}, {"locks"}, {"events"}} {
		out, _ := m.agentctl(other, args...)
		if !strings.Contains(out, "hard") || !strings.Contains(out, "cannot be stopped") {
			t.Errorf("agentctl %s does not say why:\n%s", args[0], out)
		}
		t.Logf("agentctl %s\n%s", args[0], grepped(out, "hard"))
	}
	if n := worked(t, hard); n != 1 {
		t.Fatalf("%d have worked under the fenced lock", n)
	}

	out, code = m.agentctl(other, "unlock", "hard", "--force", "--reason", "seen dead in the console")
	t.Logf("agentctl unlock hard --force: exit code %d: %s", code, out)
	if code != 0 {
		t.Errorf("unlock = %d", code)
	}
	if out, code := m.agentctl(other, "lock", "hard", "--wait", "10s", "--", "true"); code != 0 {
		t.Errorf("agentctl lock after unlock = %d, %q", code, out)
	}
	m.until("the alert is over", 20*time.Second, func() bool {
		out, _ := m.agentctl(other, "alerts", "--json")
		var a api.Alerts
		if err := json.Unmarshal([]byte(out), &a); err != nil {
			return false
		}
		for _, x := range a.Alerts {
			if x.Rule == "fence_blocked" && x.Phase != "resolved" {
				return false
			}
		}
		return true
	})
	m.Server().ClearFaults()
}

// grepped are the lines that hold a word.
func grepped(out, word string) string {
	var keep []string
	for l := range strings.Lines(out) {
		if strings.Contains(l, word) {
			keep = append(keep, l)
		}
	}
	return strings.Join(keep, "")
}
