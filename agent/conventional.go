package agent

import (
	"strings"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// conventional gives the metrics of the libraries (raft_*, memberlist_*) the
// names that Prometheus' conventions ask for: snake_case, and _total on
// counters. Summaries of the libraries are in milliseconds, as their help says.
type conventional struct{ prometheus.Gatherer }

// Gather implements prometheus.Gatherer.
func (c conventional) Gather() ([]*dto.MetricFamily, error) {
	fams, err := c.Gatherer.Gather()
	for _, f := range fams {
		name := f.GetName()
		if !strings.HasPrefix(name, "raft_") && !strings.HasPrefix(name, "memberlist_") {
			continue
		}
		name = snake(name)
		if f.GetType() == dto.MetricType_COUNTER && !strings.HasSuffix(name, "_total") {
			name += "_total"
		}
		f.Name = &name
		for _, m := range f.Metric {
			for _, l := range m.Label {
				s := snake(l.GetName())
				l.Name = &s
			}
		}
	}
	return fams, err
}

// snake turns appendEntries into append_entries and RPCType into rpc_type.
func snake(s string) string {
	var b strings.Builder
	was := '_'
	for _, r := range s {
		if unicode.IsUpper(r) {
			if !unicode.IsUpper(was) && was != '_' {
				b.WriteByte('_')
			}
			b.WriteRune(unicode.ToLower(r))
		} else {
			b.WriteRune(r)
		}
		was = r
	}
	return b.String()
}
