package flyapi

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"flymesh/leader"
)

// TestRateIsKept throws more calls at the client than the API allows and
// counts, as the API does, with arrivals that are up to 80 ms late.
func TestRateIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			mu      sync.Mutex // guards below
			buckets = map[string]*rate.Limiter{}
			n, over int
		)
		c := newClient(t, Options{Transport: transport(func(r *http.Request) (*http.Response, error) {
			mu.Lock()
			late := time.Duration(n*37%80) * time.Millisecond
			n++
			mu.Unlock()
			time.Sleep(late)
			mu.Lock()
			defer mu.Unlock()
			key := r.Method + r.URL.Path
			b := buckets[key]
			if b == nil {
				b = rate.NewLimiter(1, 3)
				if r.Method == http.MethodGet && strings.Contains(key, "/machines/") && !strings.HasSuffix(key, "/lease") {
					b = rate.NewLimiter(5, 10)
				}
				buckets[key] = b
			}
			if !b.Allow() {
				over++
			}
			if strings.HasSuffix(r.URL.Path, "/machines") {
				return answer(200, `[]`), nil
			}
			return answer(200, `{}`), nil
		})})
		ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		loop := func(call func(context.Context) error) {
			wg.Go(func() {
				for ctx.Err() == nil {
					if err := call(ctx); err != nil && leader.FaultOf(err) == leader.Retry && !sleep(ctx, time.Second) {
						return
					}
				}
			})
		}
		for range 3 {
			loop(func(ctx context.Context) error { _, err := c.List(ctx, testApp); return err })
			loop(func(ctx context.Context) error { return c.Start(ctx, testApp, "m1") })
			loop(func(ctx context.Context) error { return c.Start(ctx, testApp, "m2") })
			loop(func(ctx context.Context) error { return c.SetMetadata(ctx, testApp, "m1", "k", "v") })
			loop(func(ctx context.Context) error { _, err := c.Get(ctx, testApp, "m1"); return err })
		}
		wg.Wait()
		if over > 0 {
			t.Errorf("%d of %d requests were above the documented rate", over, n)
		}
		// 4 slow keys at 0.9/s and one at 4/s for 40 s, with their bursts.
		if n < 290 {
			t.Errorf("only %d requests in 40 s: the limiter holds back too much", n)
		}
	})
}

// TestLimiterWaitsWithinContext gives up at once when the wait would be longer
// than ctx, and says that nothing happened.
func TestLimiterWaitsWithinContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, Options{Transport: transport(func(*http.Request) (*http.Response, error) { return answer(200, `{}`), nil })})
		for range paceBurst {
			if err := c.Start(t.Context(), testApp, "m1"); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if err := c.Start(ctx, testApp, "m1"); leader.FaultOf(err) != leader.Retry {
			t.Errorf("got %v, want fault retry", err)
		}
		if err := c.Start(t.Context(), testApp, "m1"); err != nil {
			t.Errorf("with time to wait: %v", err)
		}
	})
}

// TestLimiterForgets keeps no bucket of every machine that ever was.
func TestLimiterForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l limits
		for i := range 10 * limitersKept {
			if err := l.wait(t.Context(), ActGet, fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if len(l.m) > limitersKept {
			t.Errorf("%d buckets are kept, want at most %d", len(l.m), limitersKept)
		}
	})
}

