package agent

import (
	"github.com/prometheus/client_golang/prometheus"

	"flymesh/probes"
)

// factDesc is what probes know beside the report's fields: eviction rates,
// roles, lags. Names and texts are from closed sets.
var factDesc = prometheus.NewDesc("flymesh_probe_fact",
	"What a probe tells beside the measurements that rules read; a word is the label text with the value 1.",
	[]string{"probe", "fact", "text"}, nil)

// Describe implements prometheus.Collector.
func (h *health) Describe(to chan<- *prometheus.Desc) { to <- factDesc }

// Collect implements prometheus.Collector. What is unknown is absent.
func (h *health) Collect(to chan<- prometheus.Metric) {
	m, _ := h.runner.Collect()
	for _, f := range m.Facts {
		switch {
		case f.Text != "":
			to <- prometheus.MustNewConstMetric(factDesc, prometheus.GaugeValue, 1, f.Probe, f.Name, f.Text)
		case f.Value.OK:
			to <- prometheus.MustNewConstMetric(factDesc, prometheus.GaugeValue, f.Value.X, f.Probe, f.Name, "")
		}
	}
}

// evicting says whether a Redis throws keys away or refuses writes for want of
// memory.
func evicting(facts []probes.Fact) bool {
	for _, f := range facts {
		if (f.Name == "evicted_keys_per_second" || f.Name == "rejected_writes_per_second") && f.Value.OK && f.Value.X > 0 {
			return true
		}
	}
	return false
}
