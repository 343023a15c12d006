package demo

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"flymesh/raftstore/state"
)

// follower tells the mesh's events as they come and keeps them.
type follower struct {
	mesh *fleet
	out  *console

	mu     sync.Mutex
	events []state.Event // guarded by mu; oldest first
}

// run asks for new events until ctx ends.
func (f *follower) run(ctx context.Context) {
	for ctx.Err() == nil {
		f.mu.Lock()
		after := uint64(0)
		if n := len(f.events); n > 0 {
			after = f.events[n-1].Index
		}
		f.mu.Unlock()
		fresh, err := f.mesh.events(ctx, after)
		if err == nil {
			for _, e := range fresh {
				if line := f.line(e); line != "" {
					f.out.say("%s", line)
				}
			}
			f.mu.Lock()
			f.events = append(f.events, fresh...)
			f.mu.Unlock()
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// all returns the events so far.
func (f *follower) all() []state.Event {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.events)
}

// count returns how many events of the kind a service had.
func (f *follower) count(service, kind string) int {
	n := 0
	for _, e := range f.all() {
		if e.Service == service && e.Kind == kind {
			n++
		}
	}
	return n
}

// line says an event in a sentence; empty: not worth a line here.
func (f *follower) line(e state.Event) string {
	m := f.name(e.Machine)
	switch e.Kind {
	case "leader":
		return fmt.Sprintf("mesh: the agent of %s is the leader (%s)", m, e.Reason)
	case "pin":
		return fmt.Sprintf("%s: %s is the primary: never removed", e.Service, m)
	case "admit":
		return fmt.Sprintf("%s: %s may take traffic (%s)", e.Service, m, e.Reason)
	case "up", "down":
		return fmt.Sprintf("%s: %s, %d -> %d machines, because %s", e.Service, step(e.Kind), e.From, e.To, e.Reason)
	case "step":
		return fmt.Sprintf("%s:   %s %s", e.Service, m, e.Reason)
	case "up_done", "down_done":
		return fmt.Sprintf("%s: %s done, %d machine%s now%s", e.Service, step(e.Kind), e.To, plural(e.To), f.took(e))
	}
	return strings.TrimSpace(fmt.Sprintf("%s: %s %s %s", e.Service, strings.ReplaceAll(e.Kind, "_", " "), m, e.Reason))
}

// took says how long the operation that e ends was under way.
func (f *follower) took(e state.Event) string {
	for _, b := range f.all() {
		if b.Op == e.Op && (b.Kind == "up" || b.Kind == "down") {
			return fmt.Sprintf(" (took %.1fs)", e.At.Sub(b.At).Seconds())
		}
	}
	return ""
}

func step(kind string) string {
	if strings.HasPrefix(kind, "up") {
		return "+1"
	}
	return "-1"
}

func plural(n int) string {
	if n == 1 {
		return ""
	}
	return "s"
}

// name is a machine as a person tells it from the others: its service and the
// begin of its ID.
func (f *follower) name(id string) string {
	if id == "" {
		return ""
	}
	for _, m := range f.mesh.emulator.Machines() {
		if m.ID == id {
			return m.Service + "/" + id[:min(6, len(id))]
		}
	}
	return id
}
