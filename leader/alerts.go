package leader

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"flymesh/leader/alert"
	"flymesh/leader/decide"
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

// Alerting is what a leader needs to tell people. The zero value tells nobody.
type Alerting struct {
	Mesh        string
	Rules       []alert.Rule
	NoDataAfter time.Duration
	Receivers   []Receiver
	// Voters counts the voters and those of them that are alive; nil: not known.
	Voters func() (all, alive int)
}

const (
	failedFor  = 15 * time.Minute // an operation that failed is told for so long, unless one succeeds
	nearBudget = 0.9
	maxBackoff = time.Minute
)

// alerts holds the rules against what the round saw, and commits what changes.
func (l *Leader) alerts(ctx context.Context, t Term, in decide.Input, verdicts []decide.Verdict) {
	if len(l.Alerting.Rules) == 0 {
		return
	}
	st := l.Store.State()
	now := time.Now().UTC()
	for _, c := range alert.Step(alert.Input{
		Now: now, Every: l.Reports.every, NoDataAfter: l.Alerting.NoDataAfter, Rules: l.Alerting.Rules,
		History: in.History, Facts: l.alertFacts(in, verdicts, st, now), Alerts: st.Alerts,
	}) {
		if _, err := l.propose(ctx, t, state.Command{SetAlert: &c}); err != nil {
			l.log.Warn("record alert failed", "alert", c.Key, "error", err)
			continue
		}
		if a := c.Alert; a != nil && (a.Phase == state.Firing || a.Phase == state.Resolved) && a.Phase != c.Was {
			l.log.Warn("alert", "rule", a.Rule, "service", a.Service, "phase", string(a.Phase), "severity", a.Severity, "reason", a.Text)
		}
	}
}

// alertFacts says of each rule that is not about a metric whether it holds.
func (l *Leader) alertFacts(in decide.Input, verdicts []decide.Verdict, st *state.State, now time.Time) map[string]alert.Fact {
	facts := map[string]alert.Fact{}
	set := func(rule, service string, holds bool, format string, args ...any) {
		facts[state.AlertKey(rule, service)] = alert.Fact{Holds: holds, Text: fmt.Sprintf(format, args...)}
	}
	for _, v := range verdicts {
		over := ""
		for _, r := range v.Rules {
			if r.For == decide.Up && r.Holds {
				over = r.Rule
			}
		}
		set(alert.CapRule, v.Service, v.Reason.Code == decide.CodeCap && over != "", "%s, but %s holds", v.Reason.Text, over)
		set(alert.ImprovementRule, v.Service, v.Reason.Code == decide.CodeNoImprovement, "%s", v.Reason.Text)
		e, failed := lastOutcome(st.Events, v.Service)
		set(alert.OperationRule, v.Service, failed && now.Sub(e.At) < failedFor, "%s: %s", strings.ReplaceAll(e.Kind, "_", " "), e.Reason)
		s, _ := l.service(v.Service)
		if limit := s.Policy.BudgetHours; limit > 0 {
			spent := st.Service(v.Service).Budget.Until(now).Spent.Hours()
			set(alert.BudgetRule, v.Service, spent >= nearBudget*limit, "%.1f of %.1f machine-hours of today are used", spent, limit)
		}
		if h := in.History[v.Service]; len(h) > 0 {
			last := h[len(h)-1]
			set(alert.NoDataRule, v.Service, last.Heard == 0 && last.Expected > 0, "none of its %d machines is heard", last.Expected)
		}
	}
	if l.Alerting.Voters != nil {
		if all, alive := l.Alerting.Voters(); all > 2 {
			set(alert.QuorumRule, "", alive <= all/2+1, "%d of %d voters are alive: one more lost, and nobody can lead", alive, all)
		}
	}
	if k, err := l.lockKeeper(); err == nil {
		stuck := k.stuck(st)
		set(alert.FenceRule, "", stuck != "", "%s", stuck)
	}
	if by := l.configs(in); len(by) > 0 {
		set(alert.ConfigRule, "", len(by) > 1, "machines run with %d different mesh.toml: %s", len(by), strings.Join(by, ", "))
	}
	return facts
}

// lastOutcome returns how the newest operation of a service ended.
func lastOutcome(es []state.Event, service string) (e state.Event, failed bool) {
	for _, e := range slices.Backward(es) {
		if e.Service != service {
			continue
		}
		switch e.Kind {
		case "up_failed", "down_failed":
			return e, true
		case "up_done", "down_done":
			return e, false
		}
	}
	return e, false
}

// configs lists the hashes of mesh.toml that are reported, sorted.
func (l *Leader) configs(in decide.Input) []string {
	by := map[string]bool{}
	for _, m := range in.Machines {
		if r, _, fresh, ok := l.Reports.Latest(in.Now, m.ID); ok && fresh && r.Config != "" {
			by[r.Config] = true
		}
	}
	return sortedKeys(by)
}

// deliver tells one receiver what it has not been told, until the term ends.
// A receiver that cannot be reached is asked again later; what it missed is in
// the replicated state.
func (l *Leader) deliver(ctx context.Context, t Term, r Receiver) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	sent := map[string]time.Time{} // by key, of this term
	var wait time.Duration
	var next time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		if now.Before(next) {
			continue
		}
		wait, next = l.deliverDue(ctx, t, r, sent, wait, now)
	}
}

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
			wait = min(max(time.Second, 2*wait), maxBackoff)
			l.log.Warn("tell receiver failed", "receiver", r.Name(), "alert", key, "again_in", wait.String(), "error", err)
			return wait, time.Now().Add(wait)
		}
		if refused {
			l.log.Error("receiver refuses an alert", "receiver", r.Name(), "alert", key, "error", err)
		}
		wait, sent[key] = 0, now
		if a.Told[r.Name()] != a.Phase {
			c := &state.TellAlert{Key: key, Receiver: r.Name(), Phase: a.Phase, Fired: a.Fired}
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
	for _, r := range l.Alerting.Rules {
		if r.Name == a.Rule && r.Service == a.Service {
			return r.Summary
		}
	}
	return a.Rule
}
