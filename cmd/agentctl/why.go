package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"flymesh/leader/decide"
	"flymesh/probes/report"
)

type whyCmd struct {
	Service string `arg:"" help:"name in mesh.toml"`
	JSON    bool   `help:"print JSON; unknown values are null"`
}

// Run shows the newest verdict on a service with all that it rests on.
func (c *whyCmd) Run(s *session) error {
	v, err := s.client.Why(s.ctx, c.Service)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(s.out, v, true)
	}
	return printVerdict(s.out, v)
}

func printVerdict(w io.Writer, v decide.Verdict) error {
	fmt.Fprintf(w, "%s: %s (%s) at %s\n%s\n", v.Service, v.Verdict, v.Reason.Code, clock(v.At), v.Reason.Text)
	if a := v.Action; a != nil {
		fmt.Fprintf(w, "action: %s from %d to %d machines", a.Kind, a.From, a.To)
		if a.Machine != "" {
			fmt.Fprintf(w, ", removing %s", a.Machine)
		}
		if a.Dry {
			fmt.Fprint(w, " (shadow: told, not done)")
		}
		fmt.Fprintln(w)
	}
	if v.Page != "" {
		fmt.Fprintf(w, "a person is needed: %s\n", v.Page)
	}

	fmt.Fprintln(w)
	t := newTable(w)
	t.row("RULE", "FOR", "HOLDS", "VALUE", "BEST", "WORST", "AGREES FOR", "COVERAGE", "MISSING")
	for _, r := range v.Rules {
		since := "-"
		if r.Since != nil {
			since = age(v.At.Sub(*r.Since))
		}
		t.row(r.Rule, r.For, noYes(r.Holds), inUnit(r.Rule, r.Value), inUnit(r.Rule, r.Best), inUnit(r.Rule, r.Worst),
			since, percent(report.Of(r.Coverage)), strings.Join(r.Missing, " "))
	}
	err := t.flush()

	fmt.Fprintln(w)
	t = newTable(w)
	t.row("GUARD", "BLOCKS", "DETAIL")
	for _, g := range v.Guards {
		t.row(string(g.Code), noYes(g.Blocks), g.Detail)
	}
	err = errors.Join(err, t.flush())

	fmt.Fprintln(w)
	t = newTable(w)
	t.row("MACHINE", "COUNTS AS", "WHY")
	for _, m := range v.Counted {
		t.row(m.Machine, m.As, m.Why)
	}
	return errors.Join(err, t.flush())
}

func noYes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// inUnit shows a value in the unit in which its rule is written.
func inUnit(rule string, v report.Value) string {
	metric, _, _ := strings.Cut(strings.TrimSpace(rule), " ")
	switch decide.Metric(metric) {
	case decide.CPU, decide.Memory, decide.ErrorRate:
		return percent(v)
	case decide.P95:
		v.X *= float64(time.Second / time.Millisecond)
		return millis(v)
	}
	return number(v)
}
