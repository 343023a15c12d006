package leader_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"flymesh/leader/flyapi/flytest"
)

// TestRateOfAllTogether: leaders follow each other within seconds in the middle
// of operations, those that do not lead read the epoch record, machines that
// have just booted look for others, and the API counts all of it together.
func TestRateOfAllTogether(t *testing.T) {
	for _, every := range []time.Duration{300 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second} {
		bubble(t, flytest.DefaultTiming(), func(s *stand) {
			ctx, stop := context.WithCancel(s.t.Context())
			var wg sync.WaitGroup
			defer wg.Wait()
			defer stop()
			for i, v := range s.voters {
				wg.Go(func() { // as a machine does that knows no leader: one after the other
					sleepOr(ctx, time.Duration(i)*3*time.Second)
					for ctx.Err() == nil {
						_ = v.read(ctx) // that it fails changes nothing here
						sleepOr(ctx, 2*time.Second)
					}
				})
			}
			newcomer := s.somebodyAs("flymesh-newcomer")
			defer newcomer.Close()
			wg.Go(func() {
				sleepOr(ctx, 5*time.Second)
				for ctx.Err() == nil {
					_, _ = newcomer.List(ctx, appName) // as above
					sleepOr(ctx, 10*time.Second)
				}
			})
			s.seed("pool", 1, false)
			time.Sleep(10 * time.Second)
			for i := range 40 {
				if i%10 == 0 {
					s.scale(2 + i/10%2)
				}
				s.lead(fmt.Sprintf("v%d", i%3))
				time.Sleep(every)
			}
			s.lead("v0")
			time.Sleep(5 * time.Minute)
			log := s.api.Requests()
			over, refused := aboveRate(log), 0
			for _, r := range log {
				if r.Status == 429 {
					refused++
				}
			}
			t.Logf("leaders every %s: %d calls, %d above the documented rate, %d refused", every, len(log), len(over), refused)
			if len(over)+refused > 0 {
				t.Errorf("%v\n%s", over, s.story())
			}
			if len(s.started()) != 3 {
				t.Errorf("not what was asked for last\n%s", s.story())
			}
		}, func(s *stand) { s.record = true })
	}
}

func sleepOr(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
