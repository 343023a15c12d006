// Package history keeps a day of what services and machines did, one
// aggregate a minute, in bounded memory. PURE: now comes from the caller; safe
// for use from one goroutine.
//
// Every voter keeps its own, fed from its window; a new voter copies the
// leader's. Columns are single precision and rings are full size from the
// start, so that what a service costs is known: see Bytes.
package history

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"time"

	"flymesh/leader/window"
	"flymesh/probes/report"
)

// Length is how many aggregates are kept: a day of minutes.
const Length = 24 * 60

// Bounds of what is kept besides. What was silent for longest goes first.
const (
	MaxServices = 200
	MaxMachines = 500
)

// Row is one interval of one service. What was not known is absent.
type Row struct {
	At       time.Time    `json:"at"` // begin of the interval
	Expected int          `json:"expected"`
	Heard    int          `json:"heard"`
	Requests report.Value `json:"requests_per_second"`
	P95      report.Value `json:"p95_seconds"`
	Samples  report.Value `json:"p95_samples"`
	Errors   report.Value `json:"error_ratio"`
	Queue    report.Value `json:"queue"`
	CPU      report.Value `json:"cpu_ratio"`
	Memory   report.Value `json:"memory_ratio"`
}

// MachineRow is one interval of one machine.
type MachineRow struct {
	At     time.Time    `json:"at"`
	CPU    report.Value `json:"cpu_ratio"`
	Memory report.Value `json:"memory_ratio"`
	Queue  report.Value `json:"queue"`
}

// The columns of a service and of a machine.
const (
	colExpected = iota
	colHeard
	colRequests
	colP95
	colSamples
	colErrors
	colQueue
	colCPU
	colMemory
	serviceCols
)

const (
	colMCPU = iota
	colMMemory
	colMQueue
	machineCols
)

// ring is Length intervals of some columns. Slot n holds the interval whose
// number is n modulo Length, if its number in at says so.
type ring struct {
	cols int
	at   []uint32  // number of the interval in each slot; 0: none
	x    []float32 // Length * cols; NaN: absent
	last uint32    // newest interval
	open []mean    // of interval last, which is not over
}

type mean struct{ sum, n float64 }

func newRing(cols int) *ring {
	r := &ring{cols: cols, at: make([]uint32, Length), x: make([]float32, Length*cols), open: make([]mean, cols)}
	return r
}

// add counts values into interval n. An interval shows the means so far.
func (r *ring) add(n uint32, values []report.Value) {
	if n < r.last {
		return // the clock went back; what is kept stays
	}
	if n > r.last {
		r.last = n
		clear(r.open)
	}
	slot := int(n % Length)
	r.at[slot] = n
	for i, v := range values {
		if v.OK && !math.IsNaN(v.X) && !math.IsInf(v.X, 0) {
			r.open[i].sum += v.X
			r.open[i].n++
		}
		x := math.NaN()
		if r.open[i].n > 0 {
			x = r.open[i].sum / r.open[i].n
		}
		r.x[slot*r.cols+i] = float32(x)
	}
}

// put sets a whole interval, of another voter, unless it is known here.
func (r *ring) put(n uint32, values []float32) {
	slot := int(n % Length)
	if n == 0 || r.at[slot] >= n || n >= r.last && r.last != 0 {
		return
	}
	r.at[slot] = n
	copy(r.x[slot*r.cols:(slot+1)*r.cols], values)
}

// newest is the number of the newest interval; 0: there is none.
func (r *ring) newest() uint32 { return max(r.last, slices.Max(r.at)) }

// each calls f with every interval from a number on, oldest first.
func (r *ring) each(from uint32, f func(n uint32, x []float32)) {
	newest := r.newest()
	if newest >= Length && from <= newest-Length {
		from = newest - Length + 1
	}
	for n := uint64(max(from, 1)); n <= uint64(newest); n++ { // wider: the newest may be the last there is
		if slot := int(n % Length); r.at[slot] == uint32(n) {
			f(uint32(n), r.x[slot*r.cols:(slot+1)*r.cols])
		}
	}
}

// History is a day of services and machines.
type History struct {
	step     time.Duration // length of an interval
	services map[string]*ring
	machines map[string]*ring
	owner    map[string]string // machine -> service
}

// covers is how many report intervals the counts of a report, and so an
// interval of the history, are of: a minute at the usual 5 s.
const covers = 12

