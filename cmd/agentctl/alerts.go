package main

import (
	"fmt"
	"time"

	"flymesh/agent/api"
)

type alertsCmd struct {
	List    alertsListCmd    `cmd:"" default:"withargs" help:"show every alert that is not at rest"`
	Silence alertsSilenceCmd `cmd:"" help:"keep a rule from telling anybody for a while"`
}

type alertsListCmd struct {
	JSON bool `help:"print JSON"`
}

// Run prints the alerts and the silences.
func (c *alertsListCmd) Run(s *session) error {
	a, err := s.client.Alerts(s.ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(s.out, a, true)
	}
	if len(a.Alerts) == 0 {
		fmt.Fprintf(s.out, "all %d rules are at rest\n", a.Rules)
	} else {
		t := newTable(s.out)
		t.row("RULE", "SERVICE", "PHASE", "SEVERITY", "SINCE", "FOR", "TEXT")
		for _, x := range a.Alerts {
			phase := string(x.Phase)
			if x.Silenced != nil {
				phase += " (silenced)"
			}
			t.row(x.Rule, x.Service, phase, x.Severity, x.Since.UTC().Format("2006-01-02T15:04:05Z"), age(a.At.Sub(x.Since)), x.Text)
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	for _, q := range a.Silences {
		fmt.Fprintf(s.out, "%s tells nobody until %s, by %s: %s\n", q.Rule, q.Until.UTC().Format(time.RFC3339), q.By, q.Reason)
	}
	return nil
}

type alertsSilenceCmd struct {
	Rule   string `arg:"" help:"a rule such as p95_page, or p95_page/n8n for one service"`
	For    string `default:"1h" placeholder:"1h" help:"how long; 0s ends a silence"`
	Reason string `placeholder:"T" help:"why, for the events"`
}

// Run keeps a rule quiet.
func (c *alertsSilenceCmd) Run(s *session) error {
	d, err := time.ParseDuration(c.For)
	if err != nil || d < 0 {
		return usage("alerts silence %s --for %s: %q is not a duration; use 30m or 2h, or 0s to end a silence", c.Rule, c.For, c.For)
	}
	a, err := s.client.Silence(s.ctx, api.SilenceRequest{Rule: c.Rule, For: d, Reason: c.Reason, By: who()})
	return s.accepted(a, err)
}
