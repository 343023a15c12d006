package flyapi

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// The API allows 1 request/s with a burst of 3 per action and machine (or
// app), and 5/s with a burst of 10 for get. The server counts arrivals, the
// client departures: the pace is kept a tenth below, and get's burst too, so that
// a first request that was slow on the way does not make a later one come too
// early.
const (
	pace      rate.Limit = 0.9
	paceBurst            = 3
	getPace   rate.Limit = 4.5
	getBurst             = 8
	// limiterIdle is after how long without a call a limiter is full again.
	limiterIdle = 5 * time.Second
	// limitersKept is how many limiters there may be before idle ones go.
	limitersKept = 256
)

// limits holds one token bucket per action and machine or app.
type limits struct {
	mu sync.Mutex // guards m
	m  map[limitKey]*limit
}

type limitKey struct {
	action Action
	id     string
}

type limit struct {
	*rate.Limiter
	used time.Time
}

// wait blocks until the call may be sent, or until it is clear that ctx ends
// before that.
func (l *limits) wait(ctx context.Context, a Action, id string) error {
	return l.bucket(limitKey{a, id}).Wait(ctx)
}

func (l *limits) bucket(k limitKey) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	b, ok := l.m[k]
	if !ok {
		if len(l.m) >= limitersKept {
			for k, b := range l.m {
				if now.Sub(b.used) > limiterIdle && b.TokensAt(now) >= float64(b.Burst()) {
					delete(l.m, k)
				}
			}
		}
		b = &limit{Limiter: rate.NewLimiter(pace, paceBurst)}
		if k.action == ActGet {
			b.Limiter = rate.NewLimiter(getPace, getBurst)
		}
		if l.m == nil {
			l.m = map[limitKey]*limit{}
		}
		l.m[k] = b
	}
	b.used = now
	return b.Limiter
}
