package e2e

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	fly "github.com/superfly/fly-go"

	"flymesh/agent/api"
	"flymesh/cmd/agentctl/emulator"
	"flymesh/leader"
	"flymesh/leader/flyapi/flytest"
	"flymesh/raftstore/state"
)

// tickFault is something that happens about a tick.
type tickFault struct {
	name string
	at   time.Duration // from the tick
	do   func(m *mesh, primary, leader emulator.Machine)
	runs bool           // the tick must run once; else at most once
	ends state.RunState // what the record says of a run; empty: the record may be lost with all state
}

const tickWork = 6 * time.Second

var tickFaults = []tickFault{
	{"nothing", 0, func(*mesh, emulator.Machine, emulator.Machine) {}, true, state.RunDone},
	{"an election at the tick", -500 * time.Millisecond, func(m *mesh, _, leader emulator.Machine) { m.kill(leader) }, true, state.RunDone},
	{"kill -9 the agent that runs it", 3 * time.Second, func(m *mesh, primary, _ emulator.Machine) { m.kill(primary) }, true, state.RunLost},
	{"kill -9 leader and the agent that runs it", 3 * time.Second, func(m *mesh, primary, leader emulator.Machine) {
		m.kill(leader)
		if primary.ID != leader.ID {
			m.kill(primary)
		}
	}, true, ""}, // two of three voters: the history is lost with them
	{"end the machine that runs it", 3 * time.Second, func(m *mesh, primary, _ emulator.Machine) { _ = m.Server().Kill(primary.ID) }, true, state.RunLost},
	{"freeze the agent that runs it for three leases", 3 * time.Second, func(m *mesh, primary, _ emulator.Machine) {
		thaw := freeze(m.procs(primary).mesh)
		time.Sleep(frozenFor)
		thaw()
	}, true, state.RunDone},
	{"a deploy at the tick", -2 * time.Second, func(m *mesh, primary, _ emulator.Machine) {
		ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
		defer cancel()
		if err := m.Server().Deploy(ctx, primary.App, flytest.Deploy{Strategy: "rolling", Timeout: time.Minute, Config: func(c fly.MachineConfig) fly.MachineConfig {
			c.Image += "-next"
			return c
		}}); err != nil {
			m.t.Error(err)
		}
	}, true, state.RunDone},
	{"kill -9 every agent before the tick", -time.Second, killAgents, true, state.RunDone},
	{"kill -9 every agent after the tick", 1200 * time.Millisecond, killAgents, false, ""},
	{"an outage of 20 s over the tick, all state lost", -14 * time.Second, func(m *mesh, _, _ emulator.Machine) {
		var keepers []int
		for _, x := range m.running() {
			p := m.procs(x)
			keepers = append(keepers, p.supervisor)
			freeze(p.supervisor, p.mesh)
		}
		time.Sleep(20 * time.Second)
		killAgents(m, emulator.Machine{}, emulator.Machine{})
		for _, p := range keepers {
			m.signal(p, syscall.SIGCONT)
		}
	}, true, state.RunDone},
	{"every machine ends at the tick", -time.Second, func(m *mesh, _, _ emulator.Machine) {
		for _, x := range m.running() {
			_ = m.Server().Kill(x.ID)
		}
	}, true, state.RunDone},
}

func killAgents(m *mesh, _, _ emulator.Machine) {
	for _, x := range m.running() {
		m.kill(x)
	}
}

