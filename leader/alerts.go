package leader

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"flymesh/leader/alert"
	"flymesh/leader/decide"
	"flymesh/probes/report"
	"flymesh/raftstore/state"
)

// Alerting is what a leader needs to tell people. The zero value tells nobody.
type Alerting struct {
	Mesh        string
	Rules       []alert.Rule
	NoDataAfter time.Duration
	Receivers   []Receiver
	Steps       []StepReceiver // are told of scaling steps
	// Voters counts the voters and those of them that are alive; nil: not known.
	Voters func() (all, alive int)
}

const (
	failedFor  = 15 * time.Minute // an operation that failed is told for so long, unless one succeeds
	nearBudget = 0.9
)

// alerts holds the rules against what the round saw, and commits what changes.
func (l *Leader) alerts(ctx context.Context, t Term, in decide.Input, verdicts []decide.Verdict) {
	if len(l.Alerting.Rules) == 0 {
		return
	}
	st := l.Store.State()
	now := time.Now().UTC()
	l.overcome(ctx, t, st, now)
	for _, c := range alert.Step(alert.Input{
		Now: now, Every: l.Reports.every, NoDataAfter: l.Alerting.NoDataAfter, Rules: l.Alerting.Rules,
		History: in.History, Uses: l.uses(now), Facts: l.alertFacts(in, verdicts, st, now), Alerts: st.Alerts,
	}) {
		if !l.setAlert(ctx, t, c) {
			continue
		}
		if a := c.Alert; a != nil && (a.Phase == state.Firing || a.Phase == state.Resolved) && a.Phase != c.Was {
			l.log.Warn("alert", "rule", a.Rule, "service", a.Service, "phase", string(a.Phase), "severity", a.Severity, "reason", a.Text)
		}
	}
}

func (l *Leader) setAlert(ctx context.Context, t Term, c state.SetAlert) bool {
	if _, err := l.propose(ctx, t, state.Command{SetAlert: &c}); err != nil {
		l.log.Warn("record alert failed", "alert", c.Key, "error", err)
		return false
	}
	return true
}

// uses reads what the burn rates are judged by.
func (l *Leader) uses(now time.Time) map[string]alert.Uses {
	out := map[string]alert.Uses{}
	for _, r := range l.Alerting.Rules {
		if b := r.Burn; b != nil {
			out[r.Key()] = alert.Uses{Long: l.Reports.Burnt(now, b.Goal, b.Long), Short: l.Reports.Burnt(now, b.Goal, b.Short)}
		}
	}
	return out
}

// overcome has people told that there is a leader again, if agents have told
// them that there was none: each agent says so in its reports for a while. The
// alert goes the way of all others, so that its end is told once.
func (l *Leader) overcome(ctx context.Context, t Term, st *state.State, now time.Time) {
	old := st.Alerts[alert.NoLeaderRule]
	var cried time.Time
	for _, r := range l.Reports.Fresh(now) {
		if r.Cried.After(old.Resolved) && (cried.IsZero() || r.Cried.Before(cried)) {
			cried = r.Cried
		}
	}
	if cried.IsZero() {
		return
	}
	a := state.Alert{
		Rule: alert.NoLeaderRule, Severity: alert.Page, Phase: state.Resolved, Since: cried, Fired: cried, Resolved: now,
		Text: "the mesh has a leader again", Told: map[string]state.Phase{},
	}
	for _, r := range l.Alerting.Receivers {
		if r.Wants(a.Severity) {
			a.Told[r.Name()] = state.Firing
		}
	}
	l.setAlert(ctx, t, state.SetAlert{Key: a.Key(), Was: old.Phase, Alert: &a})
}

// alertFacts says of each rule that is not about a metric whether it holds.
func (l *Leader) alertFacts(in decide.Input, verdicts []decide.Verdict, st *state.State, now time.Time) map[string]alert.Fact {
	facts, reports := map[string]alert.Fact{}, l.Reports.Fresh(now)
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
	for service, machines := range evicting(l.Alerting.Rules, reports) {
		set(alert.EvictionRule, service, len(machines) > 0, "Redis evicts keys or refuses writes on %s", strings.Join(machines, ", "))
	}
	for _, j := range l.Jobs {
		r, bad := unsuccessful(st.Job(j.Name).Runs)
		set(alert.JobRule+j.Name, j.Service, bad, "run %s is %s: %s", r.ID, r.State, r.Detail)
	}
	if l.Alerting.Voters != nil {
		if all, alive := l.Alerting.Voters(); all > 2 {
			set(alert.QuorumRule, "", alive <= all/2+1, "%d of %d voters are alive: one more lost, and nobody can lead", alive, all)
		}
	}
	if k, err := l.lockKeeper(); err == nil {
		// A new leader does not say that it is over before it has looked.
		if stuck := k.stuck(st); stuck != "" || now.Sub(k.began) > wantedFor {
			set(alert.FenceRule, "", stuck != "", "%s", stuck)
		}
	}
	if by := configs(reports); len(by) > 0 {
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

// evicting lists, for each service that has a rule about it, the machines whose
// Redis is full.
func evicting(rules []alert.Rule, reports []report.Report) map[string][]string {
	out := map[string][]string{}
	for _, r := range rules {
		if r.Name == alert.EvictionRule {
			out[r.Service] = nil
		}
	}
	for _, r := range reports {
		if _, wanted := out[r.Service]; wanted && r.Evicting {
			out[r.Service] = append(out[r.Service], r.Machine)
		}
	}
	return out
}

// unsuccessful returns the newest run that says how a job fares, and whether it
// fares badly. A tick that was passed over because a person paused the job, or a
// claim that was given back, says nothing.
func unsuccessful(runs []state.Run) (r state.Run, bad bool) {
	for _, r := range slices.Backward(runs) {
		switch r.State {
		case state.RunDone:
			return r, false
		case state.RunFailed, state.RunLost:
			return r, true
		case state.RunSkipped:
			if !strings.HasPrefix(r.Detail, pausedBy) {
				return r, true
			}
		}
	}
	return r, false
}

// configs lists the hashes of mesh.toml that are reported, sorted.
func configs(reports []report.Report) []string {
	by := map[string]bool{}
	for _, r := range reports {
		if r.Config != "" {
			by[r.Config] = true
		}
	}
	return sortedKeys(by)
}
