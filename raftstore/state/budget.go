package state

import (
	"slices"
	"time"
)

// flapSpan is the time over which reversals are counted.
const flapSpan = time.Hour

// Budget is what a service has used of the limits outside its policy: machine
// time of one UTC day, and turns of direction in the last hour. It is counted
// from committed entries alone, so that it survives every leader.
type Budget struct {
	Day       time.Time     `json:"day,omitzero"`   // begin of the UTC day that Spent is of
	Spent     time.Duration `json:"spent"`          // machine time of Day, up to Since
	Since     time.Time     `json:"since,omitzero"` // from when Running machines cost
	Running   int           `json:"running"`
	Turned    OpKind        `json:"turned,omitempty"`    // direction of the newest step that a rule asked for
	Reversals []time.Time   `json:"reversals,omitempty"` // of the last hour, oldest first
}

// Until returns the budget with the machine time up to now. While nobody
// meters, the machines of the newest reading go on costing. A clock that went
// back books nothing.
func (b Budget) Until(now time.Time) Budget {
	day := now.UTC().Truncate(24 * time.Hour)
	switch {
	case b.Since.IsZero():
		b.Day, b.Spent, b.Since = day, 0, now
	case !now.After(b.Since):
	case day.After(b.Day):
		b.Day, b.Spent, b.Since = day, now.Sub(day)*time.Duration(b.Running), now
	default:
		b.Spent += now.Sub(b.Since) * time.Duration(b.Running)
		b.Since = now
	}
	return b
}

// Turns counts the reversals of the hour before now, and says when the oldest
// of them is no longer among them.
func (b Budget) Turns(now time.Time) (n int, until time.Time) {
	for _, t := range b.Reversals {
		if now.Sub(t) >= flapSpan {
			continue
		}
		if n++; n == 1 {
			until = t.Add(flapSpan)
		}
	}
	return n, until
}

// turn books a step that was done. What a person asked for is no flapping, and
// what comes after it is none either; nor is the replacement of a machine that
// was lost.
func (b *Budget) turn(o *Op, now time.Time) {
	b.Reversals = slices.DeleteFunc(b.Reversals, func(t time.Time) bool { return now.Sub(t) >= flapSpan })
	switch {
	case o.Manual:
		b.Turned = ""
	case o.Rule:
		if b.Turned != "" && b.Turned != o.Kind {
			b.Reversals = append(b.Reversals, now)
		}
		b.Turned = o.Kind
	}
}
