package demo

import (
	"io"
	"testing"
	"time"

	"flymesh/raftstore/state"
)

// told is a story that has seen these events of service n8n.
func told(kinds ...string) *story {
	s := &story{follow: &follower{out: &console{w: io.Discard}}, passed: map[string]string{}}
	size := 1
	for i, kind := range kinds {
		from, to := size, size
		switch kind {
		case "up":
			to++
		case "down":
			to--
		case "up_done", "down_done":
			from = size
		}
		s.follow.events = append(s.follow.events, state.Event{
			Index: uint64(i + 1), Kind: kind, Service: "n8n", From: from, To: to, At: time.Unix(int64(i), 0),
		})
		size = to
	}
	return s
}

func TestStepsAcceptsOnlyThePromisedPath(t *testing.T) {
	for name, c := range map[string]struct {
		events []string
		want   bool
	}{
		"promised":        {[]string{"up", "up_done", "up", "up_done"}, true},
		"only one":        {[]string{"up", "up_done"}, false},
		"one unfinished":  {[]string{"up", "up_done", "up"}, false},
		"one more":        {[]string{"up", "up_done", "up", "up_done", "up", "up_done"}, false},
		"one failed":      {[]string{"up", "up_failed", "up", "up_done", "up", "up_done"}, false},
		"down in between": {[]string{"up", "up_done", "down", "down_done", "up", "up_done"}, false},
		"nothing":         {nil, false},
	} {
		if got := told(c.events...).steps("n8n", "up", 1, 2, 3); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestFollowerSaysEventsInSentences(t *testing.T) {
	f := &follower{}
	for want, e := range map[string]state.Event{
		"n8n: +1, 1 -> 2 machines, because cpu 99 % > 80 %":       {Kind: "up", Service: "n8n", From: 1, To: 2, Reason: "cpu 99 % > 80 %"},
		"n8n: -1 done, 1 machine now":                             {Kind: "down_done", Service: "n8n", From: 2, To: 1},
		"n8n: up failed  no machine became ready":                 {Kind: "up_failed", Service: "n8n", Reason: "no machine became ready"},
		"redis: pause  until 2026-11-23T12:00:00Z: I take a look": {Kind: "pause", Service: "redis", Reason: "until 2026-11-23T12:00:00Z: I take a look"},
	} {
		if got := f.line(e); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
