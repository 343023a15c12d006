package agent

import (
	"context"
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
func (a *agent) openReceivers(o Options) {
	to := a.cfg.Alerts
	for _, u := range to.Alertmanager {
		a.receivers = append(a.receivers, notify.NewAlertmanager(u))
	}
	if o.PagerDutyKey.Reveal() != "" {
		a.receivers = append(a.receivers, notify.NewPagerDuty(to.PagerDutyURL, o.PagerDutyKey.Reveal))
		if to.Changes {
			a.steps = append(a.steps, notify.NewChanges(to.ChangeURL(), o.PagerDutyKey.Reveal))
		}
	}
	switch hook := to.Webhook; {
	case hook != "" && o.WebhookKey.Reveal() != "":
		a.receivers = append(a.receivers, notify.NewWebhook(hook, o.WebhookKey.Reveal))
	case hook != "" && a.eligible():
		a.log.Warn("the webhook is told nothing: it is only sent signed, and FLYMESH_WEBHOOK_KEY is not set")
	}
}

func (a *agent) alerting() leader.Alerting {
	return leader.Alerting{
		Mesh: a.cfg.Mesh.Name, Rules: a.cfg.AlertRules(), NoDataAfter: a.cfg.Alerts.NoDataAfter, Receivers: a.receivers, Steps: a.steps,
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
	rules = append(rules, alert.NoLeader())
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
