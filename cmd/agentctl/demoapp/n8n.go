package demoapp

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// gone is the status under which a request is counted whose client gave up
// waiting. It is a 5xx so that the usual selector of errors sees it.
const gone = http.StatusGatewayTimeout

const maxBody = 1 << 20 // bytes of a request body

// newN8N is an n8n main with its webhooks: answers wait for the execution, the
// duration includes the wait in the queue.
func newN8N(o Options) app {
	p, reg := newPool(o), newRegistry()
	f := promauto.With(reg)
	duration := f.NewHistogramVec(prometheus.HistogramOpts{
		Name: "n8n_webhook_request_duration_seconds",
		Help: "Duration of webhook requests served, in seconds, with the wait in the queue. Buckets are finer than n8n's.",
		// From 5 ms by 20 % a bucket to 21 s, so that a quantile is good to 10 %.
		Buckets: prometheus.ExponentialBuckets(0.005, 1.2, 46),
	}, []string{"method", "status_code", "webhook_path"})
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "n8n_scaling_mode_queue_jobs_waiting",
		Help: "Current number of enqueued jobs waiting for pickup.",
	}, func() float64 { return float64(p.waiting.Load()) })
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "n8n_scaling_mode_queue_jobs_active",
		Help: "Current number of jobs being processed.",
	}, func() float64 { return float64(p.active.Load()) })

	mux := http.NewServeMux()
	for _, path := range []string{"answer", "estimate"} {
		duration.WithLabelValues(http.MethodPost, "200", path) // before the first request: zero requests, not no figure
		mux.HandleFunc("POST /webhook/"+path, func(w http.ResponseWriter, r *http.Request) {
			began := time.Now()
			code := webhook(w, r, p, o.Work)
			duration.WithLabelValues(r.Method, strconv.Itoa(code), path).Observe(time.Since(began).Seconds())
		})
	}
	ok := func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, map[string]string{"status": "ok"})
	}
	mux.HandleFunc("GET /healthz", ok)
	mux.HandleFunc("GET /healthz/readiness", ok)
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	return app{handler: mux, pool: p}
}

// webhook runs one execution and returns the status to count it under.
func webhook(w http.ResponseWriter, r *http.Request, p *pool, work time.Duration) int {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return reply(w, http.StatusBadRequest, map[string]string{"message": err.Error()})
	}
	sum, err := p.do(r.Context(), string(body), 1, work)
	switch {
	case errors.Is(err, errFull):
		return reply(w, http.StatusTooManyRequests, map[string]string{"message": err.Error()})
	case err != nil:
		return gone
	}
	return reply(w, http.StatusOK, map[string]string{"answer": hex.EncodeToString(sum[:8])})
}

// reply writes v as JSON and returns status.
func reply(w http.ResponseWriter, status int, v any) int {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client may be gone
	return status
}

func newRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}