// TestTickOracle has a job due each minute while agents, leaders, machines and
// all state are lost about its tick. No tick begins twice, no two runs overlap,
// and each record has its scheduled time.
func TestTickOracle(t *testing.T) {
	long(t)
	dir, err := os.MkdirTemp("", "tick-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	file := filepath.Join(dir, "oracle")
	m := newMesh(t, config+fmt.Sprintf(`
[job.Tick]
service = "cache"
cron = "* * * * *"
command = ["sh", "-c", %q]
timeout = "30s"
misfire = "50s"
`, beats(file, tickWork)[2]))
	told := map[time.Time]state.Run{} // what the record has said of a tick
	faults := 0
	for _, f := range tickFaults {
		t.Run(f.name, func(t *testing.T) {
			m.t = t
			s := m.settle(90 * time.Second)
			m.until("no run is under way", time.Minute, func() bool { j, ok := m.job(); return ok && j.Running == nil && !j.Last.IsZero() })
			tick := time.Now().Add(17 * time.Second).Truncate(time.Minute).Add(time.Minute)
			time.Sleep(time.Until(tick) - 16*time.Second)
			if next, why := m.settled(); why == "" {
				s = next // a leader may have come meanwhile
			}
			j, _ := m.job()
			primary, lead := m.byID(m.primaryOf("cache")), m.byID(s.Leader.Machine)
			time.Sleep(time.Until(tick.Add(f.at)))
			f.do(m, primary, lead)
			run := "Tick@" + tick.UTC().Format(time.RFC3339)
			m.until("the tick is past", 55*time.Second, func() bool {
				if j, _ = m.job(); j.Running != nil || j.Last.Before(tick) {
					return false
				}
				for _, r := range j.Runs {
					if r.State != state.RunReturned {
						told[r.Tick] = r
					}
				}
				return told[tick.UTC()].ID != "" || f.ends == ""
			})
			starts := 0
			all := oracle(t, file)
			for _, v := range all {
				if v.run == run {
					starts++
				}
			}
			if starts > 1 || f.runs && starts != 1 {
				t.Errorf("tick %s began %d times", tick, starts)
			}
			if wrong := broken(all); len(wrong) > 0 {
				t.Error(strings.Join(wrong, "\n"))
			}
			if r := told[tick.UTC()]; f.ends != "" && (r.State != f.ends || r.ID != run) {
				t.Errorf("the record of tick %s is %+v, want %s", tick, r, f.ends)
			} else {
				t.Logf("tick %s: %s, began %s late: %s", tick.Format(time.TimeOnly), cmp.Or(string(r.State), "not in the record"), r.Started.Sub(tick).Round(100*time.Millisecond), r.Detail)
			}
			faults++
		})
	}
	m.t = t
	m.settle(90 * time.Second)
	out, code := m.agentctl(m.running()[0], "job", "history", "Tick")
	t.Logf("agentctl job history Tick (exit code %d)\n%s", code, out)
	all := oracle(t, file)
	t.Logf("%d faults, %d starts, %d breaches", faults, len(all), len(broken(all)))
	table.add(row{scenario: "jobs", to: m.record().Epoch, note: fmt.Sprintf("%d faults about a tick, %d starts, %d breaches", faults, len(all), len(broken(all)))})
}

// job is what the leader knows of the one job.
func (m *mesh) job() (leader.JobView, bool) {
	all, errs := ask(m.t.Context(), m.running(), 3*time.Second, func(ctx context.Context, c *api.Client) ([]leader.JobView, error) { return c.Jobs(ctx) })
	for i := range all {
		if errs[i] == nil && len(all[i]) == 1 {
			return all[i][0], true
		}
	}
	return leader.JobView{}, false
}

func (m *mesh) primaryOf(service string) string {
	m.t.Helper()
	id := ""
	m.until("service "+service+" has a primary", 20*time.Second, func() bool {
		all, errs := ask(m.t.Context(), m.running(), 3*time.Second, status)
		for i, s := range all {
			if errs[i] != nil {
				continue
			}
			for _, x := range s.Machines {
				if x.Service == service && x.Pinned {
					id = x.ID
				}
			}
		}
		return id != ""
	})
	return id
}

func (m *mesh) byID(id string) emulator.Machine {
	m.t.Helper()
	ms := m.running()
	i := slices.IndexFunc(ms, func(x emulator.Machine) bool { return x.ID == id })
	if i < 0 {
		m.t.Fatalf("machine %s does not run", id)
	}
	return ms[i]
}
