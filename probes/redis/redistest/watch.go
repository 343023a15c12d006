package redistest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Write is one that a server took.
type Write struct {
	Key        string
	Begin, End time.Time
}

// Watch is a client of several servers that tries to write to each of them
// every few milliseconds, whatever their role, and keeps what was taken.
type Watch struct {
	mu    sync.Mutex // guards taken
	taken map[string][]Write
	stop  func()
}

// noLines takes the library's lines about servers that are meant to be gone.
type noLines struct{}

// Printf prints nothing.
func (noLines) Printf(context.Context, string, ...any) {}

var quiet sync.Once

// Poll begins to write.
func Poll(t *testing.T, addrs ...string) *Watch {
	t.Helper()
	quiet.Do(func() { redis.SetLogger(noLines{}) })
	w := &Watch{taken: map[string][]Write{}}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, addr := range addrs {
		c := redis.NewClient(&redis.Options{
			Addr: addr, MaxRetries: -1, DialerRetries: 1, DialTimeout: 200 * time.Millisecond, ReadTimeout: time.Second, ContextTimeoutEnabled: true,
		})
		wg.Go(func() {
			defer c.Close()
			for i := 0; ctx.Err() == nil; i++ {
				x := Write{Key: fmt.Sprintf("poll:%s:%d", addr, i), Begin: time.Now()}
				if c.Set(ctx, x.Key, "x", 0).Err() == nil {
					x.End = time.Now()
					w.mu.Lock()
					w.taken[addr] = append(w.taken[addr], x)
					w.mu.Unlock()
				}
				time.Sleep(3 * time.Millisecond)
			}
		})
	}
	w.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(w.stop)
	return w
}

// By is how many writes a server took so far.
func (w *Watch) By(addr string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.taken[addr])
}

// Turn ends the watch of one change of the primary. It fails if the first
// server took a write that began after the second had taken one: then both
// were writable at a time. gap is how long nobody took any; of what the first
// took, lost are those that the second has not.
func (w *Watch) Turn(t *testing.T, first, second string) (gap time.Duration, taken, lost int) {
	t.Helper()
	w.stop()
	a, b := w.taken[first], w.taken[second]
	if len(a) == 0 || len(b) == 0 {
		t.Fatalf("writes taken: %d and %d", len(a), len(b))
	}
	if d := a[len(a)-1].Begin.Sub(b[0].End); d > 0 {
		t.Errorf("two writable primaries for %s", d)
	}
	c := redis.NewClient(&redis.Options{Addr: second})
	defer c.Close()
	for _, x := range a {
		n, err := c.Exists(t.Context(), x.Key).Result()
		if err != nil {
			t.Fatal(err)
		}
		lost += 1 - int(n)
	}
	return b[0].End.Sub(a[len(a)-1].End), len(a), lost
}
