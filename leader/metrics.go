package leader

import (
	"flymesh/leader/decide"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics counts what the leader decides. A nil *Metrics counts nothing.
type Metrics struct {
	decisions *prometheus.CounterVec
	machines  *prometheus.GaugeVec
}

// NewMetrics registers the leader's metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	f := promauto.With(reg)
	return &Metrics{
		decisions: f.NewCounterVec(prometheus.CounterOpts{
			Name: "flymesh_leader_decisions_total", Help: "Verdicts of the policy, one per service and round.",
		}, []string{"service", "verdict", "reason"}),
		machines: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "flymesh_leader_machines", Help: "Machines of a service by how they count against its cap.",
		}, []string{"service", "as"}),
	}
}

// countedAs is the closed set of the label "as".
var countedAs = [...]string{"ready", "starting", "unknown", "stopping", "draining", "stopped"}

func (m *Metrics) round(verdicts []decide.Verdict) {
	if m == nil {
		return
	}
	for _, v := range verdicts {
		m.decisions.WithLabelValues(v.Service, v.Verdict, string(v.Reason.Code)).Inc()
		n := map[string]int{}
		for _, c := range v.Counted {
			n[c.As]++
		}
		for _, as := range countedAs {
			m.machines.WithLabelValues(v.Service, as).Set(float64(n[as]))
		}
	}
}
