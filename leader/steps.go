package leader

import (
	"context"
	"errors"
	"slices"
	"time"

	"flymesh/raftstore/state"
)

// Step is a scaling step that is done, as people's tools are told of it.
type Step struct {
	state.Event
	Why string // the decision
}

// StepReceiver takes scaling steps to people's tools. Its name is in the
// replicated state. SendStep is called from one goroutine, makes one attempt and
// has its own deadline; an error that wraps ErrRefused means that the step will
// never be taken.
type StepReceiver interface {
	Name() string
	SendStep(ctx context.Context, mesh string, s Step) error
}

// deliverSteps tells one receiver of the steps that were done since it was told
// last. A receiver that is new is told of those that come.
func (l *Leader) deliverSteps(ctx context.Context, t Term, r StepReceiver) {
	retrying(ctx, func(now time.Time, wait time.Duration) (time.Duration, time.Time) {
		st := l.Store.State()
		told, known := st.Told[r.Name()]
		if !known {
			l.toldSteps(ctx, t, r, st.Index)
			return wait, now
		}
		for _, e := range st.Events {
			if e.Index <= told || e.Kind != "up_done" && e.Kind != "down_done" {
				continue
			}
			if err := l.Store.Verify(ctx); err != nil {
				return wait, now
			}
			err := r.SendStep(ctx, l.Alerting.Mesh, Step{e, whyOf(st.Events, e)})
			if ctx.Err() != nil {
				return wait, now
			}
			l.Metrics.notified(r.Name(), err)
			if err != nil && !errors.Is(err, ErrRefused) {
				wait = backoff(wait)
				l.log.Warn("tell receiver failed", "receiver", r.Name(), "op", e.Op, "again_in", wait.String(), "error", err)
				return wait, time.Now().Add(wait)
			}
			if err != nil {
				l.log.Error("receiver refuses a step", "receiver", r.Name(), "op", e.Op, "error", err)
			}
			wait = 0
			l.toldSteps(ctx, t, r, e.Index)
		}
		return wait, now
	})
}

func (l *Leader) toldSteps(ctx context.Context, t Term, r StepReceiver, index uint64) {
	c := &state.TellSteps{Receiver: r.Name(), Index: index}
	if _, err := l.propose(ctx, t, state.Command{TellSteps: c}); err != nil {
		l.log.Warn("record notice failed", "receiver", r.Name(), "error", err)
	}
}

// whyOf is the decision behind the end of an operation.
func whyOf(es []state.Event, end state.Event) string {
	i := slices.IndexFunc(es, func(e state.Event) bool {
		return e.Op == end.Op && (e.Kind == string(state.OpUp) || e.Kind == string(state.OpDown))
	})
	if i < 0 {
		return end.Reason
	}
	return es[i].Reason
}
