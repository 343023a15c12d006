package leader

import (
	"context"
	"errors"
	"slices"
	"time"

	"flymesh/leader/alert"
	"flymesh/raftstore/state"
)

// Notice is one piece of news about an alert for one receiver.
type Notice struct {
	Mesh     string
	Key      string // does not change with the leader
	Alert    state.Alert
	Summary  string // what the rule means
	Resolved bool
}

// Receiver takes alerts to people. Its name is in the replicated state, so it
// must be the same on every machine. Send is called from one goroutine, makes
// one attempt and has its own deadline; an error that wraps ErrRefused means
// that the same notice will never be taken.
type Receiver interface {
	Name() string
	// Wants says whether alerts of a severity go there.
	Wants(severity string) bool
	// Again is how often news that an alert fires is repeated; 0: never.
	Again() time.Duration
	Send(ctx context.Context, n Notice) error
}

// ErrRefused says that a receiver will never take a notice (400 and the like).
var ErrRefused = errors.New("refused for good")

const maxBackoff = time.Minute

// deliver tells one receiver what it has not been told, until the term ends.
// A receiver that cannot be reached is asked again later; what it missed is in
// the replicated state.
func (l *Leader) deliver(ctx context.Context, t Term, r Receiver) {
	sent := map[string]time.Time{} // by key, of this term
	retrying(ctx, func(now time.Time, wait time.Duration) (time.Duration, time.Time) {
		return l.deliverDue(ctx, t, r, sent, wait, now)
	})
}

// retrying calls send each second, or later if it says so, until ctx ends. send
// gets and returns the backoff, and returns when to be called again.
func retrying(ctx context.Context, send func(now time.Time, wait time.Duration) (time.Duration, time.Time)) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var wait time.Duration
	var next time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if now := time.Now(); !now.Before(next) {
			wait, next = send(now, wait)
		}
	}
}

func backoff(wait time.Duration) time.Duration { return min(max(time.Second, 2*wait), maxBackoff) }

// deliverDue sends what is due, up to the first failure that may pass. It
// returns the new backoff and when to try again.
func (l *Leader) deliverDue(ctx context.Context, t Term, r Receiver, sent map[string]time.Time, wait time.Duration, now time.Time) (time.Duration, time.Time) {
	st := l.Store.State()
	for _, key := range st.AlertKeys() {
		a := st.Alerts[key]
		if !due(st, a, r, sent[key], now) {
			continue
		}
		if err := l.Store.Verify(ctx); err != nil {
			return wait, now.Add(time.Second)
		}
		n := Notice{Mesh: l.Alerting.Mesh, Key: key, Alert: a, Summary: l.summary(a), Resolved: a.Phase == state.Resolved}
		err := r.Send(ctx, n)
		if ctx.Err() != nil {
			return wait, now
		}
		refused := errors.Is(err, ErrRefused)
		l.Metrics.notified(r.Name(), err)
		if err != nil && !refused {
			wait = backoff(wait)
			l.log.Warn("tell receiver failed", "receiver", r.Name(), "alert", key, "again_in", wait.String(), "error", err)
			return wait, time.Now().Add(wait)
		}
		if refused {
			l.log.Error("receiver refuses an alert", "receiver", r.Name(), "alert", key, "error", err)
		}
		wait, sent[key] = 0, now
		took := a.Phase
		if refused {
			took = state.Refused // neither again nor of its end
		}
		if a.Told[r.Name()] != took {
			c := &state.TellAlert{Key: key, Receiver: r.Name(), Phase: took, Fired: a.Fired}
			if _, err := l.propose(ctx, t, state.Command{TellAlert: c}); err != nil {
				l.log.Warn("record notice failed", "receiver", r.Name(), "alert", key, "error", err)
			}
		}
	}
	return wait, now
}

// due says whether a receiver is to be told of an alert now. Only who was told
// that it fires is told that it is over.
func due(st *state.State, a state.Alert, r Receiver, sent, now time.Time) bool {
	told := a.Told[r.Name()]
	_, silent := st.SilencedAt(a, now)
	switch a.Phase {
	case state.Firing:
		again := r.Again() > 0 && now.Sub(sent) >= r.Again()
		return r.Wants(a.Severity) && !silent && (told == "" || told == state.Firing && again)
	case state.Resolved:
		return told == state.Firing
	}
	return false
}

func (l *Leader) summary(a state.Alert) string {
	for _, r := range append(slices.Clip(l.Alerting.Rules), alert.NoLeader()) {
		if r.Name == a.Rule && r.Service == a.Service {
			return r.Summary
		}
	}
	return a.Rule
}
