// Package probes measures one machine: each Prober asks one source, the Runner
// asks all of them in their own cadence and merges what they said.
//
// A source that fails, hangs or went silent leaves its fields absent, with the
// reason beside them; it never leaves zeros or old values. Collect may be
// called from any goroutine.
package probes

import (
	"context"

	"flymesh/probes/report"
)

// Prober asks one source about this machine. Probe is called from one
// goroutine, again and again, and must return when ctx ends. A source that
// answers in part returns what it knows and lists the rest in Problems.
type Prober interface {
	Name() string // short, unique among the probes of a machine
	Fields() Field
	Probe(ctx context.Context) (Reading, error)
}

// Field is a set of the things a Prober may measure.
type Field uint8

// What a Prober may measure. CPU and memory may come from several probes: the
// greatest counts. Of the others only one probe may speak.
const (
	CPU      Field = 1 << iota // CPU and Steal
	Memory                     // Memory
	Queue                      // Queue and QueueScope
	InFlight                   // InFlight
	Requests                   // Requests
	Errors                     // Errors
	Latency                    // Latency
)

// fieldNames are in the order of the bits.
var fieldNames = [...]string{"cpu", "memory", "queue", "in_flight", "requests", "errors", "latency"}

// exclusive are the fields that cannot be merged: two queue depths must not be
// added, two request counts may count the same requests.
const exclusive = Queue | InFlight | Requests | Errors | Latency

// Reading is what one probe, or all of them together, found. Absent fields are
// unknown.
type Reading struct {
	CPU, Steal, Memory report.Value
	Queue              report.Value
	QueueScope         report.QueueScope
	InFlight           report.Value
	Requests, Errors   report.Value // of the last minute
	Latency            *report.Sketch
	Replication        *report.Replication // of a Redis

	Ready    *bool    // whether the source takes traffic; nil: it does not say
	Reason   string   // why it is not ready
	Warm     *bool    // whether a real request was answered in this life of the app; nil: it does not say
	Problems []string // why a field that the source should know is absent
	Facts    []Fact   // what else is known, for people: no rule reads it
}

// Fact is one thing that a source tells and no field of the report holds: an
// eviction rate, a role. Names are from a closed set for each probe.
type Fact struct {
	Probe string // set by the Runner
	Name  string // snake_case with its unit, as a metric's
	Value report.Value
	Text  string // instead of a number, from a closed set: "master"
}

// NotReady returns a Reading that says only that the source takes no traffic.
func NotReady(reason string) Reading {
	no := false
	return Reading{Ready: &no, Reason: reason}
}

// Fill sets the measurements of r, absent ones included.
func (m Reading) Fill(r *report.Report) {
	r.CPU, r.Steal, r.Memory = m.CPU, m.Steal, m.Memory
	r.Queue, r.QueueScope, r.InFlight = m.Queue, m.QueueScope, m.InFlight
	r.Requests, r.Errors, r.Latency = m.Requests, m.Errors, m.Latency
	r.Replication = m.Replication
}
