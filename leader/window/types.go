// Package window keeps what machines reported over the last minutes and turns
// it into one Sample per service and report interval. PURE: now comes from the
// caller; safe for use from one goroutine.
//
// Every voter feeds its own Window with every report, so that a new leader
// goes on with the "for 3 m" clocks where the old one stood.
package window

import (
	"time"

	"flymesh/probes/report"
)

// Interval bounds a value of which a part is missing: Best is what it would be
// if all that is missing were idle, Worst if all that is missing were
// overloaded (+Inf where nothing bounds it).
type Interval struct {
	Best, Worst float64
	Value       report.Value // over what was heard; absent when nothing was, or (p95) too few samples
}

// Sample is the state of one service at one tick.
type Sample struct {
	At        time.Time
	Expected  int      // machines that should have been heard
	Heard     int      // machines that were
	Missing   []string // IDs of the others, sorted; nil when none
	CPU       Interval // mean over the machines
	Memory    Interval
	Queue     Interval // mean per machine (QueueMachine) or the service's one depth (QueueService)
	P95       Interval // quantile 0.95 of the merged sketches, seconds
	P95Count  float64  // requests in the merged sketch
	ErrorRate Interval // errors / requests
	Requests  float64  // in the last minute, over what was heard
	InFlight  report.Value
	// QueueTotal says that Queue is the service's one depth, not a mean.
	QueueTotal bool
}
