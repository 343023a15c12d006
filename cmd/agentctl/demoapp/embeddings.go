package demoapp

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const maxBatch = 32 // texts of one request, as text-embeddings-inference has it

// newEmbeddings is a text-embeddings-inference server: 503 until its model is
// loaded, a queue that counts texts, 429 when the queue is full.
func newEmbeddings(o Options) app {
	s := &embeddings{pool: newPool(o), work: o.Work, dimensions: o.Dimensions}
	reg := newRegistry()
	f := promauto.With(reg)
	s.duration = f.NewHistogram(prometheus.HistogramOpts{
		Name: "te_request_duration",
		Help: "Duration of requests, in seconds, with the wait in the queue. Buckets are finer than the real server's.",
		// From 1 ms by 20 % a bucket to 25 s.
		Buckets: prometheus.ExponentialBuckets(0.001, 1.2, 56),
	})
	s.count = f.NewCounterVec(prometheus.CounterOpts{Name: "te_request_count", Help: "Requests received."}, []string{"method"})
	s.success = f.NewCounterVec(prometheus.CounterOpts{Name: "te_request_success", Help: "Requests answered."}, []string{"method"})
	s.failure = f.NewCounterVec(prometheus.CounterOpts{Name: "te_request_failure", Help: "Requests that failed, by cause."}, []string{"err"})
	f.NewGaugeFunc(prometheus.GaugeOpts{Name: "te_queue_size", Help: "Texts that wait for a worker."},
		func() float64 { return float64(s.pool.waiting.Load()) })
	f.NewGaugeFunc(prometheus.GaugeOpts{Name: "te_inflight_requests",
		Help: "Requests that are being answered. The real server has no such figure; without one a drain takes its whole time."},
		func() float64 { return float64(s.inFlight.Load()) })
	for _, err := range []string{"overloaded", "gone"} {
		s.failure.WithLabelValues(err) // a series that is absent is no zero
	}

	mux := http.NewServeMux()
	for _, path := range []string{"GET /health", "GET /ping", "GET /ready"} {
		mux.HandleFunc(path, s.health)
	}
	mux.HandleFunc("GET /live", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, "live") })
	mux.HandleFunc("POST /embed", s.embed)
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	return app{handler: mux, pool: s.pool, start: func(ctx context.Context) error { return s.load(ctx, o.LoadDelay) }}
}

type embeddings struct {
	pool       *pool
	work       time.Duration
	dimensions int
	loaded     atomic.Bool
	inFlight   atomic.Int64

	duration prometheus.Histogram
	count    *prometheus.CounterVec
	success  *prometheus.CounterVec
	failure  *prometheus.CounterVec
}

// load waits as long as reading a model takes and runs one inference.
func (s *embeddings) load(ctx context.Context, delay time.Duration) error {
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return ctx.Err()
	}
	if _, err := s.pool.do(ctx, "warm-up", 1, s.work); err != nil {
		return err
	}
	s.loaded.Store(true)
	return nil
}

func (s *embeddings) health(w http.ResponseWriter, _ *http.Request) {
	if !s.loaded.Load() {
		reply(w, http.StatusServiceUnavailable, teError{"model is loading", "unhealthy"})
		return
	}
	w.WriteHeader(http.StatusOK)
}

type teError struct {
	Error string `json:"error"`
	Type  string `json:"error_type"`
}

func (s *embeddings) embed(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	var req struct {
		Inputs json.RawMessage `json:"inputs"`
	}
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&req)
	texts, method := inputs(req.Inputs)
	switch {
	case err != nil || len(texts) == 0:
		reply(w, http.StatusUnprocessableEntity, teError{"inputs must be a text or a list of texts", "validation"})
		return
	case len(texts) > maxBatch:
		reply(w, http.StatusUnprocessableEntity, teError{"batch is too large", "validation"})
		return
	case !s.loaded.Load():
		reply(w, http.StatusServiceUnavailable, teError{"model is loading", "unhealthy"})
		return
	}
	s.count.WithLabelValues(method).Inc()
	s.inFlight.Add(1)
	defer s.inFlight.Add(-1)
	sum, err := s.pool.do(r.Context(), strings.Join(texts, "\n"), len(texts), s.work)
	s.duration.Observe(time.Since(began).Seconds())
	switch {
	case errors.Is(err, errFull):
		s.failure.WithLabelValues("overloaded").Inc()
		reply(w, http.StatusTooManyRequests, teError{"Model is overloaded", "overloaded"})
	case err != nil:
		s.failure.WithLabelValues("gone").Inc()
	default:
		s.success.WithLabelValues(method).Inc()
		out := make([][]float32, len(texts))
		for i := range texts {
			out[i] = vector(sum, i, s.dimensions)
		}
		reply(w, http.StatusOK, out)
	}
}

// inputs reads a text or a list of texts, and the method that counts it.
func inputs(raw json.RawMessage) (texts []string, method string) {
	var one string
	if json.Unmarshal(raw, &one) == nil && one != "" {
		return []string{one}, "single"
	}
	var many []string
	if json.Unmarshal(raw, &many) != nil {
		return nil, ""
	}
	return many, "batch"
}

// vector spreads the result of the work over n numbers of length one together.
func vector(sum [sha256.Size]byte, i, n int) []float32 {
	r := rand.New(rand.NewPCG(binary.LittleEndian.Uint64(sum[:]), uint64(i)))
	v, square := make([]float32, n), 0.0
	for k := range v {
		x := r.NormFloat64()
		v[k], square = float32(x), square+x*x
	}
	for k := range v {
		v[k] = float32(float64(v[k]) / math.Sqrt(square))
	}
	return v
}
