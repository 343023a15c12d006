package emulator

import (
	"runtime"

	fly "github.com/superfly/fly-go"

	"flymesh/agent/config"
)

// What machines may use of this computer's cores.
const (
	share  = 0.75 // of all cores, for all machines at their caps; the rest is for load, emulator and noise
	single = 0.15 // cores of a machine whose service does not grow
	most   = 0.25 // cores of a machine whose service does: real load for it must stay cheap to make
	least  = 0.05
)

// sizes is how many cores a machine of each service may use, so that all
// machines together fit this computer even when every service is at its cap:
// a machine that cannot have what it is allowed looks idle while it is slow.
type sizes struct {
	cores map[string]float64 // by service
}

func sizesOf(c *config.Config) sizes { return sizesFor(c, runtime.NumCPU()) }

func sizesFor(c *config.Config, cpus int) sizes {
	s := sizes{cores: map[string]float64{}}
	left, growing := share*float64(cpus), 0
	for _, x := range c.Services {
		if x.Policy.Max > x.Policy.Baseline {
			growing += x.Policy.Max
		} else {
			left -= single * float64(x.Policy.Max)
		}
	}
	for _, x := range c.Services {
		s.cores[x.Name] = single
		if x.Policy.Max > x.Policy.Baseline {
			s.cores[x.Name] = min(most, max(least, left/float64(growing)))
		}
	}
	return s
}

// guest is the size that the API shows; the allowance is what holds.
func (s sizes) guest() *fly.MachineGuest {
	return &fly.MachineGuest{CPUKind: "shared", CPUs: 1, MemoryMB: 256}
}
