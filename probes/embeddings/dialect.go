package embeddings

import (
	"context"
	"encoding/json"
	"strings"

	"flymesh/probes"
	"flymesh/probes/prom"
)

// dialect is what differs between the servers.
type dialect struct {
	path    string                                                    // of the embed
	request func(model string) any                                    // its body
	vectors func(body []byte) ([][]float64, error)                    // of its answer
	busy    func(status int, body string) bool                        // whether a refusal means overload
	metrics func() prom.Options                                       // nil: no Prometheus endpoint
	stats   func(context.Context, *Embeddings, *probes.Reading) error // more that it tells; may be nil
	fields  probes.Field                                              // beside those of metrics
}

// text is what a probe embeds.
const text = "is the model loaded?"

// inFlightFact is a gauge that some builds of TEI-like servers have; TEI
// itself has none, and the difference of its counters drifts (a batch counts
// its failures by text, an abandoned request is never finished).
const inFlightFact = "in_flight"

func dialectOf(name string) (dialect, bool) {
	switch name {
	case "tei":
		return dialect{
			path:    "/embed",
			request: func(string) any { return map[string]any{"inputs": text} },
			vectors: func(b []byte) (v [][]float64, err error) { err = json.Unmarshal(b, &v); return v, err },
			busy:    tooMany,
			fields:  probes.InFlight,
			// https://github.com/huggingface/text-embeddings-inference. A gauge of
			// texts that wait to be batched, between batches; failures that are the
			// client's fault are left out, "overloaded" (429) is in.
			metrics: func() prom.Options {
				return prom.Options{
					Latency: "te_request_duration", Requests: "te_request_count", Queue: "te_queue_size", Late: true,
					Errors: `te_request_failure{err!~"validation|token.*|batch_size|model_type|empty.*"}`,
					Gauges: []prom.Named{{Name: inFlightFact, Selector: "te_inflight_requests"}},
				}
			},
		}, true
	case "infinity":
		return dialect{
			path: "/embeddings", request: openAI, vectors: openAIVectors, busy: tooMany,
			fields: probes.Queue | probes.InFlight, stats: infinityStats,
			// https://github.com/michaelfeil/infinity with the defaults of
			// prometheus-fastapi-instrumentator: statuses are grouped, so a 429 cannot
			// be told from another 4xx and is not counted.
			metrics: func() prom.Options {
				return prom.Options{
					Latency:  `http_request_duration_seconds{handler=~".*/embeddings"}`,
					Requests: `http_requests_total{handler=~".*/embeddings"}`,
					Errors:   `http_requests_total{handler=~".*/embeddings",status=~"5.."}`,
				}
			},
		}, true
	case "ollama":
		return dialect{
			path: "/api/embed",
			// keep_alive -1: the model is not unloaded when it rests.
			request: func(model string) any { return map[string]any{"model": model, "input": text, "keep_alive": -1} },
			vectors: func(b []byte) ([][]float64, error) {
				var a struct{ Embeddings [][]float64 }
				err := json.Unmarshal(b, &a)
				return a.Embeddings, err
			},
			busy: func(status int, body string) bool {
				return tooMany(status, body) || strings.Contains(body, "server busy")
			},
			stats: ollamaStats,
		}, true
	case "openai":
		return dialect{path: "/v1/embeddings", request: openAI, vectors: openAIVectors, busy: tooMany}, true
	}
	return dialect{}, false
}
