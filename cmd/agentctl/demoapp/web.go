package demoapp

import (
	"io"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Marker is a text that the page of the web kind contains: a static site
// answers 200 for any path, so a probe has to look at the body.
const Marker = "flymesh demo site"

const page = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>` + Marker + `</title></head>
<body><main><h1>Ask a question</h1><form><input name="q"><button>Ask</button></form></main></body></html>
`

// newWeb is a static single-page site.
func newWeb() app {
	reg := newRegistry()
	duration := promauto.With(reg).NewHistogramVec(prometheus.HistogramOpts{
		Name: "http_request_duration_seconds", Help: "Duration of requests, in seconds.",
		Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
	}, []string{"code"})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /", func(w http.ResponseWriter, _ *http.Request) {
		began := time.Now()
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, page) // the client may be gone
		duration.WithLabelValues("200").Observe(time.Since(began).Seconds())
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	return app{handler: mux}
}
