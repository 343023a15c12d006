package leader

import (
	"errors"
	"slices"
	"strings"

	"flymesh/leader/decide"
	"flymesh/raftstore/state"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics counts what the leader decides, does and tells. Counters are of this
// machine's own terms: over the mesh they are summed. A nil *Metrics counts
// nothing. What a leader knows of the mesh is Collector's.
type Metrics struct {
	decisions  *prometheus.CounterVec
	operations *prometheus.CounterVec
	runs       *prometheus.CounterVec
	notices    *prometheus.CounterVec
	seen       uint64 // index of the newest event counted; only the term's goroutine uses it
}

// NewMetrics registers the leader's counters.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	f := promauto.With(reg)
	return &Metrics{
		decisions: f.NewCounterVec(prometheus.CounterOpts{
			Name: "flymesh_leader_decisions_total", Help: "Verdicts of the policy, one per service and round.",
		}, []string{"service", "verdict", "reason"}),
		operations: f.NewCounterVec(prometheus.CounterOpts{
			Name: "flymesh_leader_operations_total", Help: "Scaling steps that ended, by kind and outcome.",
		}, []string{"service", "kind", "outcome"}),
		runs: f.NewCounterVec(prometheus.CounterOpts{
			Name: "flymesh_leader_job_runs_total", Help: "Runs of jobs that ended, and ticks that were passed over, by outcome.",
		}, []string{"job", "outcome"}),
		notices: f.NewCounterVec(prometheus.CounterOpts{
			Name: "flymesh_leader_notices_total", Help: "Attempts to tell a receiver of an alert, by outcome.",
		}, []string{"receiver", "outcome"}),
	}
}

func (m *Metrics) round(verdicts []decide.Verdict) {
	if m == nil {
		return
	}
	for _, v := range verdicts {
		m.decisions.WithLabelValues(v.Service, v.Verdict, string(v.Reason.Code)).Inc()
	}
}

// begin leaves what earlier leaders did to their own counters, and starts this
// machine's at 0, so that the first step is seen as an increase.
func (m *Metrics) begin(st *state.State, services []Service, jobs []Job) {
	if m == nil {
		return
	}
	if len(st.Events) > 0 {
		m.seen = st.Events[len(st.Events)-1].Index
	}
	for _, j := range jobs {
		for _, outcome := range runOutcomes {
			m.runs.WithLabelValues(j.Name, string(outcome))
		}
	}
	for _, s := range services {
		for _, kind := range []state.OpKind{state.OpUp, state.OpDown} {
			for _, outcome := range []state.Outcome{state.Done, state.Failed, state.Abandoned} {
				m.operations.WithLabelValues(s.Policy.Name, string(kind), string(outcome))
			}
		}
	}
}

// runOutcomes are the ends of a run, and what becomes of a tick without one.
var runOutcomes = [...]state.RunState{state.RunDone, state.RunFailed, state.RunLost, state.RunReturned, state.RunSkipped}

// ended counts the operations and runs that ended since it was called last.
func (m *Metrics) ended(st *state.State) {
	if m == nil {
		return
	}
	for _, e := range st.Events {
		if e.Index <= m.seen {
			continue
		}
		m.seen = e.Index
		kind, outcome, ok := strings.Cut(e.Kind, "_")
		if i := strings.IndexAny(e.Reason, "@#"); kind == "job" && i > 0 && slices.Contains(runOutcomes[:], state.RunState(outcome)) {
			m.runs.WithLabelValues(e.Reason[:i], outcome).Inc() // JOB@TICK or JOB#REQUEST
			continue
		}
		switch state.Outcome(outcome) {
		case state.Done, state.Failed, state.Abandoned:
			if k := state.OpKind(kind); ok && (k == state.OpUp || k == state.OpDown) {
				m.operations.WithLabelValues(e.Service, kind, outcome).Inc()
			}
		}
	}
}

func (m *Metrics) notified(receiver string, err error) {
	if m == nil {
		return
	}
	outcome := "ok"
	switch {
	case errors.Is(err, ErrRefused):
		outcome = "refused"
	case err != nil:
		outcome = "failed"
	}
	m.notices.WithLabelValues(receiver, outcome).Inc()
}
