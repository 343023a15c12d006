package window

import (
	"cmp"
	"slices"
	"time"

	"flymesh/probes/report"
)

// Tick closes one Sample per service at now and drops what is older than
// Config.Keep. It is called once per report period; a call less than half a
// period after the one before does nothing, so two callers do no harm.
func (w *Window) Tick(now time.Time) {
	if since := now.Sub(w.ticked); since >= 0 && since < w.cfg.Every/2 {
		return
	}
	w.ticked = now
	w.forget(now)
	groups := make(map[string][]*machine, len(w.services))
	for _, m := range w.machines {
		groups[m.service] = append(groups[m.service], m)
	}
	for name, s := range w.services {
		group := groups[name]
		slices.SortFunc(group, func(a, b *machine) int { return cmp.Compare(a.id, b.id) })
		// Views that were handed out share the array: extend it, never write below len.
		s.series = append(s.series, w.sample(now, name, group))
	}
}

// forget drops samples and machines that are too old, samples from a future
// that a step of the clock took back, and services of which nothing is left.
func (w *Window) forget(now time.Time) {
	for id, m := range w.machines {
		if now.Sub(m.stirred()) > w.cfg.Keep && !w.expected(now, m) {
			delete(w.machines, id)
		}
	}
	live := make(map[string]bool, len(w.services))
	for _, m := range w.machines {
		live[m.service] = true
	}
	for name, s := range w.services {
		for len(s.series) > 0 && now.Sub(s.series[0].At) > w.cfg.Keep {
			s.series = s.series[1:]
		}
		for n := len(s.series); n > 0 && s.series[n-1].At.After(now); n-- {
			s.series = slices.Clip(s.series[:n-1])
		}
		if len(s.series) == 0 && !live[name] && now.Sub(s.listed) > w.cfg.Keep {
			delete(w.services, name)
		}
	}
}

// sample closes one service's sample over its machines, sorted by ID.
func (w *Window) sample(now time.Time, name string, group []*machine) Sample {
	s := Sample{At: now}
	heard := make([]*machine, 0, len(group))
	serving := 0
	for _, m := range group {
		switch {
		case w.speaks(now, m):
			heard = append(heard, m)
			if m.report.Readiness == report.Ready {
				serving++
			}
		case w.expected(now, m):
			s.Missing = append(s.Missing, m.id)
		}
	}
	s.Heard, s.Expected = len(heard), len(heard)+len(s.Missing)
	g := fleet{heard: heard, allServe: serving == 0, missing: len(s.Missing)}
	s.CPU = g.mean(1, func(r *report.Report) report.Value { return r.CPU })
	s.Memory = g.mean(1, func(r *report.Report) report.Value { return r.Memory })
	s.Queue, s.QueueTotal = g.queue()
	least := 0
	if w.cfg.MinSamples != nil {
		least = w.cfg.MinSamples(name)
	}
	s.P95, s.P95Count = g.p95(least)
	s.ErrorRate, s.Requests = g.errorRate(least)
	s.InFlight = g.inFlight()
	return s
}
