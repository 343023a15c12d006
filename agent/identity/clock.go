package identity

import (
	"context"
	"time"
)

// WatchClock calls onGap whenever this process seems to have stood still or
// the clock to have jumped by more than limit, until ctx ends. It looks every
// so often: twice each limit or more.
//
// Two signs count. The monotonic clock ran on, but the tick came late: the
// process was stopped or starved. The wall clock moved against the monotonic
// one, which stands still while a machine is suspended: it was suspended, or
// somebody set the clock. onGap gets the larger of the two and runs on the
// caller's goroutine; the time it takes does not count.
func WatchClock(ctx context.Context, every, limit time.Duration, onGap func(gap time.Duration)) {
	start := time.Now()
	watchClock(ctx, every, limit, onGap, func() reading {
		now := time.Now()
		return reading{mono: now.Sub(start), wall: now.Round(0)}
	})
}

// reading is one look at both clocks.
type reading struct {
	mono time.Duration // since some start
	wall time.Time     // without a monotonic part
}

// gap is the time that is missing between two readings which should be every
// apart, by whichever sign shows more.
func gap(last, now reading, every time.Duration) time.Duration {
	ran := now.mono - last.mono
	late := max(0, ran-every)
	drift := (now.wall.Sub(last.wall) - ran).Abs()
	return max(late, drift)
}

func watchClock(ctx context.Context, every, limit time.Duration, onGap func(time.Duration), read func() reading) {
	t := time.NewTicker(every)
	defer t.Stop()
	last := read()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now := read()
		if g := gap(last, now, every); g > limit && ctx.Err() == nil {
			onGap(g)
			now = read()
		}
		last = now
	}
}
