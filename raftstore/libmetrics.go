package raftstore

import (
	"fmt"
	"time"

	gometrics "github.com/hashicorp/go-metrics"
	metricsprom "github.com/hashicorp/go-metrics/prometheus"
	"github.com/prometheus/client_golang/prometheus"
)

// LibraryMetrics puts what hashicorp/raft and memberlist count by themselves
// on a registry. They know only one process-wide sink, so this is for the
// process's main wiring, once. Labels that hold a server ID, which is new with
// each boot, are left out.
func LibraryMetrics(reg prometheus.Registerer) error {
	sink, err := metricsprom.NewPrometheusSinkFrom(metricsprom.PrometheusOpts{Registerer: reg, Expiration: time.Minute})
	if err != nil {
		return fmt.Errorf("register library metrics: %w", err)
	}
	c := gometrics.DefaultConfig("")
	c.EnableHostname, c.EnableHostnameLabel, c.EnableServiceLabel, c.EnableRuntimeMetrics = false, false, false, false
	c.BlockedLabels = []string{"peer_id", "node", "peer"}
	if _, err := gometrics.NewGlobal(c, sink); err != nil {
		return fmt.Errorf("register library metrics: %w", err)
	}
	return nil
}
