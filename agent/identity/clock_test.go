package identity

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestGap(t *testing.T) {
	wall := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	last := reading{mono: time.Hour, wall: wall}
	for _, tt := range []struct {
		name       string
		mono, wall time.Duration // since last
		want       time.Duration
	}{
		{"on time", 100 * time.Millisecond, 100 * time.Millisecond, 0},
		{"early tick", 60 * time.Millisecond, 60 * time.Millisecond, 0},
		{"frozen process", 5100 * time.Millisecond, 5100 * time.Millisecond, 5 * time.Second},
		{"suspended machine: the monotonic clock stood still", 100 * time.Millisecond, 600100 * time.Millisecond, 10 * time.Minute},
		{"clock set back", 100 * time.Millisecond, -2900 * time.Millisecond, 3 * time.Second},
		{"frozen, then suspended: the larger counts", 2100 * time.Millisecond, 9100 * time.Millisecond, 7 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			now := reading{mono: last.mono + tt.mono, wall: last.wall.Add(tt.wall)}
			if got := gap(last, now, 100*time.Millisecond); got != tt.want {
				t.Errorf("gap = %v, want %v", got, tt.want)
			}
		})
	}
}

// TestWatchClockReportsStalls stalls the watcher where it reads the clocks, as
// a stopped process would, and shifts its wall clock, as a suspend would.
func TestWatchClockReportsStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const every, limit = 100 * time.Millisecond, time.Second
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		start := time.Now()
		looks, shift := 0, time.Duration(0)
		read := func() reading {
			switch looks++; looks {
			case 20:
				time.Sleep(900 * time.Millisecond) // under the limit
			case 40:
				time.Sleep(4 * time.Second)
			case 60:
				shift = time.Hour
			}
			now := time.Now()
			return reading{mono: now.Sub(start), wall: now.Round(0).Add(shift)}
		}
		var gaps []time.Duration
		watchClock(ctx, every, limit, func(g time.Duration) {
			gaps = append(gaps, g)
			time.Sleep(3 * time.Second) // a slow answer is no gap of its own
		}, read)
		if d := cmp.Diff([]time.Duration{4 * time.Second, time.Hour}, gaps); d != "" {
			t.Errorf("gaps (-want +got):\n%s", d)
		}
	})
}

func TestWatchClockIsQuietAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		WatchClock(ctx, 100*time.Millisecond, time.Second, func(g time.Duration) { t.Errorf("gap of %v in a quiet hour", g) })
		if ctx.Err() == nil {
			t.Error("returned before its context ended")
		}
	})
}
