package leader

import (
	"encoding/binary"
	"errors"
	"time"

	"flymesh/leader/burn"
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
		reports := fresh(w, now)
		for _, rep := range reports {
			r.h.AddMachine(now, rep)
		}
		r.b.Add(now, reports)
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

// heardToday returns the machines of a service that have spoken within a day.
func (r *Reports) heardToday(service string) (ids []string) {
	r.with(func(*window.Window) { ids = r.h.MachinesOf(service) })
	return ids
}

// Burnt returns what is known of a goal over the span that ends now.
func (r *Reports) Burnt(now time.Time, g burn.Goal, span time.Duration) (u burn.Use) {
	r.with(func(*window.Window) { u = r.b.Over(now, g.Service, g.Target, span) })
	return u
}

// ExportPast returns the history and the burn rates for a new voter: the length
// of the first, the first, the second.
func (r *Reports) ExportPast() (b []byte, err error) {
	r.with(func(*window.Window) {
		day := r.h.Export()
		var rates []byte
		rates, err = r.b.Export()
		b = append(append(binary.LittleEndian.AppendUint32(nil, uint32(len(day))), day...), rates...)
	})
	return b, err
}

// ImportPast merges what another voter knows of the past.
func (r *Reports) ImportPast(b []byte) (err error) {
	if len(b) < 4 || uint64(len(b)-4) < uint64(binary.LittleEndian.Uint32(b)) {
		return errors.New("import the past: it ends too early")
	}
	n := 4 + binary.LittleEndian.Uint32(b)
	r.with(func(*window.Window) { err = errors.Join(r.h.Import(b[4:n]), r.b.Import(b[n:])) })
	return err
}
