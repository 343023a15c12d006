package probes

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"flymesh/probes/report"
)

// source is a prober that says what it is told to.
type source struct {
	name   string
	fields Field
	probe  func(ctx context.Context, n int) (Reading, error)
	calls  int
}

func (s *source) Name() string  { return s.name }
func (s *source) Fields() Field { return s.fields }
func (s *source) Probe(ctx context.Context) (Reading, error) {
	s.calls++
	return s.probe(ctx, s.calls)
}

func says(m Reading) func(context.Context, int) (Reading, error) {
	return func(context.Context, int) (Reading, error) { return m, nil }
}

func every(p Prober, ready bool) Schedule {
	return Schedule{Prober: p, Every: 5 * time.Second, Timeout: 2 * time.Second, Ready: ready}
}

// run runs the probes in a bubble while f looks at what the runner collects.
func run(t *testing.T, f func(t *testing.T, r *Runner), list ...Schedule) {
	synctest.Test(t, func(t *testing.T) {
		r, err := NewRunner(list, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		f(t, r)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func want(t *testing.T, r *Runner, m Reading, problems ...string) {
	t.Helper()
	synctest.Wait()
	got, p := r.Collect()
	if diff := cmp.Diff(m, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(problems, p); diff != "" {
		t.Error(diff)
	}
}

func ready(is bool) *bool { return &is }

func TestMerge(t *testing.T) {
	sketch := report.NewSketch()
	host := &source{name: "host", fields: CPU | Memory, probe: says(Reading{CPU: report.Of(0.3), Steal: report.Of(0.1), Memory: report.Of(0.9)})}
	redis := &source{name: "redis", fields: CPU | Memory, probe: says(Reading{CPU: report.Of(0.7), Memory: report.Of(0.2), Ready: ready(true)})}
	app := &source{name: "app", fields: Queue | InFlight | Requests | Errors | Latency, probe: says(Reading{
		Queue: report.Of(0), QueueScope: report.QueueService, InFlight: report.Of(1), Requests: report.Of(9), Errors: report.Of(2), Latency: sketch,
		Ready: ready(false), Reason: "not asked", Problems: []string{"in part"}})}
	run(t, func(t *testing.T, r *Runner) {
		m := Reading{CPU: report.Of(0.7), Steal: report.Of(0.1), Memory: report.Of(0.9), Queue: report.Of(0), QueueScope: report.QueueService,
			InFlight: report.Of(1), Requests: report.Of(9), Errors: report.Of(2), Latency: sketch, Ready: ready(true)}
		want(t, r, m, "app: in part")
		var rep report.Report
		m.Fill(&rep)
		if diff := cmp.Diff(report.Report{CPU: m.CPU, Steal: m.Steal, Memory: m.Memory, Queue: m.Queue, QueueScope: m.QueueScope,
			InFlight: m.InFlight, Requests: m.Requests, Errors: m.Errors, Latency: m.Latency}, rep); diff != "" {
			t.Error(diff)
		}
	}, every(host, true), every(redis, true), every(app, false))
}

// One of two sources of a field that failed hides the field: the other may be
// the idle one.
func TestFailureIsAbsentAtOnce(t *testing.T) {
	host := &source{name: "host", fields: CPU | Memory, probe: says(Reading{CPU: report.Of(0.3), Memory: report.Of(0.9)})}
	redis := &source{name: "redis", fields: CPU | Queue, probe: func(_ context.Context, n int) (Reading, error) {
		if n == 2 {
			return Reading{CPU: report.Of(0), Queue: report.Of(0)}, errors.New("refused")
		}
		return Reading{CPU: report.Of(0.1), Queue: report.Of(4)}, nil
	}}
	run(t, func(t *testing.T, r *Runner) {
		if m, p := r.Collect(); m.CPU.OK || m.Ready == nil || *m.Ready || m.Reason != "redis: no result yet" || len(p) != 2 {
			t.Errorf("before any result: %+v, %q", m, p)
		}
		good := Reading{CPU: report.Of(0.3), Memory: report.Of(0.9), Queue: report.Of(4), Ready: ready(true)}
		want(t, r, good)
		time.Sleep(5 * time.Second)
		want(t, r, Reading{Memory: report.Of(0.9), Ready: ready(false), Reason: "redis: refused"}, "redis: refused")
		time.Sleep(5 * time.Second)
		want(t, r, good)
	}, every(host, false), every(redis, true))
}

func TestHungProbe(t *testing.T) {
	release := make(chan struct{})
	for name, hang := range map[string]func(ctx context.Context){
		"keeps its deadline": func(ctx context.Context) { <-ctx.Done() },
		"ignores it":         func(context.Context) { <-release },
	} {
		t.Run(name, func(t *testing.T) {
			s := &source{name: "app", fields: Queue, probe: func(ctx context.Context, n int) (Reading, error) {
				if n > 1 {
					hang(ctx)
					return Reading{}, ctx.Err()
				}
				return Reading{Queue: report.Of(4)}, nil
			}}
			other := &source{name: "host", fields: CPU, probe: says(Reading{CPU: report.Of(0.5)})}
			synctest.Test(t, func(t *testing.T) {
				release = make(chan struct{})
				r, err := NewRunner([]Schedule{every(s, true), every(other, false)}, slog.New(slog.DiscardHandler))
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error)
				go func() { done <- r.Run(ctx) }()
				time.Sleep(16 * time.Second) // three periods after the last result
				synctest.Wait()
				m, p := r.Collect()
				if m.Queue.OK || m.Ready == nil || *m.Ready || len(p) != 1 || !strings.Contains(p[0], "for 16s") && !strings.Contains(p[0], "no answer within 2s") {
					t.Errorf("got %+v, %q", m, p)
				}
				if !m.CPU.OK {
					t.Error("a hung probe took another one with it")
				}
				cancel()
				close(release)
				<-done
			})
		})
	}
}

func TestCadence(t *testing.T) {
	fast := &source{name: "fast", probe: says(Reading{})}
	slow := &source{name: "slow", probe: says(Reading{})}
	run(t, func(t *testing.T, r *Runner) {
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		if fast.calls != 123 || slow.calls != 3 {
			t.Errorf("%d and %d calls, want 123 and 3", fast.calls, slow.calls)
		}
	}, Schedule{Prober: fast, Every: 500 * time.Millisecond, Timeout: 100 * time.Millisecond},
		Schedule{Prober: slow, Every: 30 * time.Second, Timeout: 30 * time.Second})
}

func TestOneLinePerFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		s := &source{name: "app", probe: func(_ context.Context, n int) (Reading, error) {
			if n%4 != 0 {
				return Reading{}, errors.New("refused")
			}
			return Reading{}, nil
		}}
		r, err := NewRunner([]Schedule{every(s, false)}, slog.New(slog.NewTextHandler(&out, nil)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 38*time.Second) // 8 probes
		defer cancel()
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
		if f, w := strings.Count(out.String(), "probe fails"), strings.Count(out.String(), "works again"); f != 2 || w != 2 {
			t.Errorf("%d and %d lines, want 2 and 2:\n%s", f, w, out.String())
		}
	})
}

func TestNewRunnerRefuses(t *testing.T) {
	a := &source{name: "redis", fields: Queue | CPU}
	b := &source{name: "main", fields: Queue | CPU | Latency}
	_, err := NewRunner([]Schedule{every(a, false), every(b, false), {Prober: b, Every: time.Second, Timeout: 2 * time.Second}}, slog.New(slog.DiscardHandler))
	if err == nil {
		t.Fatal("no error")
	}
	for _, part := range []string{
		"probes redis and main both measure queue",
		"probes main and main both measure latency",
		`two probes are named "main"`,
		"probe main: want 0 < timeout <= every, got 2s and 1s",
	} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not contain %q", err, part)
		}
	}
	if strings.Contains(err.Error(), "cpu") {
		t.Errorf("two sources of cpu were refused: %v", err)
	}
}

