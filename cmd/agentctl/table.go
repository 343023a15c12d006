package main

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"flymesh/probes/report"
)

// table aligns columns; an empty cell shows as "-".
type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer) table { return table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)} }

func (t table) row(cells ...string) {
	for i, c := range cells {
		if cells[i] = strings.Map(printable, c); c == "" {
			cells[i] = "-"
		}
	}
	fmt.Fprintln(t.w, strings.Join(cells, "\t")) // flush reports what fails
}

func (t table) flush() error { return t.w.Flush() }

// printable keeps what a machine said of itself from moving the cursor.
func printable(r rune) rune {
	if r < ' ' || r == 0x7f {
		return ' '
	}
	return r
}

func count(n *int) string {
	if n == nil {
		return "-"
	}
	return strconv.Itoa(*n)
}

func text(s *string) string {
	if s == nil {
		return "-"
	}
	return *s
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "-"
}

// percent shows a ratio: whole percents, and more of small ones.
func percent(v report.Value) string {
	if !v.OK {
		return "-"
	}
	digits := 0
	if x := math.Abs(v.X); x > 0 && x < 0.0995 {
		digits = 1
	}
	return strconv.FormatFloat(100*v.X, 'f', digits, 64) + " %"
}

func millis(v report.Value) string {
	if !v.OK {
		return "-"
	}
	return strconv.FormatFloat(v.X, 'f', 0, 64) + " ms"
}

func number(v report.Value) string {
	if !v.OK {
		return "-"
	}
	if v.X == math.Trunc(v.X) || math.Abs(v.X) >= 100 {
		return strconv.FormatFloat(v.X, 'f', 0, 64)
	}
	return strconv.FormatFloat(v.X, 'f', 1, 64)
}

// age shows a duration with at most two units: 3s, 4m05s, 2h10m, 3d4h.
func age(d time.Duration) string {
	d = d.Round(time.Second)
	switch {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}

// clock shows a moment of today, UTC as in the logs.
func clock(t time.Time) string { return t.UTC().Format("15:04:05Z") }
