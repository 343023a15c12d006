package gossip

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	alive    prometheus.Gauge
	sent     *prometheus.CounterVec // way: packet, stream, failed
	received prometheus.Counter
	dropped  *prometheus.CounterVec // reason: garbage, inbox_full, meta, old_boot
	joins    *prometheus.CounterVec // result: ok, failed
	packets  prometheus.Counter
	bytes    prometheus.Counter
}

// newMetrics registers with r; nil registers nowhere.
func newMetrics(r prometheus.Registerer) *metrics {
	f := promauto.With(r)
	counter := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Name: "flymesh_gossip_" + name, Help: help}
	}
	return &metrics{
		alive: f.NewGauge(prometheus.GaugeOpts{Name: "flymesh_gossip_members",
			Help: "Living members of the mesh, this one included."}),
		sent:     f.NewCounterVec(counter("reports_sent_total", "Reports sent, one a receiver, by way."), []string{"way"}),
		received: f.NewCounter(counter("reports_received_total", "Reports heard from others.")),
		dropped:  f.NewCounterVec(counter("dropped_total", "Messages and members ignored, by reason."), []string{"reason"}),
		joins:    f.NewCounterVec(counter("joins_total", "Attempts to reach a member that is not known alive."), []string{"result"}),
		packets:  f.NewCounter(counter("packets_sent_total", "UDP packets sent.")),
		bytes:    f.NewCounter(counter("packet_bytes_sent_total", "UDP payload sent, in bytes.")),
	}
}
