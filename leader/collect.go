package leader

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"flymesh/leader/decide"
	"flymesh/leader/window"
	"flymesh/probes/report"
	"flymesh/raftstore/state"
)

// Collector shows what the leader knows of the mesh as metrics. On a machine
// that does not lead it shows nothing, so that no stale word outlives a term.
type Collector struct {
	l *Leader
	d map[string]*prometheus.Desc
}

var _ prometheus.Collector = (*Collector)(nil)

// countedAs is the closed set of the label "as".
var countedAs = [...]string{"ready", "starting", "unknown", "stopping", "draining", "stopped"}

// families are the collector's metrics: name, help, labels.
var families = []struct {
	name, help string
	labels     []string
}{
	{"service_p95_seconds", "Request duration of a service, quantile 0.95 of the merged sketches of all its machines.", []string{"service"}},
	{"service_p95_samples", "Requests of the last minute that the quantile is made of.", []string{"service"}},
	{"service_error_ratio", "Share of failed requests of the last minute.", []string{"service"}},
	{"service_requests", "Requests of the last minute.", []string{"service"}},
	{"service_in_flight_requests", "Requests that are being worked on.", []string{"service"}},
	{"service_queue_depth", "Waiting requests or jobs: the service's one queue, or the mean of its machines.", []string{"service"}},
	{"service_cpu_ratio", "CPU pressure, mean of the machines that take traffic.", []string{"service"}},
	{"service_memory_ratio", "Memory in use, mean of the machines that take traffic.", []string{"service"}},
	{"service_machines", "Machines of a service by how they count against its cap.", []string{"service", "as"}},
	{"service_started_machines", "Machines that the Machines API calls started.", []string{"service"}},
	{"service_cap_machines", "The cap of a service.", []string{"service"}},
	{"service_baseline_machines", "Machines at rest.", []string{"service"}},
	{"service_paused", "1 while scaling of a service is paused.", []string{"service"}},
	{"service_budget_used_seconds", "Machine time of this UTC day.", []string{"service"}},
	{"service_budget_limit_seconds", "Machine time of a day after which rules add nothing; absent without a limit.", []string{"service"}},
	{"service_reversals", "Reversals between up and down in the last hour.", []string{"service"}},
	{"open_operations", "Scaling steps under way.", []string{"service", "kind"}},
	{"machine_report_age_seconds", "Age of the newest report of a machine that the API calls started.", []string{"machine", "service"}},
	{"alerts", "Alerts that are not at rest, by phase.", []string{"rule", "service", "severity", "phase"}},
	{"job_running", "1 while a run of a job is under way.", []string{"job"}},
	{"job_last_done_timestamp_seconds", "When the newest run of a job that was done ended, Unix time; absent before the first.", []string{"job"}},
	{"locks", "Locks that are held.", nil},
	{"silences", "Silences in force.", nil},
	{"round_age_seconds", "Time since the newest round began.", nil},
}

// NewCollector returns the collector of a leader.
func NewCollector(l *Leader) *Collector {
	c := &Collector{l: l, d: map[string]*prometheus.Desc{}}
	for _, f := range families {
		c.d[f.name] = prometheus.NewDesc("flymesh_leader_"+f.name, f.help, f.labels, nil)
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range families {
		ch <- c.d[f.name]
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	v, ok := c.l.View()
	if !ok {
		return
	}
	now := time.Now()
	set := func(name string, x float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(c.d[name], prometheus.GaugeValue, x, labels...)
	}
	st := c.l.Store.State()
	set("round_age_seconds", now.Sub(v.At).Seconds())
	tally := tallies(v.Verdicts)
	for _, s := range v.Input.Policy.Services {
		c.service(set, s, v.Input, tally[s.Name], st, now)
	}
	for _, m := range v.Input.Machines {
		if m.State == "started" && (m.Heard || m.ReportAge > 0) {
			set("machine_report_age_seconds", (m.ReportAge + now.Sub(v.At)).Seconds(), m.ID, m.Service)
		}
	}
	for _, key := range st.AlertKeys() {
		a := st.Alerts[key]
		set("alerts", 1, a.Rule, a.Service, a.Severity, string(a.Phase))
	}
	for _, j := range c.l.Jobs {
		job := st.Job(j.Name)
		running := 0.0
		if job.Running != nil {
			running = 1
		}
		set("job_running", running, j.Name)
		for _, r := range slices.Backward(job.Runs) {
			if r.State == state.RunDone {
				set("job_last_done_timestamp_seconds", float64(r.Ended.Unix()), j.Name)
				break
			}
		}
	}
	silences := 0.0
	for _, q := range st.Silences {
		if q.Until.After(now) {
			silences++
		}
	}
	set("silences", silences)
	set("locks", float64(len(st.Locks)))
}

func tallies(verdicts []decide.Verdict) map[string]map[string]int {
	out := map[string]map[string]int{}
	for _, v := range verdicts {
		n := map[string]int{}
		for _, m := range v.Counted {
			n[m.As]++
		}
		out[v.Service] = n
	}
	return out
}

func (c *Collector) service(set func(string, float64, ...string), s decide.Service, in decide.Input, tally map[string]int, st *state.State, now time.Time) {
	n := s.Name
	if h := in.History[n]; len(h) > 0 {
		sample(set, n, h[len(h)-1])
	}
	for _, as := range countedAs {
		set("service_machines", float64(tally[as]), n, as)
	}
	if in.Facts[n].APIError == "" {
		started := 0.0
		for _, m := range in.Machines {
			if m.Service == n && m.State == "started" {
				started++
			}
		}
		set("service_started_machines", started, n)
	}
	set("service_cap_machines", float64(s.Max), n)
	set("service_baseline_machines", float64(s.Baseline), n)
	paused := 0.0
	if in.Services[n].PausedUntil.After(now) {
		paused = 1
	}
	set("service_paused", paused, n)
	b := st.Service(n).Budget
	set("service_budget_used_seconds", b.Until(now).Spent.Seconds(), n)
	if s.BudgetHours > 0 {
		set("service_budget_limit_seconds", 3600*s.BudgetHours, n)
	}
	turns, _ := b.Turns(now)
	set("service_reversals", float64(turns), n)
	open := map[state.OpKind]float64{}
	for _, o := range st.Ops {
		if o.Service == n {
			open[o.Kind]++
		}
	}
	for _, k := range [...]state.OpKind{state.OpUp, state.OpDown} {
		set("open_operations", open[k], n, string(k))
	}
}

// sample shows what was measured; what is not known is absent.
func sample(set func(string, float64, ...string), service string, x window.Sample) {
	known := func(name string, v report.Value) {
		if v.OK {
			set(name, v.X, service)
		}
	}
	known("service_p95_seconds", x.P95.Value)
	known("service_error_ratio", x.ErrorRate.Value)
	known("service_queue_depth", x.Queue.Value)
	known("service_cpu_ratio", x.CPU.Value)
	known("service_memory_ratio", x.Memory.Value)
	known("service_in_flight_requests", x.InFlight)
	if x.Heard > 0 {
		set("service_p95_samples", x.P95Count, service)
		set("service_requests", x.Requests, service)
	}
}
