package agent

import (
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"flymesh/probes/report"
	"flymesh/raftstore"
)

// collector shows what this machine measures of itself, as it reports it to
// the mesh. What is unknown is absent, never zero. What the agent itself costs
// is in the process_* and go_* metrics.
type collector struct {
	a *agent
	d map[string]*prometheus.Desc
}

var _ prometheus.Collector = (*collector)(nil)

var agentFamilies = []struct {
	name, help string
	labels     []string
}{
	{"info", "Always 1; says which machine this is and what it runs.", []string{"machine", "service", "region", "version", "config", "go_version"}},
	{"uptime_seconds", "Time since the agent's boot.", nil},
	{"readiness", "1 for the state of readiness that /health tells, 0 for the others.", []string{"state"}},
	{"cpu_ratio", "CPU pressure of this machine: the larger of used/allowed and steal.", nil},
	{"cpu_steal_ratio", "Share of CPU time that the host took.", nil},
	{"memory_ratio", "Memory used of what this machine may use.", nil},
	{"queue_depth", "Waiting requests or jobs as this machine sees them.", nil},
	{"in_flight_requests", "Requests that this machine is working on.", nil},
	{"window_requests", "Requests of the last minute on this machine.", nil},
	{"window_errors", "Failed requests of the last minute on this machine.", nil},
	{"p95_seconds", "Request duration on this machine, quantile 0.95 of the last minute.", nil},
	{"failing_probes", "Measurements of this machine that are missing.", nil},
	{"raft_role", "1 for this machine's part in raft, 0 for the others.", []string{"role"}},
	{"leader_known", "1 while this machine knows who leads the mesh.", nil},
	{"quorum_healthy", "1 while a leader is known and a majority of the voters is alive.", nil},
	{"voters", "Voters of the mesh as this machine knows them.", nil},
	{"no_leader_seconds", "Time without a known leader; 0 while there is one.", nil},
}

func newCollector(a *agent) *collector {
	c := &collector{a: a, d: map[string]*prometheus.Desc{}}
	for _, f := range agentFamilies {
		c.d[f.name] = prometheus.NewDesc("flymesh_agent_"+f.name, f.help, f.labels, nil)
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range agentFamilies {
		ch <- c.d[f.name]
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	set := func(name string, x float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(c.d[name], prometheus.GaugeValue, x, labels...)
	}
	known := func(name string, v report.Value) {
		if v.OK {
			set(name, v.X)
		}
	}
	a := c.a
	r := a.report(0, false)
	set("info", 1, a.self.ID, a.svc.Name, a.self.Region, a.version, a.cfg.Hash(), runtime.Version())
	set("uptime_seconds", r.Uptime.Seconds())
	for s := report.Booting; s <= report.Draining; s++ {
		set("readiness", truth(s == r.Readiness), s.String())
	}
	known("cpu_ratio", r.CPU)
	known("cpu_steal_ratio", r.Steal)
	known("memory_ratio", r.Memory)
	known("queue_depth", r.Queue)
	known("in_flight_requests", r.InFlight)
	known("window_requests", r.Requests)
	known("window_errors", r.Errors)
	if r.Latency != nil && r.Latency.Count() > 0 {
		set("p95_seconds", r.Latency.Quantile(0.95))
	}
	set("failing_probes", float64(len(a.health.problems())))
	st := a.store.Status()
	for _, role := range []raftstore.Role{raftstore.Leader, raftstore.Voter, raftstore.Nonvoter, raftstore.Candidate, raftstore.None} {
		set("raft_role", truth(st.Role == role), string(role))
	}
	set("leader_known", truth(st.Leader != ""))
	set("quorum_healthy", truth(st.Healthy))
	set("voters", float64(len(st.Voters)))
	quiet := 0.0
	if !st.NoLeaderSince.IsZero() {
		quiet = time.Since(st.NoLeaderSince).Seconds()
	}
	set("no_leader_seconds", quiet)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
