package simulate

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"flymesh/leader/history"
	"flymesh/probes/report"
)

// trace is the past of one service, as `agentctl history --csv` writes it.
type trace struct {
	service string
	step    time.Duration // length of a row
	rows    []history.Row // oldest first
	ups     int           // steps that were carried out
	downs   int
}

// sample is the word of the column "what" for a row of measurements; every
// other word is the kind of an event.
const sample = "sample"

// needed are the columns that a trace must have, in any order among others.
var needed = []string{"at", "what", "service", "machines_expected", "machines_heard", "requests_per_second",
	"p95_seconds", "p95_samples", "error_ratio", "queue", "cpu_ratio", "memory_ratio"}

// read reads the traces of all services of a CSV, in the order in which they
// come. An error names line, column, value and what would be right.
func read(in io.Reader) ([]trace, error) {
	r := csv.NewReader(in)
	head, err := r.Read()
	if errors.Is(err, io.EOF) {
		return nil, errors.New("line 1: the file is empty; a trace is what `agentctl history SERVICE --csv` writes")
	}
	if err != nil {
		return nil, syntax(err)
	}
	l := &line{at: map[string]int{}}
	for i, name := range head {
		l.at[strings.TrimSpace(name)] = i
	}
	for _, name := range needed {
		if _, ok := l.at[name]; !ok {
			return nil, fmt.Errorf("line 1: the column %q is missing; a trace is what `agentctl history SERVICE --csv` writes", name)
		}
	}
	var out []trace
	for {
		cells, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, syntax(err)
		}
		l.cells, l.err = cells, nil
		l.number, _ = r.FieldPos(0)
		name := l.text("service")
		i := slices.IndexFunc(out, func(t trace) bool { return t.service == name })
		if i < 0 {
			i = len(out)
			out = append(out, trace{service: name})
		}
		if out[i].add(l); l.err != nil {
			return nil, l.err
		}
	}
	for i := range out {
		if out[i].step == 0 {
			return nil, fmt.Errorf("service %q has %d rows of measurements; it takes two to know how long one is", out[i].service, len(out[i].rows))
		}
	}
	if len(out) == 0 {
		return nil, errors.New("line 2: there are no rows after the head")
	}
	return out, nil
}

// syntax names the line of what is no CSV.
func syntax(err error) error {
	var p *csv.ParseError
	if errors.As(err, &p) {
		return fmt.Errorf("line %d, character %d: %w", p.Line, p.Column, p.Err)
	}
	return err
}

// add takes one line in.
func (t *trace) add(l *line) {
	switch what := l.text("what"); what {
	case sample:
	case "":
		l.bad("what", "must be %q or the kind of an event, such as \"up\"", sample)
		return
	default:
		switch what {
		case "up_done":
			t.ups++
		case "down_done":
			t.downs++
		}
		return
	}
	r := history.Row{
		At: l.time("at"), Expected: l.count("machines_expected"), Heard: l.count("machines_heard"),
		Requests: l.value("requests_per_second", math.Inf(1)), P95: l.value("p95_seconds", math.Inf(1)),
		Samples: l.value("p95_samples", math.Inf(1)), Errors: l.value("error_ratio", 1), Queue: l.value("queue", math.Inf(1)),
		CPU: l.value("cpu_ratio", math.Inf(1)), Memory: l.value("memory_ratio", math.Inf(1)),
	}
	if r.Heard > r.Expected {
		l.bad("machines_heard", "must be at most machines_expected, which is %d", r.Expected)
	}
	if n := len(t.rows); n > 0 && l.err == nil {
		gap := r.At.Sub(t.rows[n-1].At)
		if gap <= 0 {
			l.bad("at", "must be after the row before, %s: the oldest comes first", t.rows[n-1].At.Format(time.RFC3339))
		} else if t.step == 0 || gap < t.step {
			t.step = gap
		}
	}
	t.rows = append(t.rows, r)
}

// line is one line of a CSV; the first thing wrong with it is kept.
type line struct {
	at     map[string]int // column by name
	number int
	cells  []string
	err    error
}

func (l *line) text(column string) string { return strings.TrimSpace(l.cells[l.at[column]]) }

func (l *line) bad(column, must string, args ...any) {
	if l.err == nil {
		l.err = fmt.Errorf("line %d, column %s: %q %s", l.number, column, l.text(column), fmt.Sprintf(must, args...))
	}
}

func (l *line) time(column string) time.Time {
	t, err := time.Parse(time.RFC3339, l.text(column))
	if err != nil {
		l.bad(column, "must be a time such as 2026-03-01T12:00:00Z")
	}
	return t
}

func (l *line) count(column string) int {
	n, err := strconv.Atoi(l.text(column))
	if err != nil || n < 0 {
		l.bad(column, "must be a whole number from 0")
	}
	return n
}

// value reads a measurement; an empty cell is one that was not known.
func (l *line) value(column string, most float64) report.Value {
	text := l.text(column)
	if text == "" {
		return report.Value{}
	}
	x, err := strconv.ParseFloat(text, 64)
	switch {
	case err == nil && x >= 0 && x <= most && !math.IsInf(x, 0): // NaN is not >= 0
		return report.Of(x)
	case math.IsInf(most, 1):
		l.bad(column, "must be a number from 0, or empty where it was not known")
	default:
		l.bad(column, "must be a number from 0 to %g, or empty where it was not known", most)
	}
	return report.Value{}
}
