package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// file is one mesh.toml while it is read: its lines, the keys that exist and
// what was found wrong.
type file struct {
	name     string
	lines    map[string]int
	problems Problems
	tables   []*table
	schema   map[string]string // key with * for names (service.*.max) -> default as text
}

// table is one TOML table. Each key is asked for once; what was never asked
// for is unknown.
type table struct {
	f      *file
	path   string // service.n8n
	form   string // service.*
	values map[string]any
	known  []string
	free   bool // any key is accepted here: names, or what cannot be judged
}

func (f *file) table(path, form string, values map[string]any) *table {
	t := &table{f: f, path: path, form: form, values: values}
	f.tables = append(f.tables, t)
	return t
}

// bad notes a problem at a key path; without a line of its own it gets its
// nearest parent's.
func (f *file) bad(key, value, format string, args ...any) {
	line := 0
	for at := key; at != "" && line == 0; {
		line = f.lines[at]
		at = at[:max(strings.LastIndexAny(at, ".["), 0)]
	}
	f.problems = append(f.problems, Problem{File: f.name, Line: line, Key: key, Value: value, Message: fmt.Sprintf(format, args...)})
}

func (t *table) at(key string) string { return join(t.path, key) }

func (t *table) has(key string) bool { _, ok := t.values[key]; return ok }

// bad notes a problem with the value that the key has in the file.
func (t *table) bad(key, format string, args ...any) {
	t.f.bad(t.at(key), literal(t.values[key]), format, args...)
}

func (t *table) ask(key, fallback string) (any, bool) {
	t.known = append(t.known, key)
	t.f.schema[join(t.form, key)] = fallback
	v, ok := t.values[key]
	return v, ok
}

// str reads a string; none of the allowed ones is a problem, unless none are given.
func (t *table) str(key, fallback string, allowed ...string) string {
	v, ok := t.ask(key, literal(fallback))
	if !ok {
		return fallback
	}
	s, ok := v.(string)
	if !ok {
		t.bad(key, "must be a string")
		return fallback
	}
	if len(allowed) > 0 && !slices.Contains(allowed, s) {
		t.bad(key, "must be %s%s", oneOf(allowed), didYouMean(s, allowed))
		return fallback
	}
	return s
}

// need reads a string that must be there; example says what it could be.
func (t *table) need(key, example string) string {
	s := t.str(key, "")
	t.f.schema[join(t.form, key)] = "none, it must be given"
	if !t.has(key) {
		t.f.bad(t.at(key), "", "is missing; it must be given, e.g. %s = %q", key, example)
	} else if _, isString := t.values[key].(string); isString && strings.TrimSpace(s) == "" {
		t.bad(key, "must not be empty, e.g. %q", example)
	}
	return s
}

func (t *table) flag(key string, fallback bool) bool {
	v, ok := t.ask(key, literal(fallback))
	if !ok {
		return fallback
	}
	b, ok := v.(bool)
	if !ok {
		t.bad(key, "must be true or false, without quotes")
		return fallback
	}
	return b
}

func (t *table) count(key string, fallback, low, high int) int {
	v, ok := t.ask(key, literal(fallback))
	if !ok {
		return fallback
	}
	n, ok := v.(int64)
	switch {
	case !ok:
		t.bad(key, "must be a whole number")
		return fallback
	case n < int64(low) || n > int64(high):
		t.bad(key, "must be between %d and %d", low, high)
		return fallback
	}
	return int(n)
}

// number reads a count or amount that may have a fraction.
func (t *table) number(key string, fallback, high float64) float64 {
	v, ok := t.ask(key, literal(fallback))
	if !ok {
		return fallback
	}
	x, ok := asFloat(v)
	if !ok || !(x >= 0 && x <= high) {
		t.bad(key, "must be a number between 0 and %s", literal(high))
		return fallback
	}
	return x
}

