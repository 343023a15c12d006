package leader

import (
	"time"

	"flymesh/leader/decide"
)

// View is what the newest round saw and decided. It is read-only.
type View struct {
	Term     uint64
	Epoch    uint64
	At       time.Time
	Input    decide.Input
	Verdicts []decide.Verdict
}

type view struct {
	term     Term
	at       time.Time
	in       decide.Input
	verdicts []decide.Verdict
}

func (l *Leader) setView(v *view) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.view = v
}

// View returns the newest round; false while this node does not lead, or has
// not finished the first round of its term.
func (l *Leader) View() (View, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.view == nil || l.view.term.Context.Err() != nil {
		return View{}, false
	}
	v := l.view
	return View{Term: v.term.Number, Epoch: v.term.Epoch, At: v.at, Input: v.in, Verdicts: v.verdicts}, true
}
