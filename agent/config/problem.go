package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing that is wrong with a file or the environment.
type Problem struct {
	File    string // name of the file, or "environment"
	Line    int    // 0: no line, the key is absent
	Key     string // path, e.g. service.n8n.max; empty: the file itself
	Value   string // as written; empty: none, or one not to be shown
	Message string // what would be right
}

// String says it in one line: file:line: key = value: what would be right.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	if p.Key != "" {
		b.WriteString(": " + p.Key)
		if p.Value != "" {
			b.WriteString(" = " + p.Value)
		}
	}
	return b.String() + ": " + p.Message
}

// Problems is everything that is wrong, in the order of the file.
type Problems []Problem

// Error returns one line for each problem.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// err sorts by line and returns nil when there is no problem.
func (ps Problems) err() error {
	if len(ps) == 0 {
		return nil
	}
	slices.SortStableFunc(ps, func(a, b Problem) int { return cmp.Compare(a.Line, b.Line) })
	return ps
}