// ratio reads 0.7 or "70%".
func (t *table) ratio(key string, fallback float64) float64 {
	v, ok := t.ask(key, literal(fallback))
	if !ok {
		return fallback
	}
	x, ok := asFloat(v)
	if s, isString := v.(string); isString {
		number, percent := strings.CutSuffix(strings.TrimSpace(s), "%")
		var err error
		x, err = strconv.ParseFloat(strings.TrimSpace(number), 64)
		x, ok = x/100, percent && err == nil
	}
	if !ok || !(x >= 0 && x <= 1) {
		t.bad(key, `must be a ratio between 0 and 1, or a percentage such as "70%%"`)
		return fallback
	}
	return x
}

// span reads a duration such as "3m" between low and high.
func (t *table) span(key string, fallback, low, high time.Duration) time.Duration {
	return t.spanSaid(key, fallback, low, high, literal(fallback))
}

// spanSaid is span for a default that follows from another key.
func (t *table) spanSaid(key string, fallback, low, high time.Duration, said string) time.Duration {
	v, ok := t.ask(key, said)
	if !ok {
		return fallback
	}
	s, ok := v.(string)
	if !ok {
		t.bad(key, `must be a duration in quotes, e.g. "30s", "3m" or "1h30m"`)
		return fallback
	}
	d, err := time.ParseDuration(strings.TrimSpace(s))
	switch {
	case err != nil:
		t.bad(key, `must be a duration such as "500ms", "30s", "3m" or "1h30m"`)
		return fallback
	case d < low || d > high:
		t.bad(key, "must be between %s and %s", shortDuration(low), shortDuration(high))
		return fallback
	}
	return d
}

// list reads a list of strings; said is its default as text.
func (t *table) list(key string, fallback []string, said string) []string {
	v, ok := t.ask(key, said)
	if !ok {
		return fallback
	}
	items, ok := v.([]any)
	if !ok {
		t.bad(key, `must be a list of strings, e.g. ["a", "b"]`)
		return fallback
	}
	var list []string
	for i, item := range items {
		s, ok := item.(string)
		if !ok {
			t.f.bad(fmt.Sprintf("%s[%d]", t.at(key), i), literal(item), "must be a string")
			continue
		}
		list = append(list, s)
	}
	return list
}

// sub reads a sub-table; an absent one is empty.
func (t *table) sub(key string) *table {
	t.known = append(t.known, key)
	values, ok := t.values[key].(map[string]any)
	if t.has(key) && !ok {
		t.bad(key, "must be a table, e.g. [%s]", t.at(key))
	}
	return t.f.table(t.at(key), join(t.form, key), values)
}

// subs reads an array of tables.
func (t *table) subs(key string) []*table {
	t.known = append(t.known, key)
	var values []map[string]any
	switch v := t.values[key].(type) {
	case nil:
	case []map[string]any:
		values = v
	case []any: // inline: [{...}, {...}]
		for _, item := range v {
			m, ok := item.(map[string]any)
			if !ok {
				t.bad(key, "must be tables, e.g. [[%s]]", t.at(key))
				return nil
			}
			values = append(values, m)
		}
	default:
		t.bad(key, "must be an array of tables with two brackets, e.g. [[%s]]", t.at(key))
	}
	var tables []*table
	for i, v := range values {
		tables = append(tables, t.f.table(fmt.Sprintf("%s[%d]", t.at(key), i), join(t.form, key), v))
	}
	return tables
}

func asFloat(v any) (float64, bool) {
	switch x := v.(type) {
	case int64:
		return float64(x), true
	case float64:
		return x, true
	}
	return 0, false
}

// literal writes a value as TOML would, in one line.
func literal(v any) string {
	switch x := v.(type) {
	case nil:
		return ""
	case string:
		return strconv.Quote(x)
	case time.Duration:
		return strconv.Quote(shortDuration(x))
	case float64:
		return strconv.FormatFloat(x, 'f', -1, 64)
	case []string:
		quoted := make([]string, len(x))
		for i, s := range x {
			quoted[i] = strconv.Quote(s)
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	case []any:
		parts := make([]string, len(x))
		for i, p := range x {
			parts[i] = literal(p)
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case map[string]any, []map[string]any:
		return "{...}"
	}
	return fmt.Sprint(v)
}
