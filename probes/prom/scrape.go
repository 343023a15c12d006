package prom

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"sort"
	"strings"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// maxBody is the largest exposition that is read, in bytes.
const maxBody = 8 << 20

// scrape is one exposition, by family name.
type scrape map[string]*dto.MetricFamily

func get(ctx context.Context, client *http.Client, url string) (scrape, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "text/plain;version=0.0.4")
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("get %s: %s", url, resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", url, err)
	}
	if len(body) > maxBody {
		return nil, fmt.Errorf("get %s: more than %d bytes", url, maxBody)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", url, err)
	}
	declare(families, body)
	return families, nil
}

// declare adds the families that are announced and have no series yet, which
// the parser drops: a server that has had no request says so, it does not lack
// the metric.
func declare(families scrape, body []byte) {
	for line := range bytes.Lines(body) {
		rest, ok := bytes.CutPrefix(line, []byte("# TYPE "))
		if !ok {
			continue
		}
		name, kind, _ := strings.Cut(strings.TrimSpace(string(rest)), " ")
		if t, known := dto.MetricType_value[strings.ToUpper(kind)]; known && families[name] == nil {
			families[name] = &dto.MetricFamily{Name: &name, Type: dto.MetricType(t).Enum()}
		}
	}
}

// started returns when the server's process began by its own metric
// (process_start_time_seconds, with whatever prefix), or 0.
func (s scrape) started() float64 {
	start := 0.0
	for name, f := range s {
		if strings.HasSuffix(name, "process_start_time_seconds") && len(f.Metric) == 1 {
			start = max(start, value(f.Metric[0]))
		}
	}
	return start
}

var errNoMetric = errors.New("the server has no such metric")

// series returns the values that a selector picks, by their labels. A family
// that is there without a matching series gives an empty map: nothing of that
// kind happened yet. NAME_count and NAME_sum of a histogram are series, too.
func (s scrape) series(sel Selector) (map[string]float64, error) {
	read := value
	f := s[sel.Name]
	if f == nil {
		if base, ok := strings.CutSuffix(sel.Name, "_count"); ok {
			f, read = s[base], count
		} else if base, ok := strings.CutSuffix(sel.Name, "_sum"); ok {
			f, read = s[base], sum
		}
		if f != nil && f.GetType() != dto.MetricType_HISTOGRAM && f.GetType() != dto.MetricType_SUMMARY {
			f = nil
		}
	}
	if f == nil {
		return nil, fmt.Errorf("%s: %w", sel.Name, errNoMetric)
	}
	all := map[string]float64{}
	for _, m := range f.Metric {
		if !sel.matches(m.Label) {
			continue
		}
		x := read(m)
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return nil, fmt.Errorf("%s is %v", sel, x)
		}
		all[key(m.Label)] += x
	}
	return all, nil
}

// histograms returns the cumulative buckets that a selector picks, by labels
// and upper edge; the +Inf bucket is always there.
func (s scrape) histograms(sel Selector) (map[string]buckets, error) {
	f := s[sel.Name]
	if f == nil {
		return nil, fmt.Errorf("%s: %w", sel.Name, errNoMetric)
	}
	if f.GetType() != dto.MetricType_HISTOGRAM {
		return nil, fmt.Errorf("%s is no histogram but a %s", sel.Name, strings.ToLower(f.GetType().String()))
	}
	all := map[string]buckets{}
	for _, m := range f.Metric {
		if !sel.matches(m.Label) {
			continue
		}
		h := m.GetHistogram()
		b := buckets{math.Inf(1): float64(h.GetSampleCount())}
		for _, c := range h.Bucket {
			if edge := c.GetUpperBound(); edge > 0 && !math.IsInf(edge, 0) { // a negative duration is none
				b[edge] = float64(c.GetCumulativeCount())
			}
		}
		if len(b) == 1 {
			return nil, fmt.Errorf("%s has no buckets", sel.Name)
		}
		all[key(m.Label)] = b
	}
	return all, nil
}

// value returns the number of a counter, gauge or untyped series; NaN of others.
func value(m *dto.Metric) float64 {
	switch {
	case m.Counter != nil:
		return m.Counter.GetValue()
	case m.Gauge != nil:
		return m.Gauge.GetValue()
	case m.Untyped != nil:
		return m.Untyped.GetValue()
	}
	return math.NaN()
}

func count(m *dto.Metric) float64 {
	if m.Summary != nil {
		return float64(m.Summary.GetSampleCount())
	}
	return float64(m.GetHistogram().GetSampleCount())
}

func sum(m *dto.Metric) float64 {
	if m.Summary != nil {
		return m.Summary.GetSampleSum()
	}
	return m.GetHistogram().GetSampleSum()
}

// key identifies a series by its labels in any order.
func key(labels []*dto.LabelPair) string {
	parts := make([]string, 0, len(labels))
	for _, l := range labels {
		parts = append(parts, l.GetName()+"\xff"+l.GetValue())
	}
	sort.Strings(parts)
	return strings.Join(parts, "\xfe")
}
