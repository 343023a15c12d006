package embeddings

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"time"

	"flymesh/probes"
	"flymesh/probes/report"
)

// maxBody is the largest answer that is read, in bytes: a vector of 8,192
// numbers of 20 digits is far below it.
const maxBody = 1 << 20

// busyError says that the server refused because it has too much to do.
type busyError struct{ text string }

func (b *busyError) Error() string { return b.text }

// embed embeds one text and returns the dimension of the vector, whose numbers
// are finite and not all 0.
func (e *Embeddings) embed(ctx context.Context) (dimension int, err error) {
	if e.options.Dialect == "ollama" {
		if err := e.ollamaLoaded(ctx); err != nil {
			return 0, err
		}
	}
	status, body, err := e.ask(ctx, http.MethodPost, e.dialect.path, e.dialect.request(e.options.Model))
	if err != nil {
		return 0, err
	}
	if status != http.StatusOK {
		said := strings.TrimSpace(string(body[:min(len(body), 120)]))
		if e.dialect.busy(status, said) {
			return 0, &busyError{fmt.Sprintf("overloaded: status %d: %s", status, said)}
		}
		return 0, fmt.Errorf("embed: status %d: %s", status, said)
	}
	// Numbers that JSON cannot write, NaN among them, fail here.
	vectors, err := e.dialect.vectors(body)
	if err != nil {
		return 0, fmt.Errorf("read embed: %w", err)
	}
	if len(vectors) != 1 || len(vectors[0]) == 0 {
		return 0, fmt.Errorf("one text gave %d vectors", len(vectors))
	}
	sum := 0.0
	for _, x := range vectors[0] {
		sum += math.Abs(x)
	}
	if sum == 0 || math.IsNaN(sum) || math.IsInf(sum, 0) {
		return 0, fmt.Errorf("an embed of %d numbers sums up to %v", len(vectors[0]), sum)
	}
	return len(vectors[0]), nil
}

// ask sends one request with a JSON body, or none.
func (e *Embeddings) ask(ctx context.Context, method, path string, body any) (status int, answer []byte, err error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return 0, nil, err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, e.options.URL+path, r)
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("User-Agent", "flymesh-probe")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := e.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, maxBody))
	return resp.StatusCode, answer, err
}

// get reads a JSON document.
func (e *Embeddings) get(ctx context.Context, path string, to any) error {
	status, body, err := e.ask(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("get %s: status %d", path, status)
	}
	if err := json.Unmarshal(body, to); err != nil {
		return fmt.Errorf("get %s: %w", path, err)
	}
	return nil
}

func tooMany(status int, _ string) bool { return status == http.StatusTooManyRequests }

// openAI is the request of https://platform.openai.com/docs/api-reference/embeddings.
func openAI(model string) any { return map[string]any{"model": model, "input": text} }

func openAIVectors(b []byte) ([][]float64, error) {
	var a struct {
		Data []struct{ Embedding []float64 }
	}
	err := json.Unmarshal(b, &a)
	var vectors [][]float64
	for _, d := range a.Data {
		vectors = append(vectors, d.Embedding)
	}
	return vectors, err
}

// infinityStats reads GET /models: its queue is not in its metrics.
func infinityStats(ctx context.Context, e *Embeddings, m *probes.Reading) error {
	var a struct {
		Data []struct {
			ID    string
			Stats struct {
				Queue   *float64 `json:"queue_absolute"`
				Pending *float64 `json:"results_pending"`
			}
		}
	}
	if err := e.get(ctx, "/models", &a); err != nil {
		return fmt.Errorf("queue: %w", err)
	}
	for _, d := range a.Data {
		if d.ID != e.options.Model {
			continue
		}
		if q := d.Stats.Queue; q != nil && *q >= 0 {
			m.Queue = report.Of(*q)
		}
		if p := d.Stats.Pending; p != nil && *p >= 0 {
			m.InFlight = report.Of(*p)
		}
		if !m.Queue.OK {
			return errors.New("queue: /models has no queue_absolute")
		}
		return nil
	}
	return fmt.Errorf("queue: /models does not list %q", e.options.Model)
}

type ollamaModels struct {
	Models []struct {
		Name, Model string
		Size        float64
		Expires     time.Time `json:"expires_at"`
	}
}

// ollamaLoaded asks GET /api/ps: Ollama is alive without a model. One that is
// not listed is loaded by the embed itself, in the background where it takes
// longer than a probe.
func (e *Embeddings) ollamaLoaded(ctx context.Context) error {
	var a ollamaModels
	if err := e.get(ctx, "/api/ps", &a); err != nil {
		return err
	}
	if _, ok := a.find(e.options.Model); ok {
		return nil
	}
	_, body, err := e.ask(ctx, http.MethodPost, e.dialect.path, e.dialect.request(e.options.Model))
	if err == nil {
		err = fmt.Errorf("model %q was not listed by /api/ps: %s", e.options.Model, strings.TrimSpace(string(body[:min(len(body), 120)])))
	}
	return err
}

func (o ollamaModels) find(model string) (size float64, ok bool) {
	for _, m := range o.Models {
		if m.Name == model || m.Model == model || strings.TrimSuffix(m.Name, ":latest") == model {
			return m.Size, true
		}
	}
	return 0, false
}

// ollamaStats tells the size of the loaded model: Ollama has no queue and no
// durations to ask for.
func ollamaStats(ctx context.Context, e *Embeddings, m *probes.Reading) error {
	var a ollamaModels
	if err := e.get(ctx, "/api/ps", &a); err != nil {
		return err
	}
	if size, ok := a.find(e.options.Model); ok {
		m.Facts = append(m.Facts, fact("model_bytes", size))
	}
	return nil
}
