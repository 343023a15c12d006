package raftstore

import (
	"context"
	"io"
	"log/slog"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// raftLogger gives raft's log lines to slog. What raft calls a warning or an
// error is, with machines that come and go, mostly neither: Info at most.
func raftLogger(log *slog.Logger) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Output: io.Discard, Level: hclog.Off})
	l.RegisterSink(sink{log})
	return l
}

type sink struct{ log *slog.Logger }

// Accept implements hclog.SinkAdapter.
func (s sink) Accept(name string, level hclog.Level, msg string, args ...any) {
	to := slog.LevelDebug
	if level >= hclog.Error {
		to = slog.LevelInfo
	}
	if s.log.Enabled(context.Background(), to) {
		s.log.Log(context.Background(), to, "raft: "+msg, args...)
	}
}

type metrics struct {
	refused   *prometheus.CounterVec
	proposals *prometheus.CounterVec
	restarts  *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, s *Store) *metrics {
	f := promauto.With(reg)
	gauge := func(name, help string, v func() float64) {
		f.NewGaugeFunc(prometheus.GaugeOpts{Name: "flymesh_raftstore_" + name, Help: help}, v)
	}
	gauge("epoch", "Epoch of the cluster that is known as the mesh.", func() float64 { e, _ := s.known(); return float64(e) })
	gauge("leading", "1 where this machine leads.", func() float64 {
		if s.leading() != nil {
			return 1
		}
		return 0
	})
	gauge("term", "Raft term of this member; 0 outside raft.", func() float64 {
		if in := s.member(); in != nil {
			return float64(in.raft.CurrentTerm())
		}
		return 0
	})
	gauge("applied_index", "Newest log entry applied here.", func() float64 { return float64(s.State().Index) })
	gauge("voters_alive", "Voters that this machine knows to be alive.", func() float64 {
		n := 0.0
		for _, v := range s.Status().Voters {
			if v.Alive {
				n++
			}
		}
		return n
	})
	counter := func(name, help, label string) *prometheus.CounterVec {
		return f.NewCounterVec(prometheus.CounterOpts{Name: "flymesh_raftstore_" + name + "_total", Help: help}, []string{label})
	}
	return &metrics{
		refused:   counter("refused_connections", "Connections refused in the handshake.", "reason"),
		proposals: counter("proposals", "Proposals by outcome.", "outcome"),
		restarts:  counter("restarts", "Raft instances ended by cause.", "cause"),
	}
}
