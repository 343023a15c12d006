package main

import (
	"encoding/csv"
	"fmt"
	"io"
	"strconv"
	"time"

	"flymesh/agent/api"
	"flymesh/leader/history"
	"flymesh/probes/report"
	"flymesh/raftstore/state"
)

type historyCmd struct {
	Service string `arg:"" help:"name in mesh.toml"`
	Since   string `default:"6h" placeholder:"6h" help:"how far back, at most 24h"`
	CSV     bool   `name:"csv" xor:"form" help:"print CSV: a trace that a policy can be tried on"`
	JSON    bool   `xor:"form" help:"print JSON; unknown values are null"`
}

// Run prints the past of a service, oldest first.
func (c *historyCmd) Run(s *session) error {
	d, err := time.ParseDuration(c.Since)
	if err != nil || d <= 0 || d > api.MaxSince {
		return usage("history %s --since %s: %q is not a duration of at most 24h; use 6h or 30m", c.Service, c.Since, c.Since)
	}
	h, err := s.client.History(s.ctx, api.HistoryQuery{Service: c.Service, Since: d})
	switch {
	case err != nil:
		return err
	case c.JSON:
		return printJSON(s.out, h, true)
	case c.CSV:
		return historyCSV(s.out, h)
	}
	return historyTable(s.out, h)
}

// merge calls row and event in the order of time: an event comes after the row
// in whose interval it is.
func merge(h api.History, row func(history.Row) error, event func(state.Event) error) error {
	es := h.Events
	for _, r := range h.Rows {
		for len(es) > 0 && es[0].At.Before(r.At) {
			if err := event(es[0]); err != nil {
				return err
			}
			es = es[1:]
		}
		if err := row(r); err != nil {
			return err
		}
	}
	for _, e := range es {
		if err := event(e); err != nil {
			return err
		}
	}
	return nil
}

func historyTable(w io.Writer, h api.History) error {
	if len(h.Rows) == 0 && len(h.Events) == 0 {
		_, err := fmt.Fprintf(w, "nothing is kept of %s in this time\n", h.Service)
		return err
	}
	t := newTable(w)
	t.row("AT", "MACHINES", "REQ/S", "P95", "ERRORS", "QUEUE", "CPU", "MEMORY")
	err := merge(h, func(r history.Row) error {
		p95 := r.P95
		p95.X *= 1000
		machines := strconv.Itoa(r.Heard)
		if r.Heard != r.Expected {
			machines = fmt.Sprintf("%d of %d", r.Heard, r.Expected)
		}
		t.row(r.At.Format("2006-01-02T15:04:05Z"), machines, number(r.Requests), millis(p95), percent(r.Errors), number(r.Queue), percent(r.CPU), percent(r.Memory))
		return nil
	}, func(e state.Event) error {
		size := ""
		if e.From != e.To {
			size = fmt.Sprintf(" %d to %d", e.From, e.To)
		}
		t.row(e.At.UTC().Format("2006-01-02T15:04:05Z"), fmt.Sprintf("  %s%s: %s", e.Kind, size, e.Reason))
		return nil
	})
	if err != nil {
		return err
	}
	return t.flush()
}

// historyCSV writes both rows and events with one set of columns: "what" says
// which a line is.
func historyCSV(w io.Writer, h api.History) error {
	c := csv.NewWriter(w)
	head := []string{"at", "what", "service", "machines_expected", "machines_heard", "requests_per_second", "p95_seconds", "p95_samples",
		"error_ratio", "queue", "cpu_ratio", "memory_ratio", "from", "to", "reason"}
	if err := c.Write(head); err != nil {
		return err
	}
	err := merge(h, func(r history.Row) error {
		return c.Write([]string{r.At.Format(time.RFC3339), "sample", h.Service, strconv.Itoa(r.Expected), strconv.Itoa(r.Heard),
			cell(r.Requests), cell(r.P95), cell(r.Samples), cell(r.Errors), cell(r.Queue), cell(r.CPU), cell(r.Memory), "", "", ""})
	}, func(e state.Event) error {
		line := make([]string, len(head))
		line[0], line[1], line[2] = e.At.UTC().Format(time.RFC3339), e.Kind, h.Service
		line[12], line[13], line[14] = strconv.Itoa(e.From), strconv.Itoa(e.To), e.Reason
		return c.Write(line)
	})
	if err != nil {
		return err
	}
	c.Flush()
	return c.Error()
}

// cell is empty for what is not known.
func cell(v report.Value) string {
	if !v.OK {
		return ""
	}
	return strconv.FormatFloat(v.X, 'g', -1, 64)
}
