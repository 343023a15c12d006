package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"flymesh/agent/api"
)

// watchEvery is the pause between two pictures of --watch.
const watchEvery = time.Second

type statusCmd struct {
	JSON  bool `help:"print JSON; unknown values are null"`
	Watch bool `help:"go on showing it, each second, until Ctrl-C"`
}

// Run shows the mesh. Without a leader it shows what is known, and fails.
func (c *statusCmd) Run(s *session) error {
	if !c.Watch {
		st, err := s.client.Status(s.ctx)
		if err != nil {
			return err
		}
		if err := c.print(s.out, st); err != nil {
			return err
		}
		if st.Leader == nil {
			return fmt.Errorf("%w: this is what machine %s knows by itself", api.ErrNoLeader, st.From)
		}
		return nil
	}
	for {
		ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
		st, err := s.client.Status(ctx)
		cancel()
		if s.ctx.Err() != nil {
			return nil
		}
		if s.clear && !c.JSON {
			fmt.Fprint(s.out, "\x1b[H\x1b[2J")
		}
		if err != nil {
			fmt.Fprintf(s.err, "agentctl: %s\n", oneLine(s.explain(err)))
		} else if err := c.print(s.out, st); err != nil {
			return err
		} else if !s.clear && !c.JSON {
			fmt.Fprintln(s.out)
		}
		if !s.sleep(watchEvery) {
			return nil
		}
	}
}

// sleep says false when it was interrupted.
func (s *session) sleep(d time.Duration) bool {
	select {
	case <-s.ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func (c *statusCmd) print(w io.Writer, st api.Status) error {
	if c.JSON {
		return printJSON(w, st, !c.Watch)
	}
	return printStatus(w, st)
}

func printStatus(w io.Writer, st api.Status) error {
	lead := "none"
	if st.Leader != nil {
		lead = st.Leader.Machine
	}
	quorum := "NOT HEALTHY"
	if st.Quorum.Healthy {
		quorum = "healthy"
	}
	fmt.Fprintf(w, "mesh %s   epoch %d   term %d   leader %s   quorum %s, %d voters   at %s, told by %s\n\n",
		st.Mesh, st.Epoch, st.Term, lead, quorum, len(st.Quorum.Voters), clock(st.At), st.From)

	t := newTable(w)
	t.row("SERVICE", "MODE", "SIZE", "STARTED", "READY", "UNKNOWN", "CPU", "P95", "SAMPLES", "ERRORS", "QUEUE", "WAITS", "DECISION")
	for _, v := range st.Services {
		t.row(v.Name, v.Mode, fmt.Sprintf("%d to %d", v.Baseline, v.Max), count(v.Started), count(v.Ready), count(v.Unknown),
			percent(v.CPU), millis(v.P95), number(v.P95Samples), percent(v.ErrorRate), number(v.Queue), waits(v, st.At), decision(v))
	}
	t.row()
	t.flush()

	t = newTable(w)
	t.row("MACHINE", "SERVICE", "REGION", "STATE", "READINESS", "ROLE", "PINNED", "APP", "CPU", "MEMORY", "QUEUE", "HEARD", "VERSION", "CONFIG")
	for _, m := range st.Machines {
		heard := "-"
		if m.ReportAgeMS != nil {
			heard = age(time.Duration(*m.ReportAgeMS)*time.Millisecond) + " ago"
		}
		t.row(m.ID, m.Service, m.Region, text(m.State), text(m.Readiness), m.Role, yes(m.Pinned), cmp.Or(m.AppRole, "-"), percent(m.CPU), percent(m.Memory),
			number(m.Queue), heard, text(m.Version), text(m.ConfigHash))
	}
	err := errors.Join(t.flush(), printRedis(w, st.Machines))
	if len(st.Warnings) > 0 {
		fmt.Fprintln(w)
	}
	for _, x := range st.Warnings {
		_, werr := fmt.Fprintf(w, "warning: %s\n", x)
		err = errors.Join(err, werr)
	}
	return err
}

// printRedis shows where each Redis stands, if there is any.
func printRedis(w io.Writer, ms []api.MachineStatus) error {
	t := newTable(w)
	t.row()
	t.row("REDIS", "SERVICE", "ROLE", "LINK", "BEHIND", "HEARD", "OFFSET", "HISTORY")
	n := 0
	for _, m := range ms {
		r := m.Replication
		if r == nil {
			continue
		}
		n++
		role, link := "primary", "no replica"
		switch {
		case r.Replica && r.Linked:
			role, link = "replica", "up"
		case r.Replica:
			role, link = "replica", "DOWN"
		case r.Linked:
			link = "up"
		}
		heard := "-"
		if r.LagSeconds.OK {
			heard = idle(r.LagSeconds.X) + " ago"
		}
		behind := "-"
		if r.LagBytes.OK {
			behind = size(int64(r.LagBytes.X))
		}
		t.row(m.ID, m.Service, role, link, behind, heard, fmt.Sprint(r.Offset), fmt.Sprintf("%08x", r.History))
	}
	if n == 0 {
		return nil
	}
	return t.flush()
}

// waits says what keeps a service from being scaled, and for how long still.
func waits(v api.ServiceStatus, now time.Time) string {
	switch {
	case v.PausedUntil != nil && v.PausedUntil.After(now):
		return "paused " + age(v.PausedUntil.Sub(now))
	case v.CooldownUntil != nil && v.CooldownUntil.After(now):
		return "cooldown " + age(v.CooldownUntil.Sub(now))
	}
	return "-"
}

func decision(v api.ServiceStatus) string {
	switch {
	case v.Verdict == nil:
		return "-"
	case v.Reason == nil || *v.Reason == "":
		return *v.Verdict
	}
	return *v.Verdict + ": " + *v.Reason
}

// printJSON writes one value: for a person on several lines, in a stream on one.
func printJSON(w io.Writer, v any, indent bool) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	if indent {
		e.SetIndent("", "  ")
	}
	return e.Encode(v)
}
