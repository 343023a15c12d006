package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// unknown notes every key that no one asked for, with the nearest known one.
func (f *file) unknown() {
	homes := map[string][]string{} // key -> forms of the tables that know it
	for _, t := range f.tables {
		for _, k := range t.known {
			if !slices.Contains(homes[k], t.form) {
				homes[k] = append(homes[k], t.form)
			}
		}
	}
	for _, t := range f.tables {
		for _, key := range slices.Sorted(maps.Keys(t.values)) {
			if t.free || slices.Contains(t.known, key) {
				continue
			}
			known := slices.Sorted(slices.Values(t.known))
			advice := didYouMean(key, known)
			if home := homes[key]; len(home) > 0 && !slices.Contains(home, t.form) {
				advice = fmt.Sprintf("; it belongs in [%s]", strings.ReplaceAll(home[0], "*", "NAME"))
			}
			if advice == "" {
				advice = "; known here: " + strings.Join(known, ", ")
			}
			t.bad(key, "unknown key%s", advice)
		}
	}
}

// didYouMean names the nearest of the known words if one is near, else nothing.
func didYouMean(word string, known []string) string {
	best, least := "", max(2, len(word)/3)+1
	for _, k := range known {
		if d := distance(strings.ToLower(word), k); d < least {
			best, least = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// distance is the number of letters to insert, delete or replace.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			diagonal, row[j] = row[j], min(row[j]+1, row[j-1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}

func oneOf(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = fmt.Sprintf("%q", w)
	}
	if len(quoted) == 1 {
		return quoted[0]
	}
	return "one of " + strings.Join(quoted, ", ")
}
