package leader

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"flymesh/leader/window"
	"flymesh/probes/report"
	"flymesh/raftstore/state"
)

// revokeAfter is how many rounds in a row an admitted machine must report that
// it is not loaded before its admission is taken back. One lost probe is none.
const revokeAfter = 3

// revoke takes admissions back: of machines that lost what they were admitted
// for, a model that was unloaded say, first committed and then told; and of
// machines that are gone, so that the state does not grow with every burst.
// Who loads again is admitted again.
func (l *Leader) revoke(ctx context.Context, t Term) {
	admitted := l.Store.State().Admitted
	there, complete := l.everyMachine()
	l.Reports.with(func(w *window.Window) {
		for id, boot := range admitted {
			r, age, ok := w.Latest(time.Now(), id)
			if ok && w.Fresh(age) && r.Boot == boot && r.Readiness < report.Loaded {
				l.cold[id]++
			} else {
				delete(l.cold, id)
			}
		}
	})
	for _, id := range slices.Sorted(maps.Keys(admitted)) {
		boot, r := admitted[id], state.Revoke{Machine: id}
		switch service, exists := there[id]; {
		case l.cold[id] >= revokeAfter:
			r.Service, r.Reason = service, fmt.Sprintf("not loaded any more in %d rounds", l.cold[id])
		case complete && !exists:
			r.Reason = "the machine is gone"
		default:
			continue
		}
		if err := l.Store.Verify(ctx); err != nil {
			return
		}
		if _, err := l.propose(ctx, t, state.Command{Revoke: &r}); err != nil {
			l.log.Warn("revoke failed", "machine", id, "error", err)
			continue
		}
		l.log.Info("admission revoked", "machine", id, "reason", r.Reason)
		if l.cold[id] == 0 {
			continue
		}
		delete(l.cold, id)
		// A machine that does not hear it is not ready either: that is why.
		if err := l.Agents.Revoke(ctx, id, boot); err != nil {
			l.log.Warn("tell revocation failed", "machine", id, "error", err)
		}
	}
}

// everyMachine returns the service of every machine of the gated services, and
// whether all their apps could be listed.
func (l *Leader) everyMachine() (service map[string]string, complete bool) {
	service, complete = map[string]string{}, true
	for _, s := range l.Services {
		if !s.Gated {
			continue
		}
		if n, _ := l.listed.of(s.App); n.err != nil || n.began.IsZero() {
			complete = false
		}
		for _, m := range l.machines(s) {
			service[m.ID] = s.Policy.Name
		}
	}
	return service, complete
}
