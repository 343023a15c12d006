package flytest

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// limiter is the API's rate limit: per action and machine (or app) 1/s with a
// burst of 3, for get 5/s with a burst of 10.
type limiter struct {
	mu   sync.Mutex // guards keys
	keys map[limitKey]*rate.Limiter
}

type limitKey struct{ action, of string }

func (l *limiter) allow(action, of string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := limitKey{action, of}
	r := l.keys[k]
	if r == nil {
		r = rate.NewLimiter(1, 3)
		if action == "get" {
			r = rate.NewLimiter(5, 10)
		}
		if l.keys == nil {
			l.keys = make(map[limitKey]*rate.Limiter)
		}
		l.keys[k] = r
	}
	return r.AllowN(time.Now(), 1)
}
