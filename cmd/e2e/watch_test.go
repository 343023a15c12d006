package e2e

import (
	"context"
	"sync"
	"time"

	"flymesh/agent/api"
)

// watch asks every agent who leads, all the time.
type watch struct {
	m    *mesh
	stop func()

	mu   sync.Mutex  // guards led
	led  []time.Time // when a leader has answered for the mesh
	last api.Status
}

func newWatch(m *mesh) *watch {
	ctx, cancel := context.WithCancel(context.Background())
	w := &watch{m: m}
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			w.look(ctx)
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	w.stop = func() { cancel(); wg.Wait() }
	return w
}

// look asks all and returns at the first leader's own word.
func (w *watch) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	ms := w.m.running()
	answers := make(chan api.Status, len(ms))
	var wg sync.WaitGroup
	for _, x := range ms {
		wg.Go(func() {
			began := time.Now()
			if s, err := client(x).Status(ctx); err == nil && s.Leader != nil && s.From == s.Leader.Machine && time.Since(began) < 2*time.Second {
				answers <- s
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case s := <-answers:
		w.mu.Lock()
		w.led, w.last = append(w.led, time.Now()), s
		w.mu.Unlock()
		cancel()
	case <-done:
	}
	<-done
}

// gap returns the longest time since from in which no leader answered, and
// what is usual: the time of a question.
func (w *watch) gap(from time.Time) float64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	longest, at := time.Duration(0), from
	for _, t := range w.led {
		if t.Before(from) {
			continue
		}
		longest, at = max(longest, t.Sub(at)), t
	}
	return max(longest, time.Since(at)).Seconds()
}
