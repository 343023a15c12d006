package flyapi

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"flymesh/leader"
)

// metrics count requests, one for each that was sent or tried to be sent.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer) metrics {
	f := promauto.With(reg)
	return metrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "flymesh_flyapi_requests_total",
			Help: "Requests to the Machines API by action and outcome: ok or the fault.",
		}, []string{"action", "outcome"}),
		seconds: f.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "flymesh_flyapi_request_duration_seconds",
			Help:    "Time until the answer of the Machines API, failures included.",
			Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"action"}),
	}
}

func (m metrics) observe(a Action, fault leader.Fault, took time.Duration) {
	outcome := string(fault)
	if fault == "" {
		outcome = "ok"
	}
	m.requests.WithLabelValues(string(a), outcome).Inc()
	m.seconds.WithLabelValues(string(a)).Observe(took.Seconds())
}
