package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"flymesh/agent/api"
	"flymesh/raftstore/state"
)

// followEvery is the pause between two questions of --follow.
const followEvery = 500 * time.Millisecond

type eventsCmd struct {
	JSON   bool   `help:"print one JSON object a line"`
	Follow bool   `help:"go on with what happens next, until Ctrl-C"`
	After  string `default:"0" placeholder:"INDEX" help:"leave out events up to this index"`
}

// Run prints the events, oldest first. With --follow it outlasts leaders and
// agents: it goes on from the last index when somebody answers again.
func (c *eventsCmd) Run(s *session) error {
	last, err := strconv.ParseUint(c.After, 10, 64)
	if err != nil {
		return usage("events --after %s: %q is not the index of an event; use a number such as 17", c.After, c.After)
	}
	head, told := true, false
	for {
		ctx, cancel := context.WithTimeout(s.ctx, 15*time.Second)
		es, err := s.client.Events(ctx, last)
		cancel()
		switch {
		case s.ctx.Err() != nil:
			return nil
		case err != nil && (!c.Follow || !passing(err)):
			return err
		case err != nil:
			if !told {
				fmt.Fprintf(s.err, "agentctl: %s; waiting\n", oneLine(s.explain(err)))
			}
			told = true
		default:
			told = false
			if err := c.print(s.out, es, head); err != nil {
				return err
			}
			head = head && len(es) == 0
			if len(es) > 0 {
				last = es[len(es)-1].Index
			}
		}
		if !c.Follow || !s.sleep(followEvery) {
			return nil
		}
	}
}

// passing says whether an error may be gone at the next try.
func passing(err error) bool {
	var re *api.ResponseError
	return errors.Is(err, api.ErrNoLeader) || !errors.As(err, &re)
}

func (c *eventsCmd) print(w io.Writer, es []state.Event, head bool) error {
	if c.JSON {
		for _, e := range es {
			if err := printJSON(w, e, false); err != nil {
				return err
			}
		}
		return nil
	}
	if len(es) == 0 {
		return nil
	}
	t := newTable(w)
	if head {
		t.row("INDEX", "AT", "KIND", "SERVICE", "MACHINES", "MACHINE", "OP", "BY", "REASON")
	}
	for _, e := range es {
		size := "-"
		switch {
		case e.From != e.To && e.From != 0:
			size = fmt.Sprintf("%d to %d", e.From, e.To)
		case e.To != 0:
			size = fmt.Sprint(e.To)
		}
		t.row(fmt.Sprint(e.Index), e.At.UTC().Format("2006-01-02T15:04:05Z"), e.Kind, e.Service, size, e.Machine, e.Op, e.By, e.Reason)
	}
	return t.flush()
}
