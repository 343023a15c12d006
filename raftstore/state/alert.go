package state

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// Phase is where an alert stands.
type Phase string

// The phases. An alert that is inactive and owes nobody a word is not kept.
const (
	Pending  Phase = "pending"  // its condition holds, not yet for long enough
	Firing   Phase = "firing"   // people are told
	Resolved Phase = "resolved" // it fired, and is over
	NoData   Phase = "no_data"  // nothing is known: neither good nor bad

	Refused Phase = "refused" // of a receiver alone: it will never take the alert
)

// Bounds of what is kept of alerts.
const (
	MaxAlerts   = 500
	MaxSilences = 100
)

// Alert is one rule that is not at rest. Its times are in the replicated
// state, so that a new leader neither starts a clock anew nor calls a person
// twice.
type Alert struct {
	Rule     string    `json:"rule"`
	Service  string    `json:"service,omitempty"` // empty: of the mesh itself
	Severity string    `json:"severity"`          // page | warn
	Phase    Phase     `json:"phase"`
	Since    time.Time `json:"since"` // since when its condition holds, without the time in which nothing was known
	// Unknown is since when nothing is known; zero: the newest data speak.
	Unknown  time.Time `json:"unknown,omitzero"`
	Fired    time.Time `json:"fired,omitzero"`
	Resolved time.Time `json:"resolved,omitzero"`
	Value    *float64  `json:"value,omitempty"` // at the newest change, base unit of the rule's metric
	Text     string    `json:"text"`            // what people read
	// Told says per receiver which phase it took, or that it refused one.
	Told map[string]Phase `json:"told,omitempty"`
}

// Key names the alert of a rule and a service: it does not change with the
// leader, the machine or the time.
func (a Alert) Key() string { return AlertKey(a.Rule, a.Service) }

// AlertKey is Alert.Key.
func AlertKey(rule, service string) string {
	if service == "" {
		return rule
	}
	return rule + "/" + service
}

func (a Alert) clone() Alert {
	a.Told = maps.Clone(a.Told)
	if a.Value != nil {
		v := *a.Value
		a.Value = &v
	}
	return a
}

// Silenced is a rule that nobody is told of until a time.
type Silenced struct {
	Until  time.Time `json:"until"`
	Reason string    `json:"reason"`
	By     string    `json:"by"`
}

// SetAlert moves an alert. It is rejected if the alert does not stand at Was.
type SetAlert struct {
	Key   string `json:"key"`
	Was   Phase  `json:"was,omitempty"`   // empty: it was not kept
	Alert *Alert `json:"alert,omitempty"` // null: forget it
}

// TellAlert records that a receiver has taken the news of a phase, or refused
// it for good. The firing it is about is told by its time.
type TellAlert struct {
	Key      string    `json:"key"`
	Receiver string    `json:"receiver"`
	Phase    Phase     `json:"phase"`
	Fired    time.Time `json:"fired"`
}

// TellSteps records that a receiver has taken (or refused for good) the news of
// all scaling steps up to an event. Rejected if it knows of a later one.
type TellSteps struct {
	Receiver string `json:"receiver"`
	Index    uint64 `json:"index"`
}

// Silence keeps a rule from telling anybody until a time; one that has passed
// ends a silence.
type Silence struct {
	Rule   string    `json:"rule"` // a rule, or a rule and a service: p95_page/n8n
	Until  time.Time `json:"until"`
	Reason string    `json:"reason"`
}