// Of returns one sample as a row.
func Of(s window.Sample, every time.Duration) Row {
	r := Row{
		At: s.At.UTC(), Expected: s.Expected, Heard: s.Heard, P95: s.P95.Value, Errors: s.ErrorRate.Value,
		Queue: s.Queue.Value, CPU: s.CPU.Value, Memory: s.Memory.Value,
	}
	if s.Heard > 0 {
		r.Requests, r.Samples = report.Of(s.Requests/(covers*every).Seconds()), report.Of(s.P95Count)
	}
	return r
}

// New returns an empty History for a report interval. At the usual 5 s an
// interval is a minute.
func New(every time.Duration) *History {
	return &History{step: covers * every, services: map[string]*ring{}, machines: map[string]*ring{}, owner: map[string]string{}}
}

// Step is the length of an interval.
func (h *History) Step() time.Duration { return h.step }

func (h *History) number(t time.Time) uint32 {
	if t.Unix() <= 0 {
		return 0
	}
	return uint32(t.UnixNano() / int64(h.step))
}

func (h *History) time(n uint32) time.Time { return time.Unix(0, int64(n)*int64(h.step)).UTC() }

// Add takes one sample of a service in.
func (h *History) Add(service string, s window.Sample) {
	r := h.services[service]
	if r == nil {
		h.room(h.services, MaxServices)
		r = newRing(serviceCols)
		h.services[service] = r
	}
	row := Of(s, h.step/covers)
	v := [serviceCols]report.Value{
		colExpected: report.Of(float64(row.Expected)), colHeard: report.Of(float64(row.Heard)), colRequests: row.Requests,
		colP95: row.P95, colSamples: row.Samples, colErrors: row.Errors, colQueue: row.Queue, colCPU: row.CPU, colMemory: row.Memory,
	}
	r.add(h.number(s.At), v[:])
}

// AddMachine takes what one machine says of itself in.
func (h *History) AddMachine(now time.Time, rep report.Report) {
	r := h.machines[rep.Machine]
	if r == nil {
		h.room(h.machines, MaxMachines)
		r = newRing(machineCols)
		h.machines[rep.Machine] = r
	}
	h.owner[rep.Machine] = rep.Service
	r.add(h.number(now), []report.Value{colMCPU: rep.CPU, colMMemory: rep.Memory, colMQueue: rep.Queue})
}

// room makes place for one more, at the cost of what was silent for longest.
func (h *History) room(rings map[string]*ring, most int) {
	for len(rings) >= most {
		names := slices.Sorted(maps.Keys(rings))
		oldest := slices.MinFunc(names, func(a, b string) int { return cmp.Compare(rings[a].newest(), rings[b].newest()) })
		delete(rings, oldest)
		delete(h.owner, oldest)
	}
}

// Rows returns the intervals of a service that end after since, oldest first.
func (h *History) Rows(service string, since time.Time) []Row {
	rows := []Row{}
	r := h.services[service]
	if r == nil {
		return rows
	}
	r.each(h.number(since), func(n uint32, x []float32) {
		rows = append(rows, Row{
			At: h.time(n), Expected: round(x[colExpected]), Heard: round(x[colHeard]), Requests: value(x[colRequests]),
			P95: value(x[colP95]), Samples: value(x[colSamples]), Errors: value(x[colErrors]), Queue: value(x[colQueue]),
			CPU: value(x[colCPU]), Memory: value(x[colMemory]),
		})
	})
	return rows
}

// MachineRows returns the intervals of a machine that end after since.
func (h *History) MachineRows(machine string, since time.Time) []MachineRow {
	rows := []MachineRow{}
	r := h.machines[machine]
	if r == nil {
		return rows
	}
	r.each(h.number(since), func(n uint32, x []float32) {
		rows = append(rows, MachineRow{At: h.time(n), CPU: value(x[colMCPU]), Memory: value(x[colMMemory]), Queue: value(x[colMQueue])})
	})
	return rows
}

// MachinesOf returns the machines of a service that are remembered, sorted.
func (h *History) MachinesOf(service string) []string {
	var out []string
	for _, m := range slices.Sorted(maps.Keys(h.machines)) {
		if h.owner[m] == service {
			out = append(out, m)
		}
	}
	return out
}

// Bytes is what the rings take.
func (h *History) Bytes() int {
	return len(h.services)*Length*(4+4*serviceCols) + len(h.machines)*Length*(4+4*machineCols)
}

func round(x float32) int {
	if x != x {
		return 0
	}
	return int(math.Round(float64(x)))
}

// value drops the digits that single precision made up.
func value(x float32) report.Value {
	if x != x {
		return report.Value{}
	}
	if x == 0 {
		return report.Of(0)
	}
	scale := math.Pow(10, 5-math.Floor(math.Log10(math.Abs(float64(x)))))
	return report.Of(math.Round(float64(x)*scale) / scale)
}
