package e2e

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"flymesh/agent/api"
	"flymesh/cmd/agentctl/emulator"
	"flymesh/leader"
)

// lockFault is something that happens to a holder while another waits.
type lockFault struct {
	name string
	long bool          // with FLYMESH_E2E alone
	work time.Duration // of the first holder
	exit []int         // what its wrapper may end with
	do   func(m *mesh, holder, leader emulator.Machine, wrapper int)
}

// Exit codes of a wrapper: of one that was killed, and that has lost the lock.
const (
	killed = -1
	lost   = 70
)

var frozenFor = 3 * leader.LockLease

var lockFaults = []lockFault{
	{"kill -9 the holder", true, 3 * time.Second, []int{killed}, func(m *mesh, _, _ emulator.Machine, wrapper int) {
		m.signal(wrapper, syscall.SIGKILL)
	}},
	{"kill -9 the leader", true, 8 * time.Second, []int{0}, func(m *mesh, _, leader emulator.Machine, _ int) { m.kill(leader) }},
	{"kill -9 leader and holder", false, 3 * time.Second, []int{killed}, func(m *mesh, _, leader emulator.Machine, wrapper int) {
		m.kill(leader)
		m.signal(wrapper, syscall.SIGKILL)
	}},
	{"kill -9 the holder's agent", true, 8 * time.Second, []int{0}, func(m *mesh, holder, _ emulator.Machine, _ int) { m.kill(holder) }},
	{"kill -9 leader, holder and its agent", true, 3 * time.Second, []int{killed}, func(m *mesh, holder, leader emulator.Machine, wrapper int) {
		m.kill(leader)
		m.kill(holder)
		m.signal(wrapper, syscall.SIGKILL)
	}},
	{"kill -9 every agent", true, 8 * time.Second, []int{0}, func(m *mesh, _, _ emulator.Machine, _ int) {
		for _, x := range m.running() {
			m.kill(x)
		}
	}},
	{"freeze the holder for three leases", true, 60 * time.Second, []int{killed, lost}, func(_ *mesh, _, _ emulator.Machine, wrapper int) {
		thaw := freeze(children(wrapper)...)
		time.Sleep(frozenFor)
		thaw()
	}},
	{"end the holder's machine", true, 60 * time.Second, []int{killed}, func(m *mesh, holder, _ emulator.Machine, _ int) {
		if err := m.Server().Kill(holder.ID); err != nil {
			m.t.Error(err)
		}
	}},
	{"freeze the holder's machine for three leases", true, 60 * time.Second, []int{killed, lost}, func(m *mesh, holder, _ emulator.Machine, _ int) {
		if err := m.Server().Freeze(holder.ID); err != nil {
			m.t.Error(err)
		}
		time.Sleep(frozenFor)
		_ = m.Server().Thaw(holder.ID) // if it has not been stopped
		m.restored(holder.Service)
	}},
}

// restored waits until the mesh has started what it has stopped, or another.
func (m *mesh) restored(service string) {
	m.t.Helper()
	m.until("service "+service+" has its machine", 90*time.Second, func() bool { return len(m.of(service)) == 1 })
}

// TestLockOracle has one lock held on two machines in turn while wrappers,
// agents, leaders and machines are killed and frozen. Each fault comes while
// the first holder works and the second waits.
func TestLockOracle(t *testing.T) {
	m := newMesh(t, config)
	file := filepath.Join(t.TempDir(), "oracle")
	faults := 0
	for i, f := range lockFaults {
		t.Run(f.name, func(t *testing.T) {
			if f.long {
				long(t)
			}
			m.t = t
			s := m.settle(90 * time.Second)
			lead, first, second := m.three(s, i)
			before := worked(t, file)
			pid, endFirst := m.lock(first, "work", time.Minute, beats(file, f.work))
			m.until("the first holder works", time.Minute, func() bool { return worked(t, file) > before })
			_, endSecond := m.lock(second, "work", 2*time.Minute, beats(file, time.Second))
			time.Sleep(time.Second)
			f.do(m, first, lead, pid)
			if code := endFirst(); !slices.Contains(f.exit, code) {
				t.Errorf("the first holder ended with %d, want one of %d", code, f.exit)
			}
			if code := endSecond(); code != 0 {
				t.Errorf("the second holder ended with %d", code)
			}
			all := oracle(t, file)
			if wrong := broken(all); len(wrong) > 0 {
				t.Error(strings.Join(wrong, "\n"))
			}
			if n := len(all) - before; n != 2 {
				t.Errorf("%d processes worked, want 2", n)
			}
			faults++
		})
	}
	m.t = t
	all := oracle(t, file)
	t.Logf("%d faults, %d holds of one lock, %d breaches", faults, len(all), len(broken(all)))
	table.add(row{scenario: "locks", from: m.record().Epoch, to: m.record().Epoch, note: fmt.Sprintf("%d faults, %d holds of one lock, %d breaches", faults, len(all), len(broken(all)))})
}

// three are the leader's machine and two others, different ones in each round.
func (m *mesh) three(s api.Status, round int) (lead, first, second emulator.Machine) {
	ms := m.running()
	slices.SortFunc(ms, func(a, b emulator.Machine) int { return cmp.Compare(a.ID, b.ID) })
	i := slices.IndexFunc(ms, func(x emulator.Machine) bool { return x.ID == s.Leader.Machine })
	lead = ms[i]
	ms = slices.Delete(ms, i, i+1)
	return lead, ms[round%len(ms)], ms[(round+1)%len(ms)]
}