// What a probe tells beside the report's fields comes through with its name;
// warm is only said where some probe says it, and all must agree.
func TestFactsWarmAndLooks(t *testing.T) {
	model := &source{name: "model", probe: func(_ context.Context, n int) (Reading, error) {
		return Reading{Ready: ready(true), Warm: ready(n > 1), Facts: []Fact{{Name: "dimension", Value: report.Of(384)}}}, nil
	}}
	plain := &source{name: "plain", probe: says(Reading{Facts: []Fact{{Name: "role", Text: "primary"}}})}
	slow := every(plain, true)
	slow.Every = 20 * time.Second
	run(t, func(t *testing.T, r *Runner) {
		facts := []Fact{{Probe: "model", Name: "dimension", Value: report.Of(384)}, {Probe: "plain", Name: "role", Text: "primary"}}
		want(t, r, Reading{Ready: ready(true), Warm: ready(false), Facts: facts})
		if n := r.Looks(); n != 1 {
			t.Errorf("%d looks after one each", n)
		}
		time.Sleep(6 * time.Second)
		want(t, r, Reading{Ready: ready(true), Warm: ready(true), Facts: facts})
		if n := r.Looks(); n != 1 {
			t.Errorf("%d looks, but the slow one has answered once", n)
		}
		time.Sleep(15 * time.Second)
		synctest.Wait()
		if n := r.Looks(); n != 2 {
			t.Errorf("%d looks after two of the slow one", n)
		}
	}, every(model, true), slow)
	// A probe that hangs past its deadline is a failing look each period.
	release := make(chan struct{})
	hung := &source{name: "hung", probe: func(_ context.Context, n int) (Reading, error) {
		if n > 1 {
			<-release
		}
		return Reading{}, nil
	}}
	synctest.Test(t, func(t *testing.T) {
		release = make(chan struct{})
		r, err := NewRunner([]Schedule{every(hung, true)}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		time.Sleep(time.Second)
		before := r.Looks()
		time.Sleep(30 * time.Second)
		if n := r.Looks(); before != 1 || n < 5 {
			t.Errorf("%d looks, and %d after 30 s of silence", before, n)
		}
		cancel()
		close(release)
		<-done
	})
}
