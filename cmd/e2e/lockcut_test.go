package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestLocksOverPartitions holds a lock on machines with networks as on Fly
// while packets are dropped in one direction or both. The holder's machine is
// stopped by the platform before another works.
func TestLocksOverPartitions(t *testing.T) {
	long(t)
	f := newFabric(t)
	m := watched(t, startNS(t, f))
	m.settle(60 * time.Second)
	file := filepath.Join(t.TempDir(), "oracle")
	cuts := 0
	for i, tc := range []struct {
		name  string
		leads bool // the holder's machine leads
		cut   func(t *testing.T, holder, leader int, others []int)
		exit  []int // of the first holder
	}{
		{"the holder's packets reach nobody", false, func(t *testing.T, h, _ int, others []int) {
			for _, o := range others {
				f.cut(t, h, o)
			}
		}, []int{killed, lost}},
		{"no packets reach the holder", false, func(t *testing.T, h, _ int, others []int) {
			for _, o := range others {
				f.cut(t, o, h)
			}
		}, []int{killed, lost}},
		{"the holder leads, and its packets reach nobody", true, func(t *testing.T, h, _ int, others []int) {
			for _, o := range others {
				f.cut(t, h, o)
			}
		}, []int{killed, lost}},
		{"the leader's packets do not reach the holder", false, func(t *testing.T, h, l int, _ []int) { f.cut(t, l, h) }, []int{0, killed, lost}},
		{"the holder is alone, without the API", false, func(t *testing.T, h, _ int, others []int) {
			for _, o := range append(others, 0) {
				f.cut(t, h, o)
				f.cut(t, o, h)
			}
		}, []int{killed, lost}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m.t = t
			s := m.settle(120 * time.Second)
			lead, first, second := m.three(s, i)
			if tc.leads {
				first = lead
			}
			before := worked(t, file)
			_, endFirst := m.lock(first, "work", time.Minute, beats(file, 45*time.Second))
			m.until("the first holder works", time.Minute, func() bool { return worked(t, file) > before })
			_, endSecond := m.lock(second, "work", 2*time.Minute, beats(file, time.Second))
			time.Sleep(time.Second)
			var others []int
			for _, y := range m.others(first) {
				others = append(others, f.place(y.ID))
			}
			tc.cut(t, f.place(first.ID), f.place(lead.ID), others)
			codeFirst, codeSecond := endFirst(), endSecond()
			f.heal(t)
			if !slices.Contains(tc.exit, codeFirst) || codeSecond != 0 {
				t.Errorf("exit codes %d and %d, want one of %d, and 0", codeFirst, codeSecond, tc.exit)
			}
			all := oracle(t, file)
			if wrong := broken(all); len(wrong) > 0 {
				t.Error(strings.Join(wrong, "\n"))
			}
			a, b := all[len(all)-2], all[len(all)-1]
			t.Logf("exit codes %d and %d; the second began %s after the first's last sign of life", codeFirst, codeSecond, time.Duration(b.start-a.end).Round(100*time.Millisecond))
			cuts++
			m.restored(first.Service)
		})
	}
	all := oracle(t, file)
	table.add(row{scenario: "locks over partitions", note: fmt.Sprintf("%d cuts, %d holds of one lock, %d breaches", cuts, len(all), len(broken(all)))})
}