func (s *State) setAlert(index uint64, c Command) Result {
	m := c.SetAlert
	old, kept := s.Alerts[m.Key]
	if m.Key == "" || m.Alert != nil && m.Alert.Key() != m.Key {
		return reject(index, BadEntry, fmt.Sprintf("alert %q does not fit its key", m.Key))
	}
	if old.Phase != m.Was {
		return reject(index, Stale, fmt.Sprintf("alert %s is %q, not %q", m.Key, old.Phase, m.Was))
	}
	if m.Alert == nil {
		delete(s.Alerts, m.Key)
		return Result{Index: index}
	}
	if !kept && len(s.Alerts) >= MaxAlerts {
		return reject(index, Conflict, fmt.Sprintf("%d alerts are kept already", len(s.Alerts)))
	}
	if s.Alerts == nil {
		s.Alerts = map[string]Alert{}
	}
	a := m.Alert.clone()
	s.Alerts[m.Key] = a
	switch {
	case a.Phase == Firing && !old.Fired.Equal(a.Fired):
		s.tell(index, c, Event{Kind: "alert", Service: a.Service, Reason: joined(a.Rule, a.Text)})
	case a.Phase == Resolved && old.Phase != Resolved:
		s.tell(index, c, Event{Kind: "alert_resolved", Service: a.Service, Reason: joined(a.Rule, a.Text)})
	}
	return Result{Index: index}
}

func (s *State) tellAlert(index uint64, c Command) Result {
	m := c.TellAlert
	a, ok := s.Alerts[m.Key]
	if !ok || !a.Fired.Equal(m.Fired) {
		return reject(index, NoSuch, fmt.Sprintf("alert %s of %s is not kept", m.Key, m.Fired.UTC().Format(time.RFC3339)))
	}
	if a.Told == nil {
		a.Told = map[string]Phase{}
	} else {
		a.Told = maps.Clone(a.Told)
	}
	a.Told[m.Receiver] = m.Phase
	s.Alerts[m.Key] = a
	return Result{Index: index}
}

func (s *State) tellSteps(index uint64, c Command) Result {
	m := c.TellSteps
	if m.Receiver == "" || c.Term == 0 {
		return reject(index, BadEntry, "only a leader tells a receiver of steps")
	}
	if old, ok := s.Told[m.Receiver]; ok && m.Index <= old {
		return reject(index, Stale, fmt.Sprintf("%s knows of the steps up to %d", m.Receiver, old))
	}
	if s.Told == nil {
		s.Told = map[string]uint64{}
	}
	s.Told[m.Receiver] = m.Index
	return Result{Index: index}
}

func (s *State) silence(index uint64, c Command) Result {
	m := c.Silence
	if m.Rule == "" {
		return reject(index, BadEntry, "a silence names a rule")
	}
	for rule, q := range s.Silences {
		if !q.Until.After(c.At) {
			delete(s.Silences, rule)
		}
	}
	if !m.Until.After(c.At) {
		if _, ok := s.Silences[m.Rule]; !ok {
			return reject(index, NoSuch, fmt.Sprintf("rule %q is not silenced", m.Rule))
		}
		delete(s.Silences, m.Rule)
		s.tell(index, c, Event{Kind: "unsilence", Reason: m.Rule})
		return Result{Index: index}
	}
	if len(s.Silences) >= MaxSilences {
		return reject(index, Conflict, fmt.Sprintf("%d silences are kept already", len(s.Silences)))
	}
	if s.Silences == nil {
		s.Silences = map[string]Silenced{}
	}
	s.Silences[m.Rule] = Silenced{Until: m.Until, Reason: m.Reason, By: c.By}
	s.tell(index, c, Event{Kind: "silence", Reason: joined(m.Rule, "until "+m.Until.UTC().Format(time.RFC3339), m.Reason)})
	return Result{Index: index}
}

// SilencedAt returns the silence that covers an alert at a time.
func (s *State) SilencedAt(a Alert, now time.Time) (Silenced, bool) {
	for _, name := range []string{a.Key(), a.Rule} {
		if q, ok := s.Silences[name]; ok && q.Until.After(now) {
			return q, true
		}
	}
	return Silenced{}, false
}

// AlertKeys returns the keys of all alerts that are kept, sorted.
func (s *State) AlertKeys() []string { return slices.Sorted(maps.Keys(s.Alerts)) }

// cloneAlerts copies what alerts are made of.
func (s *State) cloneAlerts() (map[string]Alert, map[string]Silenced) {
	if s.Alerts == nil {
		return nil, maps.Clone(s.Silences)
	}
	as := make(map[string]Alert, len(s.Alerts))
	for k, a := range s.Alerts {
		as[k] = a.clone()
	}
	return as, maps.Clone(s.Silences)
}
