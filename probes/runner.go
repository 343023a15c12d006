package probes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"flymesh/probes/report"
)

// Schedule is one probe with its cadence.
type Schedule struct {
	Prober  Prober
	Every   time.Duration // from the start of one probe to the start of the next
	Timeout time.Duration // of one probe, at most Every
	Ready   bool          // the machine is ready only while this probe succeeds
}

// staleAfter is the number of periods after which a result no longer counts.
const staleAfter = 3

// Runner asks a set of probes. It is made by NewRunner, works while Run runs,
// and is read by Collect.
type Runner struct {
	probes  []Schedule
	log     *slog.Logger
	changed chan struct{} // capacity 1

	mu      sync.Mutex // guards results
	results []result   // parallel to probes
}

type result struct {
	at      time.Time // end of the probe; zero: none yet
	count   uint64    // of results so far
	reading Reading
	err     error
}

// NewRunner checks that the probes fit together and returns their Runner. It
// reports every problem at once.
func NewRunner(probes []Schedule, log *slog.Logger) (*Runner, error) {
	var problems []error
	names := map[string]bool{}
	source := map[Field]string{}
	for _, s := range probes {
		name := s.Prober.Name()
		if names[name] {
			problems = append(problems, fmt.Errorf("two probes are named %q", name))
		}
		names[name] = true
		if s.Every <= 0 || s.Timeout <= 0 || s.Timeout > s.Every {
			problems = append(problems, fmt.Errorf("probe %s: want 0 < timeout <= every, got %v and %v", name, s.Timeout, s.Every))
		}
		for i, field := range fieldNames {
			f := Field(1) << i
			if s.Prober.Fields()&exclusive&f == 0 {
				continue
			}
			if other, ok := source[f]; ok {
				problems = append(problems, fmt.Errorf("probes %s and %s both measure %s: only one may", other, name, field))
			}
			source[f] = name
		}
	}
	if len(problems) > 0 {
		return nil, fmt.Errorf("combine probes: %w", errors.Join(problems...))
	}
	return &Runner{
		probes:  slices.Clone(probes),
		log:     log.With("component", "probes"),
		results: make([]result, len(probes)),
		changed: make(chan struct{}, 1),
	}, nil
}

// Run asks each probe in its cadence until ctx ends, and returns nil when the
// last of them has returned.
func (r *Runner) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for i := range r.probes {
		wg.Go(func() { r.loop(ctx, i) })
	}
	wg.Wait()
	return nil
}

func (r *Runner) loop(ctx context.Context, i int) {
	s := r.probes[i]
	tick := time.NewTicker(s.Every)
	defer tick.Stop()
	failing := false
	for {
		probe, cancel := context.WithTimeout(ctx, s.Timeout)
		reading, err := s.Prober.Probe(probe)
		if err != nil && errors.Is(probe.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("no answer within %v", s.Timeout)
		}
		cancel()
		if ctx.Err() != nil {
			return
		}
		r.mu.Lock()
		r.results[i] = result{at: time.Now(), count: r.results[i].count + 1, reading: reading, err: err}
		r.mu.Unlock()
		select {
		case r.changed <- struct{}{}:
		default: // one is due already
		}

		// One line when a probe starts to fail and one when it recovers.
		switch {
		case err != nil && !failing:
			r.log.Warn("probe fails", "probe", s.Prober.Name(), "error", err)
		case err == nil && failing:
			r.log.Info("probe works again", "probe", s.Prober.Name())
		}
		failing = err != nil

		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Changed is sent to when a probe has a new result. It is for one receiver;
// results that come close together are told as one.
func (r *Runner) Changed() <-chan struct{} { return r.changed }

// Looks grows by one when every probe that readiness needs has a newer result,
// or should have one: a probe that hangs is a look, too. It is 0 before the
// first look, and where readiness needs no probe.
func (r *Runner) Looks() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	looks, now := uint64(math.MaxUint64), time.Now()
	for i, s := range r.probes {
		if !s.Ready {
			continue
		}
		n := r.results[i].count
		if n > 0 {
			n += uint64(max(0, now.Sub(r.results[i].at)/s.Every-1))
		}
		looks = min(looks, n)
	}
	if looks == math.MaxUint64 {
		return 0
	}
	return looks
}

// Collect merges the newest results. Ready is nil when no probe is needed for
// readiness, else it says whether all of those succeed, and Reason names the
// first that does not. Warm is nil when no probe says it, else whether all of those
// that do are. The problems name the probe and what is missing;
// Reading.Problems is empty.
func (r *Runner) Collect() (Reading, []string) {
	r.mu.Lock()
	results := slices.Clone(r.results)
	r.mu.Unlock()
	now := time.Now()

	var (
		all      Reading
		problems []string
		unknown  Field // of fields that a probe should know and does not
	)
	for i, s := range r.probes {
		name, res := s.Prober.Name(), results[i]
		switch age := now.Sub(res.at); {
		case res.at.IsZero():
			res.err = errors.New("no result yet")
		case age > staleAfter*s.Every:
			res.err = fmt.Errorf("no result for %v", age.Truncate(time.Second))
		}
		m := res.reading
		if res.err != nil {
			warm := m.Warm
			m = NotReady(res.err.Error())
			m.Problems = []string{res.err.Error()}
			if warm != nil {
				m.Warm = m.Ready // one that ever spoke of it does not know now
			}
		}
		for _, f := range m.Facts {
			f.Probe = name
			all.Facts = append(all.Facts, f)
		}
		if m.Replication != nil {
			all.Replication = m.Replication // a service has one redis probe with a role
		}
		if m.Warm != nil && (all.Warm == nil || *all.Warm) {
			warm := *m.Warm
			all.Warm = &warm
		}
		for _, p := range m.Problems {
			problems = append(problems, name+": "+p)
		}
		if s.Ready {
			ready := m.Ready == nil || *m.Ready
			if all.Ready == nil || *all.Ready && !ready {
				all.Ready = &ready
				if !ready {
					all.Reason = name + ": " + m.Reason
				}
			}
		}
		unknown |= merge(&all, m, s.Prober.Fields())
	}
	if unknown&CPU != 0 {
		all.CPU = report.Value{}
	}
	if unknown&Memory != 0 {
		all.Memory = report.Value{}
	}
	return all, problems
}

// merge adds m to all and returns which of CPU and Memory m should know and
// does not: the greatest of some sources may hide a saturated one.
func merge(all *Reading, m Reading, fields Field) (unknown Field) {
	if fields&CPU != 0 {
		all.CPU = greatest(all.CPU, m.CPU)
		all.Steal = greatest(all.Steal, m.Steal)
		if !m.CPU.OK {
			unknown |= CPU
		}
	}
	if fields&Memory != 0 {
		all.Memory = greatest(all.Memory, m.Memory)
		if !m.Memory.OK {
			unknown |= Memory
		}
	}
	if fields&Queue != 0 {
		all.Queue, all.QueueScope = m.Queue, m.QueueScope
	}
	if fields&InFlight != 0 {
		all.InFlight = m.InFlight
	}
	if fields&Requests != 0 {
		all.Requests = m.Requests
	}
	if fields&Errors != 0 {
		all.Errors = m.Errors
	}
	if fields&Latency != 0 {
		all.Latency = m.Latency
	}
	return unknown
}

func greatest(a, b report.Value) report.Value {
	if !a.OK || b.OK && b.X > a.X {
		return b
	}
	return a
}
