package leader

import (
	"context"
	"fmt"
	"time"

	"flymesh/leader/decide"
	"flymesh/raftstore/state"
)

// facts collects what holds a service back besides its load.
func (l *Leader) facts(s Service, mem state.Service, now time.Time) decide.Facts {
	f := decide.Facts{ShortSince: l.short[s.Policy.Name], Turned: string(mem.Budget.Turned), Deploy: l.deploys.of(s)}
	f.Hours = mem.Budget.Until(now).Spent.Hours()
	f.Turns, f.TurnsUntil = mem.Budget.Turns(now)
	switch lst, _ := l.listed.of(s.App); {
	case lst.err == nil && lst.began.IsZero():
		f.APIError = fmt.Sprintf("the Machines API has not answered yet for app %s", s.App)
	case lst.began.IsZero():
		f.APIError = fmt.Sprintf("the Machines API has not answered yet for app %s: %v", s.App, lst.err)
	case lst.err != nil:
		f.APIError = fmt.Sprintf("the Machines API does not answer for app %s (%s old): %v", s.App, now.Sub(lst.began).Round(time.Second), lst.err)
	}
	if mem.BreakerUntil.After(now) {
		f.Breaker = fmt.Sprintf("%d operations failed in a row, the newest with %q; the next try is not before %s",
			mem.Failures, mem.BreakerReason, mem.BreakerUntil.UTC().Format("15:04:05"))
	}
	for _, m := range l.machines(s) {
		if m.Autostop || m.Autostart {
			f.Owner = fmt.Sprintf("Fly Proxy may start or stop machine %s (autostop or autostart is on): switch them off, or set owner = \"proxy\"", m.ID)
			break
		}
	}
	if s.Owner == "proxy" {
		f.Owner = "owner = \"proxy\" in mesh.toml: Fly Proxy scales this service"
	}
	return f
}

// noteShort keeps since when fewer machines than the baseline are listed. Only
// rounds with a new listing say anything about it.
func (l *Leader) noteShort(in decide.Input, verdicts []decide.Verdict) {
	for i, v := range verdicts {
		if in.Facts[v.Service].APIError != "" {
			continue
		}
		counted, _, _ := v.Tally()
		since, known := l.short[v.Service]
		switch {
		case counted >= in.Policy.Services[i].Baseline:
			delete(l.short, v.Service)
		case !known || since.After(in.Now):
			l.short[v.Service] = in.Now
		}
	}
}

// meter books how many machines of each service cost, whenever that changes.
func (l *Leader) meter(ctx context.Context, t Term) {
	st := l.Store.State()
	for _, s := range l.Services {
		if n, _ := l.listed.of(s.App); n.err != nil || n.began.IsZero() {
			continue
		}
		running := 0
		for _, m := range l.machines(s) {
			switch m.State {
			case "started", "stopping", "suspending", "restarting", "updating", "replacing":
				running++
			}
		}
		b := st.Service(s.Policy.Name).Budget
		if b.Running == running && !b.Since.IsZero() {
			continue
		}
		if _, err := l.propose(ctx, t, state.Command{Meter: &state.Meter{Service: s.Policy.Name, Running: running}}); err != nil {
			l.log.Warn("meter failed", "service", s.Policy.Name, "error", err)
		}
	}
}
