package flyapi

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// The API allows 1 request/s with a burst of 3 per action and machine (or
// app), and 5/s with a burst of 10 for get, to all clients together. They cannot
// ask each other, so each takes a part that leaves room for others: for one who
// leads a second later, and for those who read the epoch record or look for
// others meanwhile. Listings are what everybody may ask for, so there it is one
// at a time. The pace is a tenth below what is allowed, for the server counts
// arrivals, the client departures.
const (
	pace      rate.Limit = 0.9
	paceBurst            = 2
	listBurst            = 1
	getPace   rate.Limit = 4
	getBurst             = 6
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
		switch k.action {
		case ActGet:
			b.Limiter = rate.NewLimiter(getPace, getBurst)
		case ActList:
			b.Limiter = rate.NewLimiter(pace, listBurst)
		}
		if l.m == nil {
			l.m = map[limitKey]*limit{}
		}
		l.m[k] = b
	}
	b.used = now
	return b.Limiter
}
