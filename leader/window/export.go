package window

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"flymesh/probes/report"
)

// exportVersion is the format that Export writes and Import takes.
const exportVersion = 1

// The exported form. Times are ages, so that the clocks of the two machines
// need not agree; an absent bound is infinite.
type (
	exported struct {
		Version  int               `json:"v"`
		Machines []exportedMachine `json:"machines"`
		Services []exportedService `json:"services"`
	}
	exportedMachine struct {
		ID      string `json:"id"`
		Service string `json:"service"`
		AgeMS   int64  `json:"age_ms"` // since it was heard
	}
	exportedService struct {
		Name    string           `json:"name"`
		Samples []exportedSample `json:"samples"` // oldest first
	}
	exportedSample struct {
		AgeMS      int64            `json:"age_ms"`
		Heard      int              `json:"heard"`
		Missing    []string         `json:"missing,omitempty"`
		CPU        exportedInterval `json:"cpu"`
		Memory     exportedInterval `json:"mem"`
		Queue      exportedInterval `json:"queue"`
		P95        exportedInterval `json:"p95"`
		P95Count   float64          `json:"p95_n"`
		ErrorRate  exportedInterval `json:"err"`
		Requests   float64          `json:"req"`
		InFlight   report.Value     `json:"in_flight"`
		QueueTotal bool             `json:"queue_total,omitempty"`
	}
	exportedInterval [3]report.Value // best, worst, value
)

func exportInterval(i Interval) exportedInterval {
	e := exportedInterval{report.Of(i.Best), {}, i.Value}
	if !math.IsInf(i.Worst, 1) {
		e[1] = report.Of(i.Worst)
	}
	return e
}

func (e exportedInterval) interval() Interval {
	i := Interval{Best: e[0].X, Worst: math.Inf(1), Value: e[2]}
	if e[1].OK {
		i.Worst = e[1].X
	}
	return i
}

// Export returns the history of all services, and which machines are expected,
// for a new voter's Import. Reports themselves are left out: they come anew
// within a period.
func (w *Window) Export(now time.Time) ([]byte, error) {
	e := exported{Version: exportVersion, Machines: []exportedMachine{}, Services: []exportedService{}}
	for _, id := range w.Machines() {
		m := w.machines[id]
		if !m.heard.IsZero() && w.expected(now, m) {
			e.Machines = append(e.Machines, exportedMachine{id, m.service, now.Sub(m.heard).Milliseconds()})
		}
	}
	for _, name := range w.Services() {
		s := exportedService{Name: name, Samples: []exportedSample{}}
		for _, x := range w.services[name].series {
			s.Samples = append(s.Samples, exportedSample{
				AgeMS: now.Sub(x.At).Milliseconds(), Heard: x.Heard, Missing: x.Missing,
				CPU: exportInterval(x.CPU), Memory: exportInterval(x.Memory), Queue: exportInterval(x.Queue),
				P95: exportInterval(x.P95), P95Count: x.P95Count,
				ErrorRate: exportInterval(x.ErrorRate), Requests: x.Requests,
				InFlight: x.InFlight, QueueTotal: x.QueueTotal,
			})
		}
		e.Services = append(e.Services, s)
	}
	b, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("export windows: %w", err)
	}
	return b, nil
}

var errFormat = errors.New("unknown format")

// Import takes in what another Window exported. It fills the times for which
// this Window has no sample of its own, and adds machines that it has never
// heard; whatever it knows itself it keeps. On an error nothing has changed.
func (w *Window) Import(now time.Time, b []byte) error {
	var e exported
	if err := json.Unmarshal(b, &e); err != nil {
		return fmt.Errorf("import windows: %w", err)
	}
	if e.Version != exportVersion {
		return fmt.Errorf("import windows: %w: version %d, not %d", errFormat, e.Version, exportVersion)
	}
	for _, m := range e.Machines {
		at, ok := w.at(now, m.AgeMS)
		if ok && m.ID != "" && m.Service != "" && w.machines[m.ID] == nil {
			w.machines[m.ID] = &machine{id: m.ID, service: m.Service, heard: at}
			w.service(m.Service)
		}
	}
	for _, s := range e.Services {
		if s.Name == "" {
			continue
		}
		theirs := make([]Sample, 0, len(s.Samples))
		for _, x := range s.Samples {
			if at, ok := w.at(now, x.AgeMS); ok {
				theirs = append(theirs, x.sample(at))
			}
		}
		own := w.service(s.Name)
		own.series = w.merge(own.series, theirs)
	}
	return nil
}

// at turns an age back into a time; ages outside the window are no good.
func (w *Window) at(now time.Time, ms int64) (time.Time, bool) {
	if ms < 0 || ms > w.cfg.Keep.Milliseconds() {
		return time.Time{}, false
	}
	return now.Add(-time.Duration(ms) * time.Millisecond), true
}

func (e exportedSample) sample(at time.Time) Sample {
	s := Sample{
		At: at, Heard: max(0, e.Heard), Missing: e.Missing,
		CPU: e.CPU.interval(), Memory: e.Memory.interval(), Queue: e.Queue.interval(),
		P95: e.P95.interval(), P95Count: e.P95Count,
		ErrorRate: e.ErrorRate.interval(), Requests: e.Requests,
		InFlight: e.InFlight, QueueTotal: e.QueueTotal,
	}
	s.Expected = s.Heard + len(s.Missing)
	return s
}

// merge returns a new series of all own samples and those of theirs that are
// at least three quarters of a period away from every own one, so that two
// grids that are out of step do not count one period twice.
func (w *Window) merge(own, theirs []Sample) []Sample {
	order := func(a, b Sample) int { return a.At.Compare(b.At) }
	all := slices.Clone(own)
	for _, x := range theirs {
		i, _ := slices.BinarySearchFunc(own, x, order)
		near := w.cfg.Every * 3 / 4
		if (i == 0 || x.At.Sub(own[i-1].At) >= near) && (i == len(own) || own[i].At.Sub(x.At) >= near) {
			all = append(all, x)
		}
	}
	slices.SortStableFunc(all, order)
	return all
}
