package leader

import (
	"context"
	"sync"
	"time"

	"flymesh/leader/burn"
	"flymesh/leader/decide"
	"flymesh/leader/history"
	"flymesh/leader/window"
	"flymesh/probes/report"
)

// Reports is the window that every voter keeps, safe for concurrent use: the
// gossip feeds it, a ticker closes its samples, the leader reads it.
type Reports struct {
	every time.Duration

	mu sync.Mutex // guards w, h and b
	w  *window.Window
	h  *history.History
	b  *burn.Store
}

// NewReports returns an empty window with one sample each every, which holds
// enough history for every rule of the policy, and three days of the goals.
func NewReports(every time.Duration, policy decide.Policy, goals ...burn.Goal) *Reports {
	least := map[string]int{}
	for _, s := range policy.Services {
		least[s.Name] = s.MinSamples
	}
	return &Reports{every: every, h: history.New(every), b: burn.New(every, goals...), w: window.New(window.Config{
		Every: every, Keep: max(window.DefaultKeep, policy.Longest()+time.Minute),
		MinSamples: func(service string) int { return least[service] },
	})}
}

// Run closes a sample of every service each report interval until ctx ends.
func (r *Reports) Run(ctx context.Context) error {
	t := time.NewTicker(r.every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			r.tick(time.Now())
		}
	}
}

// Add takes one report in.
func (r *Reports) Add(rep report.Report) {
	r.with(func(w *window.Window) { w.Add(time.Now(), rep) })
}

// Leave forgets a machine that is known to be gone.
func (r *Reports) Leave(machine string) {
	r.with(func(w *window.Window) { w.Leave(time.Now(), machine) })
}

// Export returns the history for a new voter.
func (r *Reports) Export() (b []byte, err error) {
	r.with(func(w *window.Window) { b, err = w.Export(time.Now()) })
	return b, err
}

// Import merges the history of another voter.
func (r *Reports) Import(b []byte) (err error) {
	r.with(func(w *window.Window) { err = w.Import(time.Now(), b) })
	return err
}

func (r *Reports) with(f func(*window.Window)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r.w)
}

// Latest returns a machine's newest report, its age, and whether it is young
// enough to be believed; ok is false if none was ever heard.
func (r *Reports) Latest(now time.Time, machine string) (rep report.Report, age time.Duration, fresh, ok bool) {
	r.with(func(w *window.Window) {
		rep, age, ok = w.Latest(now, machine)
		fresh = ok && w.Fresh(age)
	})
	return rep, age, fresh, ok
}

// Fresh returns the newest report of every machine that is young enough to be
// believed, by machine.
func (r *Reports) Fresh(now time.Time) (out []report.Report) {
	r.with(func(w *window.Window) { out = fresh(w, now) })
	return out
}

func fresh(w *window.Window, now time.Time) (out []report.Report) {
	for _, id := range w.Machines() {
		if rep, age, ok := w.Latest(now, id); ok && w.Fresh(age) {
			out = append(out, rep)
		}
	}
	return out
}
