// Package host measures the machine that the agent runs on: CPU pressure,
// steal and memory.
//
// CPU pressure is what is used over what may be used, and 1 means all of it.
// What may be used is, in this order: a stated allowance, accounted over a
// process tree; the quotas of the cgroups that this process is in; the whole
// machine. A throttled CPU looks idle, so a share of time in which work was
// held back counts as pressure when it is greater: for the whole machine the
// steal (Fly books the throttling of shared CPUs there), for a quota the share
// of its periods that were throttled. Under a quota or an allowance the steal
// of the machine around it is reported and not counted.
package host

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"time"

	"github.com/shirou/gopsutil/v3/cpu"
	"github.com/shirou/gopsutil/v3/mem"

	"flymesh/probes"
	"flymesh/probes/report"
)

// AllowanceEnv names the variable that states the allowance in cores.
const AllowanceEnv = "FLYMESH_CPU_ALLOWANCE"

// Allowance returns the cores that the app may use: configured where it is
// positive, else the value of AllowanceEnv, else 0 for "not stated".
func Allowance(configured float64, env string) (float64, error) {
	if configured > 0 || env == "" {
		return max(configured, 0), nil
	}
	cores, err := strconv.ParseFloat(env, 64)
	if err != nil || !(cores > 0) || math.IsInf(cores, 0) {
		return 0, fmt.Errorf("read %s: %q is no positive number of cores", AllowanceEnv, env)
	}
	return cores, nil
}

// Options say what the machine may use.
type Options struct {
	Cores float64 // stated allowance; 0: not stated
	// Root is the process whose tree the stated allowance covers: itself and
	// all it started, what they reaped included. On a machine that is the
	// supervisor, so that the agent's own share counts as it does anywhere
	// else. 0: the parent of this process.
	Root int
}

// Host is the prober. It is used from one goroutine.
type Host struct {
	options Options
	tree    *tree
	groups  *groups

	last    time.Time
	machine cpu.TimesStat
	reading probes.Reading // newest
}

// shortest is the least time that a rate is taken over, two periods of a quota.
// A probe that was held up is followed by the next one at once; what was used
// between the two, in one burst, is no rate.
const shortest = 200 * time.Millisecond

// New returns the prober of this machine.
func New(o Options) *Host {
	if o.Root == 0 {
		o.Root = os.Getppid()
	}
	return &Host{options: o, tree: newTree("/proc"), groups: newGroups("/proc")}
}

var _ probes.Prober = (*Host)(nil)

// Name returns "host".
func (h *Host) Name() string { return "host" }

// Fields returns what a host probe measures.
func (h *Host) Fields() probes.Field { return probes.CPU | probes.Memory }

// Probe reads the counters. Rates are over the time since the last call, so
// the first call has none.
func (h *Host) Probe(ctx context.Context) (probes.Reading, error) {
	var m probes.Reading
	machine, err := cpu.TimesWithContext(ctx, false)
	if err == nil && len(machine) != 1 {
		err = errors.New("no line for all cpus")
	}
	if err != nil {
		return m, fmt.Errorf("read cpu times: %w", err)
	}
	now := time.Now()
	if now.Sub(h.last) < shortest {
		return h.reading, nil
	}
	wall := now.Sub(h.last).Seconds()
	first := h.last.IsZero()
	busy, steal := shares(h.machine, machine[0])
	h.last, h.machine = now, machine[0]

	pressure, err := h.pressure(wall, max(busy, steal))
	if err == nil && first {
		err = errFirst
	}
	if err != nil {
		m.Problems = append(m.Problems, "cpu: "+err.Error())
	} else {
		m.CPU = known(pressure)
	}
	if !first {
		m.Steal = known(steal)
	}

	m.Memory, err = h.memory(ctx)
	if err != nil {
		m.Problems = append(m.Problems, "memory: "+err.Error())
	}
	h.reading = m
	return m, nil
}

// pressure asks the source that applies; machine is the answer of the last.
func (h *Host) pressure(wall, machine float64) (float64, error) {
	if h.options.Cores > 0 {
		used, err := h.tree.used(h.tree.descendants(h.options.Root))
		return used / wall / h.options.Cores, err
	}
	quota, ok, err := h.groups.pressure(wall)
	if err != nil || ok {
		return quota, err
	}
	return machine, nil
}

func (h *Host) memory(ctx context.Context) (report.Value, error) {
	v, err := mem.VirtualMemoryWithContext(ctx)
	if err != nil {
		return report.Value{}, fmt.Errorf("read memory: %w", err)
	}
	if used, ok := h.groups.memory(float64(v.Total)); ok {
		return known(used), nil
	}
	return known(1 - float64(v.Available)/float64(v.Total)), nil
}

// shares returns what part of the time between two readings all CPUs together
// worked, and what part the hypervisor withheld.
func shares(a, b cpu.TimesStat) (busy, steal float64) {
	idle := b.Idle - a.Idle + b.Iowait - a.Iowait
	steal = b.Steal - a.Steal
	busy = b.User - a.User + b.System - a.System + b.Nice - a.Nice + b.Irq - a.Irq + b.Softirq - a.Softirq
	total := idle + steal + busy
	return busy / total, steal / total
}

// known returns x as a value, absent where the counters gave no number.
func known(x float64) report.Value {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return report.Value{}
	}
	return report.Of(max(x, 0))
}
