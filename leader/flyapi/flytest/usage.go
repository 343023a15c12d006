package flytest

import (
	"time"

	fly "github.com/superfly/fly-go"
)

// usage is what the machines of one app have cost. The fleet's lock guards it.
type usage struct {
	spent  map[string]time.Duration // started time by machine, without the running stretch
	counts map[string]int           // machines that a cap counts, now, by group
	peaks  map[string]int           // the most there ever were
}

// leave books the time of a state that ends.
func (u *usage) leave(m *machine, now time.Time) {
	if m.state != fly.MachineStateStarted {
		return
	}
	if u.spent == nil {
		u.spent = make(map[string]time.Duration)
	}
	u.spent[m.id] += now.Sub(m.since)
	m.since = now
}

// peak counts the machines after a change.
func (u *usage) peak(a *app, m *machine) {
	n := 0
	for _, x := range a.machines {
		if x.group == m.group && counts(x.state) {
			n++
		}
	}
	if u.counts == nil {
		u.counts, u.peaks = make(map[string]int), make(map[string]int)
	}
	u.counts[m.group] = n
	u.peaks[m.group] = max(u.peaks[m.group], n)
}

// Usage is the cost of one app: machine-seconds in state started.
type Usage struct {
	MachineSeconds float64            `json:"machine_seconds"`
	Machines       map[string]float64 `json:"machines"` // seconds by machine ID
	Counted        map[string]int     `json:"counted"`  // by group: machines that run, are about to, or still do
	Peak           map[string]int     `json:"peak"`     // the most of these at any instant
}

// Usage returns the cost of each app so far.
func (s *Server) Usage() map[string]Usage {
	f := s.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	out := make(map[string]Usage, len(f.apps))
	for name, a := range f.apps {
		u := Usage{Machines: make(map[string]float64), Counted: make(map[string]int), Peak: make(map[string]int)}
		for id, m := range a.machines {
			d := a.usage.spent[id]
			if m.state == fly.MachineStateStarted {
				d += now.Sub(m.since)
			}
			u.Machines[id] = d.Seconds()
			u.MachineSeconds += d.Seconds()
		}
		for g, n := range a.usage.counts {
			u.Counted[g] = n
		}
		for g, n := range a.usage.peaks {
			u.Peak[g] = n
		}
		out[name] = u
	}
	return out
}