// TestDeadlines calls a server that never answers.
func TestDeadlines(t *testing.T) {
	calls := map[Action]func(context.Context, *Client) error{
		ActList:           func(ctx context.Context, c *Client) error { _, err := c.List(ctx, testApp); return err },
		ActGet:            func(ctx context.Context, c *Client) error { _, err := c.Get(ctx, testApp, "m1"); return err },
		ActCreate:         func(ctx context.Context, c *Client) error { return launch(ctx, c) },
		ActStart:          func(ctx context.Context, c *Client) error { return c.Start(ctx, testApp, "m1") },
		ActStop:           func(ctx context.Context, c *Client) error { return c.Stop(ctx, testApp, "m1", 0) },
		ActSuspend:        func(ctx context.Context, c *Client) error { return c.Suspend(ctx, testApp, "m1") },
		ActDestroy:        func(ctx context.Context, c *Client) error { return c.Destroy(ctx, testApp, "m1") },
		ActCordon:         func(ctx context.Context, c *Client) error { return c.Cordon(ctx, testApp, "m1") },
		ActUncordon:       func(ctx context.Context, c *Client) error { return c.Uncordon(ctx, testApp, "m1") },
		ActSetMetadata:    func(ctx context.Context, c *Client) error { return c.SetMetadata(ctx, testApp, "m1", "k", "v") },
		ActDeleteMetadata: func(ctx context.Context, c *Client) error { return c.SetMetadata(ctx, testApp, "m1", "k", "") },
		ActReleaseLease:   func(ctx context.Context, c *Client) error { return c.releaseLease(ctx, testApp, "m1", "n") },
		ActLease: func(ctx context.Context, c *Client) error {
			_, err := c.lease(ctx, testApp, "m1", time.Minute, "test")
			return err
		},
		ActFindLease: func(ctx context.Context, c *Client) error {
			_, _, err := c.findLease(ctx, testApp, "m1")
			return err
		},
	}
	hang := transport(func(r *http.Request) (*http.Response, error) {
		<-r.Context().Done()
		return nil, r.Context().Err()
	})
	for act, call := range calls {
		for _, own := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				c := newClient(t, Options{Transport: hang})
				ctx, limit := t.Context(), act.deadline()
				if !own {
					limit = 700 * time.Millisecond
					short, cancel := context.WithTimeout(ctx, limit)
					defer cancel()
					ctx = short
				}
				start := time.Now()
				err := call(ctx, c)
				// The look at a lease afterwards has a deadline of its own.
				if took := time.Since(start); took > limit+lookAfter || !own && took > limit {
					t.Errorf("%s took %s, want at most %s", act, took, limit)
				}
				want := leader.Unknown
				if act.reads() {
					want = leader.Retry
				}
				if leader.FaultOf(err) != want {
					t.Errorf("%s: got %v, want fault %s", act, err, want)
				}
			})
		}
	}
}

// TestListingsAreShared asks for many listings at once: those that wait for the
// limiter share one, and every one shows what was there when it was asked for.
func TestListingsAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent atomic.Int32
		began := time.Now()
		c := newClient(t, Options{Transport: transport(func(*http.Request) (*http.Response, error) {
			sent.Add(1)
			name := time.Since(began).Milliseconds()
			time.Sleep(100 * time.Millisecond) // on its way back
			return answer(200, fmt.Sprintf(`[{"id":"m1","name":"%d"}]`, name)), nil
		})})
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 20 * time.Millisecond)
				asked := time.Since(began).Milliseconds()
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(2+i%5)*time.Second)
				defer cancel()
				ms, err := c.List(ctx, testApp)
				if err != nil {
					t.Errorf("call %d: %v", i, err)
					return
				}
				if told := mustAtoi(t, ms[0].Name); told < asked {
					t.Errorf("call %d asked at %d ms and got the listing of %d ms", i, asked, told)
				}
			})
		}
		wg.Wait()
		if n := sent.Load(); n > 8 {
			t.Errorf("%d requests were sent for 200 calls in 4 s, want at most 8", n)
		}
	})
}

// TestSharedListingOutlivesItsCaller takes over when the caller who waits for
// the limiter goes away.
func TestSharedListingOutlivesItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, Options{Transport: transport(func(*http.Request) (*http.Response, error) { return answer(200, `[]`), nil })})
		for range listBurst {
			if _, err := c.List(t.Context(), testApp); err != nil {
				t.Fatal(err)
			}
		}
		first, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.List(first, testApp); err == nil {
				t.Error("the call of a context that ended succeeded")
			}
		})
		synctest.Wait()
		wg.Go(func() {
			if _, err := c.List(t.Context(), testApp); err != nil {
				t.Errorf("the call that shared it: %v", err)
			}
		})
		synctest.Wait()
		cancel()
		wg.Wait()

		// One who has no time for the wait fails alone.
		short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		wg.Go(func() {
			if _, err := c.List(short, testApp); err == nil {
				t.Error("the call without time succeeded")
			}
		})
		for range 3 {
			wg.Go(func() {
				if _, err := c.List(t.Context(), testApp); err != nil {
					t.Errorf("a call with time: %v", err)
				}
			})
		}
		wg.Wait()
	})
}

func mustAtoi(t *testing.T, s string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
