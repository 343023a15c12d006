package decide

import "flymesh/leader/window"

// In picks the metric out of a sample.
func (m Metric) In(s *window.Sample) window.Interval { return m.of(s) }

// Text writes a value of the metric for people: "1.8 s", "42 %".
func (m Metric) Text(x float64) string { return m.format(x) }
