package leader

import (
	"time"

	"flymesh/leader/history"
	"flymesh/leader/window"
)

// tick closes a sample of every service and counts it into the history.
func (r *Reports) tick(now time.Time) {
	r.with(func(w *window.Window) {
		w.Tick(now)
		for _, name := range w.Services() {
			if s := w.Series(name); len(s) > 0 && s[len(s)-1].At.Equal(now) {
				r.h.Add(name, s[len(s)-1])
			}
		}
		for _, id := range w.Machines() {
			if rep, age, ok := w.Latest(now, id); ok && w.Fresh(age) {
				r.h.AddMachine(now, rep)
			}
		}
	})
}

// Past returns the day of a service from since on, and the length of a row.
func (r *Reports) Past(service string, since time.Time) (rows []history.Row, step time.Duration) {
	r.with(func(*window.Window) { rows, step = r.h.Rows(service, since), r.h.Step() })
	return rows, step
}

// Recent returns the samples of a service from since on as rows, one a report
// interval: finer than Past, and of minutes instead of a day.
func (r *Reports) Recent(service string, since time.Time) (rows []history.Row, step time.Duration) {
	var samples []window.Sample
	r.with(func(w *window.Window) { samples = w.Series(service) })
	rows = []history.Row{}
	for _, s := range samples {
		if s.At.After(since) {
			rows = append(rows, history.Of(s, r.every))
		}
	}
	return rows, r.every
}

// PastOfMachines returns the day of each machine of a service.
func (r *Reports) PastOfMachines(service string, since time.Time) map[string][]history.MachineRow {
	out := map[string][]history.MachineRow{}
	r.with(func(*window.Window) {
		for _, m := range r.h.MachinesOf(service) {
			if rows := r.h.MachineRows(m, since); len(rows) > 0 {
				out[m] = rows
			}
		}
	})
	return out
}

// ExportPast returns the history for a new voter.
func (r *Reports) ExportPast() (b []byte) {
	r.with(func(*window.Window) { b = r.h.Export() })
	return b
}

// ImportPast merges the history of another voter.
func (r *Reports) ImportPast(b []byte) (err error) {
	r.with(func(*window.Window) { err = r.h.Import(b) })
	return err
}
