package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"flymesh/cmd/agentctl/emulator"
)

// TestKillAgents: kill -9 of any one agent's mesh half, leader, voter or
// neither, and then of a supervisor.
func TestKillAgents(t *testing.T) {
	m := newMesh(t, config)
	defer func() { m.t = t }()
	for _, who := range []string{"leader", "voter", "agent"} {
		t.Run(who, func(t *testing.T) {
			if who == "voter" {
				long(t)
			}
			m.t = t
			before := m.settle(10 * time.Second)
			x, ok := m.pick(who, before.Leader.Machine)
			if !ok {
				t.Fatalf("no machine is %s", who)
			}
			history := m.events()
			pid := m.procs(x).mesh
			direct, routed := load(t, m.direct()...), load(t, m.routed()...)
			time.Sleep(300 * time.Millisecond) // of traffic before
			at := time.Now()
			m.kill(x)
			m.until("the mesh half is another", 5*time.Second, func() bool { p := m.procs(x).mesh; return p != 0 && p != pid })
			after := m.settle(30 * time.Second)
			m.mustKeep(history)
			asked, failed, causes := direct()
			r := row{scenario: "kill -9 mesh half of " + who, gap: m.watch.gap(at), from: before.Epoch, to: after.Epoch, asked: asked, failed: failed}
			if failed > 0 {
				t.Errorf("%d of %d requests failed: %v", failed, asked, causes)
			}
			asked, failed, causes = routed()
			r.note = fmt.Sprintf("through the proxy %d of %d failed %v", failed, asked, causes)
			if after.Epoch != before.Epoch {
				t.Errorf("epoch %d became %d", before.Epoch, after.Epoch)
			}
			if who == "leader" && after.Leader.Machine == x.ID && after.Term == before.Term {
				t.Error("the killed leader still leads")
			}
			table.add(r)
		})
	}
	t.Run("supervisor", func(t *testing.T) {
		long(t)
		m.t = t
		before := m.settle(10 * time.Second)
		x, _ := m.pick("agent", before.Leader.Machine)
		p := m.procs(x)
		direct := load(t, m.direct()...)
		at := time.Now()
		m.signal(p.supervisor, syscall.SIGKILL)
		after := m.settle(20 * time.Second)
		if now := m.procs(x); now.mesh != p.mesh || now.supervisor != 0 {
			t.Errorf("processes were %+v, are %+v", p, now)
		}
		// Without a supervisor nobody starts the mesh half again: status says so.
		m.signal(p.mesh, syscall.SIGKILL)
		m.until("status names the silent machine", 15*time.Second, func() bool {
			all, errs := ask(t.Context(), m.others(x), 2*time.Second, status)
			for i, s := range all {
				if errs[i] != nil || !strings.Contains(fmt.Sprint(s.Warnings), x.ID) {
					return false
				}
			}
			return true
		})
		asked, failed, causes := direct()
		if failed > 0 {
			t.Errorf("%d of %d requests failed: %v", failed, asked, causes)
		}
		table.add(row{scenario: "kill -9 supervisor, then its mesh half", gap: m.watch.gap(at), from: before.Epoch, to: after.Epoch, asked: asked, failed: failed})
		if err := m.Server().Kill(x.ID); err != nil {
			t.Fatal(err)
		}
		m.settle(30 * time.Second) // the restart policy starts the machine again
	})
}

// pick returns a machine by its part: leader, voter (but not leader) or agent.
func (m *mesh) pick(who, leader string) (emulator.Machine, bool) {
	for _, x := range m.running() {
		votes := x.Service != "site"
		switch {
		case who == "leader" && x.ID == leader, who == "voter" && votes && x.ID != leader, who == "agent" && !votes:
			return x, true
		}
	}
	return emulator.Machine{}, false
}

// others are the running machines but one.
func (m *mesh) others(x emulator.Machine) (out []emulator.Machine) {
	for _, y := range m.running() {
		if y.ID != x.ID {
			out = append(out, y)
		}
	}
	return out
}
