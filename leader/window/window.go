package window

import (
	"maps"
	"slices"
	"time"

	"flymesh/probes/report"
)

// DefaultKeep is how much history a Window holds when Config.Keep is zero.
const DefaultKeep = 15 * time.Minute

const (
	// freshPeriods is the age in report periods up to which a report speaks
	// for its machine: two lost packets in a row are no silence.
	freshPeriods = 3
	// leavePeriods is how long the platform may go on listing a machine as
	// started after it said goodbye: stopping takes a moment.
	leavePeriods = 6
	// oldBoots is how many replaced boots of a machine are remembered, so that
	// their late packets do not pass for a new boot.
	oldBoots = 4
	// maxValue is the largest measurement that is believed.
	maxValue = 1e15
)

// Config is what a Window needs to know.
type Config struct {
	// Every is the report period, which is also the sample interval.
	Every time.Duration
	// Keep is how much history is held; it must be longer than the longest
	// rule. Zero means DefaultKeep.
	Keep time.Duration
	// MinSamples is the number of requests under which a service's p95 and
	// error rate are unknown; nil means that one request is enough.
	MinSamples func(service string) int
}

// Window is the recent past of every machine and service. Methods are called
// from one goroutine at a time; `now` never runs backwards but for a step of
// the wall clock.
type Window struct {
	cfg      Config
	machines map[string]*machine
	services map[string]*service
	ticked   time.Time
}

// machine is what is known of one machine. Its report speaks for it while
// fresh; heard, left and listed say whether it should speak.
type machine struct {
	id      string
	service string
	report  report.Report // newest; Machine is empty until one was heard
	heard   time.Time     // when the newest report came; zero: never
	left    time.Time     // when it was known to be gone; zero: it is not
	bye     bool          // its boot said goodbye itself and will not speak again
	listed  bool          // the platform's newest listing of its service has it
	old     []string      // replaced boots, oldest first
}

// stirred is when something was last known of the machine itself.
func (m *machine) stirred() time.Time {
	if m.left.After(m.heard) {
		return m.left
	}
	return m.heard
}

type service struct {
	listed time.Time // when the platform's newest listing came; zero: never
	series []Sample  // oldest first; elements are never changed once appended
}

// New returns an empty Window.
func New(cfg Config) *Window {
	if cfg.Every <= 0 {
		cfg.Every = 5 * time.Second
	}
	if cfg.Keep <= 0 {
		cfg.Keep = DefaultKeep
	}
	return &Window{cfg: cfg, machines: map[string]*machine{}, services: map[string]*service{}}
}

// Add takes a report in and says whether it was news: a replay, a packet out
// of order, one of a replaced boot and one without a machine or service are
// dropped. The Window keeps the report; its sketch must not change any more.
func (w *Window) Add(now time.Time, r report.Report) bool {
	if r.Machine == "" || r.Service == "" {
		return false
	}
	m := w.machine(r.Machine)
	if m.report.Boot == r.Boot && m.report.Machine != "" {
		if m.bye || r.Seq <= m.report.Seq {
			return false
		}
	} else if slices.Contains(m.old, r.Boot) {
		return false
	} else if m.report.Machine != "" {
		m.old = append(m.old, m.report.Boot)
		m.old = m.old[max(0, len(m.old)-oldBoots):]
	}
	if m.service != r.Service {
		m.listed = false
	}
	m.report, m.heard, m.service = r, now, r.Service
	m.left, m.bye = time.Time{}, r.Leaving
	if r.Leaving {
		m.left = now
	}
	w.service(r.Service)
	return true
}

// Leave says that a machine is known to be gone (stopped, destroyed, left in
// order), so that its silence is no missing data. It is expected again when it
// speaks, or when the platform lists it as started some periods later.
func (w *Window) Leave(now time.Time, id string) {
	if m := w.machines[id]; m != nil && m.left.IsZero() {
		m.left = now
	}
}

// Expect takes the platform's word on which machines of a service are started.
// They are expected even if they were never heard; a machine that is not among
// them is not, unless it speaks after this. The word holds for Config.Keep.
func (w *Window) Expect(now time.Time, name string, started []string) {
	if name == "" {
		return
	}
	for _, m := range w.machines {
		if m.service == name {
			m.listed = false
		}
	}
	for _, id := range started {
		m := w.machine(id)
		if m.service == "" {
			m.service = name
		}
		if m.service != name {
			continue // its own report knows better
		}
		m.listed = true
		if !m.left.IsZero() && now.Sub(m.left) > leavePeriods*w.cfg.Every {
			m.left = time.Time{}
		}
	}
	w.service(name).listed = now
}

// Latest returns the newest report of a machine and its age; ok is false when
// none was heard within Config.Keep.
func (w *Window) Latest(now time.Time, id string) (r report.Report, age time.Duration, ok bool) {
	m := w.machines[id]
	if m == nil || m.report.Machine == "" {
		return report.Report{}, 0, false
	}
	return m.report, max(0, now.Sub(m.heard)), true
}

// Fresh says whether an age still counts as heard.
func (w *Window) Fresh(age time.Duration) bool { return age <= freshPeriods*w.cfg.Every }

// Machines returns the IDs of all machines that are heard, expected or were so
// within Config.Keep, sorted.
func (w *Window) Machines() []string { return slices.Sorted(maps.Keys(w.machines)) }

// Services returns the names of all services with machines or history, sorted.
func (w *Window) Services() []string { return slices.Sorted(maps.Keys(w.services)) }

// Series returns the samples of a service, oldest first. The slice stays valid
// and unchanged whatever happens to the Window; the caller must not write to it.
func (w *Window) Series(name string) []Sample {
	s := w.services[name]
	if s == nil {
		return nil
	}
	return slices.Clip(s.series)
}

func (w *Window) machine(id string) *machine {
	m := w.machines[id]
	if m == nil {
		m = &machine{id: id}
		w.machines[id] = m
	}
	return m
}

func (w *Window) service(name string) *service {
	s := w.services[name]
	if s == nil {
		s = &service{}
		w.services[name] = s
	}
	return s
}

// speaks says whether the machine's newest report stands for it at now.
func (w *Window) speaks(now time.Time, m *machine) bool {
	return m.report.Machine != "" && m.left.IsZero() && w.Fresh(now.Sub(m.heard))
}

// expected says whether a machine that does not speak should. Of the platform
// and the machine itself, the newer word counts.
func (w *Window) expected(now time.Time, m *machine) bool {
	if !m.left.IsZero() {
		return false
	}
	listed := w.service(m.service).listed
	if !listed.IsZero() && listed.After(m.heard) && now.Sub(listed) <= w.cfg.Keep {
		return m.listed
	}
	return !m.heard.IsZero() && now.Sub(m.heard) <= w.cfg.Keep
}
