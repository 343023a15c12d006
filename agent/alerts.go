package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"flymesh/agent/api"
	"flymesh/leader"
	"flymesh/leader/alert"
	"flymesh/leader/notify"
	"flymesh/raftstore/state"
)

// openReceivers makes everything that mesh.toml and the environment name.
func (a *agent) openReceivers(o Options) []leader.Receiver {
	var out []leader.Receiver
	for _, u := range a.cfg.Alerts.Alertmanager {
		out = append(out, notify.NewAlertmanager(u))
	}
	if o.PagerDutyKey.Reveal() != "" {
		out = append(out, notify.NewPagerDuty(a.cfg.Alerts.PagerDutyURL, o.PagerDutyKey.Reveal))
	}
	switch hook := a.cfg.Alerts.Webhook; {
	case hook != "" && o.WebhookKey.Reveal() != "":
		out = append(out, notify.NewWebhook(hook, o.WebhookKey.Reveal))
	case hook != "" && a.eligible():
		a.log.Warn("the webhook is told nothing: it is only sent signed, and FLYMESH_WEBHOOK_KEY is not set")
	}
	return out
}

func (a *agent) alerting() leader.Alerting {
	return leader.Alerting{
		Mesh: a.cfg.Mesh.Name, Rules: a.cfg.AlertRules(), NoDataAfter: a.cfg.Alerts.NoDataAfter, Receivers: a.receivers,
		Voters: func() (all, alive int) {
			vs := a.store.Status().Voters
			return len(vs), len(vs) - len(deadVoters(vs))
		},
	}
}

// Alerts tells every alert that is not at rest.
func (a *agent) Alerts(ctx context.Context) (api.Alerts, error) {
	if _, err := a.view(ctx); err != nil {
		return api.Alerts{}, err
	}
	now := time.Now().UTC()
	st, rules := a.store.State(), a.cfg.AlertRules()
	out := api.Alerts{At: now, Rules: len(rules), Alerts: []api.AlertStatus{}, Silences: []api.SilenceInfo{}}
	for _, key := range st.AlertKeys() {
		s := api.AlertStatus{Alert: st.Alerts[key], Key: key}
		if i := slices.IndexFunc(rules, func(r alert.Rule) bool { return r.Key() == key }); i >= 0 {
			s.Summary = rules[i].Summary
		}
		if q, ok := st.SilencedAt(s.Alert, now); ok {
			s.Silenced = &api.SilenceInfo{Rule: s.Rule, Silenced: q}
		}
		out.Alerts = append(out.Alerts, s)
	}
	for rule, q := range st.Silences {
		if q.Until.After(now) {
			out.Silences = append(out.Silences, api.SilenceInfo{Rule: rule, Silenced: q})
		}
	}
	slices.SortFunc(out.Silences, func(x, y api.SilenceInfo) int { return strings.Compare(x.Rule, y.Rule) })
	return out, nil
}

// Silence keeps a rule from telling anybody for a while.
func (a *agent) Silence(ctx context.Context, r api.SilenceRequest) (api.Accepted, error) {
	rules := a.cfg.AlertRules()
	if !slices.ContainsFunc(rules, func(x alert.Rule) bool { return x.Name == r.Rule || x.Key() == r.Rule }) {
		var names []string
		for _, x := range rules {
			if !slices.Contains(names, x.Name) {
				names = append(names, x.Name)
			}
		}
		return api.Accepted{}, badRequest("there is no rule %q; there are %s, each also as RULE/SERVICE", r.Rule, strings.Join(names, ", "))
	}
	until := time.Now().UTC().Add(r.For)
	res, err := a.command(ctx, r.By, state.Command{Silence: &state.Silence{Rule: r.Rule, Until: until, Reason: r.Reason}})
	if err != nil {
		return api.Accepted{}, err
	}
	text := fmt.Sprintf("%s tells nobody until %s", r.Rule, until.Format(time.RFC3339))
	if r.For == 0 {
		text = r.Rule + " tells people again"
	}
	return api.Accepted{Index: res.Index, Text: text}, nil
}

// leaderlessEvery is how often an agent looks whether anybody leads, and how
// soon it tries a receiver again.
const leaderlessEvery = 5 * time.Second

// runLeaderless tells people that nobody leads: then there is no leader to do
// it. Every agent that sees it uses one key, so receivers that know keys show
// one alert. Each tells the end to those that it told itself.
func (a *agent) runLeaderless(ctx context.Context) error {
	after := a.cfg.Alerts.NoLeaderAfter
	if after == 0 || len(a.receivers) == 0 {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(leaderlessEvery)
	defer tick.Stop()
	told := map[leader.Receiver]told{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		since := a.store.Status().NoLeaderSince
		out := !since.IsZero() && time.Since(since) >= after
		for _, r := range a.receivers {
			told[r] = a.tellLeaderless(ctx, r, told[r], since, out)
		}
	}
}

// told is what one receiver knows from this agent.
type told struct {
	alert state.Alert // Phase is empty: nothing
	at    time.Time
}

func (a *agent) tellLeaderless(ctx context.Context, r leader.Receiver, t told, since time.Time, out bool) told {
	now := time.Now().UTC()
	next := t
	switch {
	case out && t.alert.Phase == "":
		next.alert = state.Alert{
			Rule: alert.NoLeaderRule, Severity: alert.Page, Phase: state.Firing, Since: since.UTC(), Fired: now,
			Text: fmt.Sprintf("no leader for %s: nothing is scaled until one is elected", now.Sub(since).Round(time.Second)),
		}
	case out && r.Again() > 0 && now.Sub(t.at) >= r.Again():
	case !out && t.alert.Phase != "":
		next.alert.Phase, next.alert.Resolved, next.alert.Text = state.Resolved, now, "the mesh has a leader again"
	default:
		return t
	}
	n := leader.Notice{Mesh: a.cfg.Mesh.Name, Key: alert.NoLeaderRule, Alert: next.alert, Summary: "nobody leads the mesh", Resolved: !out}
	if err := r.Send(ctx, n); err != nil && !errors.Is(err, leader.ErrRefused) {
		a.log.Warn("tell receiver failed", "receiver", r.Name(), "alert", n.Key, "error", err)
		return t
	}
	if !out {
		return told{}
	}
	next.at = now
	return next
}
