package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"flymesh/agent/api"
	"flymesh/cmd/agentctl/emulator"
	"flymesh/leader/decide"
	"flymesh/raftstore/state"
)

// Mesh is what one agent answers over its socket.
type Mesh interface {
	Status(ctx context.Context) (api.Status, error)
	Why(ctx context.Context, service string) (decide.Verdict, error)
	Events(ctx context.Context, after uint64) ([]state.Event, error)
	History(ctx context.Context, q api.HistoryQuery) (api.History, error)
}

// askTimeout bounds one question to one agent.
const askTimeout = 2 * time.Second

// fleet asks whichever agent of the demo answers: any of them can tell about
// the whole mesh. Safe for use from many goroutines.
type fleet struct {
	emulator *emulator.Emulator
	dial     func(socket string) Mesh

	mu   sync.Mutex
	last string // guarded by mu; the machine that answered last
}

// ask puts a question to one agent after the other until one answers.
func ask[T any](ctx context.Context, f *fleet, question func(context.Context, Mesh) (T, error)) (T, error) {
	var none T
	machines := f.running()
	f.mu.Lock()
	last := f.last
	f.mu.Unlock()
	slices.SortStableFunc(machines, func(a, b emulator.Machine) int {
		return rank(a.ID == last) - rank(b.ID == last)
	})
	err := errors.New("no machine runs")
	for _, m := range machines {
		one, cancel := context.WithTimeout(ctx, askTimeout)
		answer, failed := question(one, f.dial(m.Socket))
		cancel()
		if failed == nil {
			f.mu.Lock()
			f.last = m.ID
			f.mu.Unlock()
			return answer, nil
		}
		err = fmt.Errorf("ask agent of %s: %w", m.ID, failed)
		if ctx.Err() != nil {
			break
		}
	}
	return none, err
}

func rank(first bool) int {
	if first {
		return 0
	}
	return 1
}

// running lists the machines that are started, with an agent to talk to.
func (f *fleet) running() []emulator.Machine {
	return slices.DeleteFunc(f.emulator.Machines(), func(m emulator.Machine) bool {
		return m.State != "started" || m.Socket == ""
	})
}

var errNobodyLeads = errors.New("no leader is known")

// status is the leader's view of the mesh.
func (f *fleet) status(ctx context.Context) (api.Status, error) {
	return ask(ctx, f, func(ctx context.Context, m Mesh) (api.Status, error) {
		s, err := m.Status(ctx)
		if err == nil && s.Leader == nil {
			return s, errNobodyLeads
		}
		return s, err
	})
}

func (f *fleet) why(ctx context.Context, service string) (decide.Verdict, error) {
	return ask(ctx, f, func(ctx context.Context, m Mesh) (decide.Verdict, error) { return m.Why(ctx, service) })
}

func (f *fleet) events(ctx context.Context, after uint64) ([]state.Event, error) {
	return ask(ctx, f, func(ctx context.Context, m Mesh) ([]state.Event, error) { return m.Events(ctx, after) })
}

// service finds one service in a status.
func service(s api.Status, name string) api.ServiceStatus {
	i := slices.IndexFunc(s.Services, func(x api.ServiceStatus) bool { return x.Name == name })
	if i < 0 {
		return api.ServiceStatus{Name: name}
	}
	return s.Services[i]
}

// is says whether a number that may be unknown is known and has this value.
func is(n *int, want int) bool { return n != nil && *n == want }

// until polls ok until it says true, ctx ends or the time is over; the error
// then says what was waited for and what ok said last was missing.
func until(ctx context.Context, what string, limit time.Duration, ok func(context.Context) (bool, string)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	missing := ""
	for {
		done, why := ok(ctx)
		if done {
			return nil
		}
		if why != "" && ctx.Err() == nil {
			missing = why
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return fmt.Errorf("waited %s for %s: %s", short(limit), what, missing)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
