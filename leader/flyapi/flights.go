package flyapi

import (
	"context"
	"errors"
	"sync"

	"flymesh/leader"
)

// flights lets callers share a listing that waits for the rate limiter: the
// loop's own listing, the drivers' and the arbiter's would else queue for one
// request a second. A listing that was sent already is not shared: it may not
// show what the caller did or wants to know of.
type flights struct {
	mu      sync.Mutex // guards waiting
	waiting map[string]*flight
}

// flight is one listing of one app. Its result is valid once done is closed.
type flight struct {
	done      chan struct{}
	out       []wireMachine
	err       error
	abandoned bool // its caller had no more time: the error is nobody else's
}

// share returns the result of a listing of the app that is sent from now on:
// of one that waits to be sent, else of ask, which calls sent before it sends.
func (f *flights) share(ctx context.Context, app string, ask func(sent func()) ([]wireMachine, error)) ([]wireMachine, error) {
	for {
		f.mu.Lock()
		other := f.waiting[app]
		if other == nil {
			own := &flight{done: make(chan struct{})}
			if f.waiting == nil {
				f.waiting = map[string]*flight{}
			}
			f.waiting[app] = own
			f.mu.Unlock()
			defer close(own.done)
			sent := func() { f.leave(app, own) }
			own.out, own.err = ask(sent)
			own.abandoned = ctx.Err() != nil || errors.Is(own.err, errNoTurn)
			sent()
			return own.out, own.err
		}
		f.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, &leader.CloudError{Action: string(ActList), Fault: leader.Retry, Err: ctx.Err()}
		case <-other.done:
		}
		if other.err == nil || !other.abandoned {
			return other.out, other.err
		}
	}
}

// leave ends the sharing of a flight.
func (f *flights) leave(app string, own *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiting[app] == own {
		delete(f.waiting, app)
	}
}
