package demo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"flymesh/agent/api"
	"flymesh/cmd/agentctl/emulator"
	"flymesh/leader/decide"
	"flymesh/raftstore/state"
)

// The loads as multiples of what one machine can do.
const (
	firstWave  = 1.3  // too much for one machine
	secondWave = 1.7  // too much for two under the 80 % line, right for three
	tooMuch    = 2.75 // too much for three under the 80 % line
	trickle    = 0.18 // little enough for one
)

// work is the CPU time that a request of the loaded apps burns.
const work = 15 * time.Millisecond

// bearing is one loaded service.
type bearing struct {
	service  string
	load     *Load
	capacity float64 // requests a second that one machine can do

	loaded  time.Time // when its load began
	settled time.Time // when its p95 was good again
}

// story is one showing: its parts, in the order in which they happen.
type story struct {
	o      Options
	em     *emulator.Emulator
	mesh   *fleet
	follow *follower
	out    *console
	loads  []*bearing

	began     time.Time
	pinned    string // machine of n8n that must never be touched
	pinnedPID int    // of its main process
	killing   Killing
	killed    error             // what went wrong in killing
	capped    decide.Verdict    // that the cap stops an addition
	past      []Past            // the mesh's history beside what happened
	passed    map[string]string // checks that the parts have seen, with what they saw
	told      chan struct{}     // closed when the parts are over
}

func newStory(o Options, em *emulator.Emulator, dial func(string) Mesh, out *console) *story {
	s := &story{o: o, em: em, mesh: &fleet{emulator: em, dial: dial}, out: out, began: out.began, passed: map[string]string{}, told: make(chan struct{})}
	s.follow = &follower{mesh: s.mesh, out: out}
	for i, x := range []struct{ service, path, body string }{
		{"n8n", "/webhook/answer", `{"question":"when do you open?"}`},
		{"embeddings", "/embed", `{"inputs":"when do you open?"}`},
	} {
		s.loads = append(s.loads, &bearing{
			service:  x.service,
			capacity: em.Cores(x.service) / work.Seconds(),
			load: NewLoad(LoadOptions{
				URL: em.Proxy(x.service) + x.path, Method: "POST", Body: x.body,
				Timeout: 10 * time.Second, MaxInFlight: 1000, Seed: s.o.Seed + uint64(i),
			}),
		})
	}
	return s
}

// tell shows the parts one after the other; the first that fails ends it.
func (s *story) tell(ctx context.Context) error {
	defer close(s.told)
	for _, part := range []func(context.Context) error{s.baseline, s.rise, s.recover, s.over, s.fall} {
		if err := part(ctx); err != nil {
			if !errors.Is(err, context.Canceled) {
				s.out.say("STOPPED: %v", err)
			}
			return err
		}
	}
	return nil
}

// baseline waits until the mesh stands.
func (s *story) baseline(ctx context.Context) error {
	s.out.title("Baseline: one machine of each app")
	err := until(ctx, "the baseline", 40*time.Second, func(ctx context.Context) (bool, string) {
		st, err := s.mesh.status(ctx)
		if err != nil {
			return false, err.Error()
		}
		if n := len(st.Quorum.Voters); n != 3 || !st.Quorum.Healthy {
			return false, fmt.Sprintf("%d of 3 voters", n)
		}
		for _, name := range []string{"n8n", "embeddings", "redis", "web"} {
			if x := service(st, name); !is(x.Started, 1) || !is(x.Ready, 1) {
				return false, name + " is not ready"
			}
		}
		for _, m := range st.Machines {
			if m.Service == "n8n" && m.Pinned {
				s.pinned = m.ID
			}
		}
		return s.pinned != "", "n8n has no primary yet"
	})
	if err != nil {
		return err
	}
	st, err := s.mesh.status(ctx)
	if err != nil {
		return err
	}
	m, _ := s.em.Machine(s.pinned)
	s.pinnedPID = m.PID
	s.out.say("mesh: complete: 4 machines ready, 3 voters, led by %s in term %d", s.follow.name(st.Leader.Machine), st.Term)
	s.pass("baseline", "4 apps of one ready machine each, 3 voters, a leader after %.1fs", time.Since(s.began).Seconds())
	return nil
}

// rise loads both services until each has three machines; the leader is killed
// after the first addition.
func (s *story) rise(ctx context.Context) error {
	s.out.title("Load: more than one machine of n8n and of embeddings can do")
	for _, b := range s.loads {
		b.loaded = time.Now()
		s.setRate(b, firstWave)
	}
	var beside sync.WaitGroup
	defer beside.Wait()
	killing := false
	second := map[string]bool{}
	return until(ctx, "three machines of n8n and of embeddings", 60*time.Second, func(context.Context) (bool, string) {
		var missing []string
		for _, b := range s.loads {
			done := s.follow.count(b.service, "up_done")
			if done >= 1 && !second[b.service] {
				second[b.service] = true
				s.setRate(b, secondWave)
			}
			if done < 2 {
				missing = append(missing, fmt.Sprintf("%s had %d of 2 additions", b.service, done))
			}
		}
		// Between two steps, while the cooldowns run: what the next leader has
		// to carry on are the timers.
		if len(second) == len(s.loads) && !killing {
			killing = true
			beside.Go(func() { s.killing, s.killed = s.killLeader(ctx) })
		}
		return len(missing) == 0, strings.Join(missing, ", ")
	})
}

// recover waits until the clients see good latencies again and the mesh's own
// figures agree.
func (s *story) recover(ctx context.Context) error {
	s.out.title("Three machines each: the same load is answered in time again")
	err := until(ctx, "good latency", 40*time.Second, func(ctx context.Context) (bool, string) {
		now, missing := time.Now(), []string{}
		for _, b := range s.loads {
			f := b.load.Between(now.Add(-4*time.Second), now)
			if f.P95 > 700*time.Millisecond || f.Count == 0 {
				missing = append(missing, fmt.Sprintf("%s p95 is %s", b.service, ms(f.P95)))
			} else if b.settled.IsZero() {
				b.settled = now
				s.out.say("%s: p95 of the last 4s is %s, as its clients see it", b.service, ms(f.P95))
			}
		}
		if len(missing) > 0 {
			return false, strings.Join(missing, ", ")
		}
		v, err := s.mesh.why(ctx, "n8n")
		if err != nil {
			return false, err.Error()
		}
		return v.Recovered, "the mesh still sees the breach of n8n"
	})
	return err
}

// over loads n8n so much that a fourth machine would be wanted.
func (s *story) over(ctx context.Context) error {
	s.out.title("Even more load on n8n: a fourth machine would help, but the cap is three")
	n8n := s.loads[0]
	s.setRate(n8n, tooMuch)
	err := until(ctx, "the cap to stop a fourth machine", 30*time.Second, func(ctx context.Context) (bool, string) {
		v, err := s.mesh.why(ctx, n8n.service)
		if err != nil {
			return false, err.Error()
		}
		wanted, stopped := false, false
		for _, r := range v.Rules {
			wanted = wanted || r.For == "up" && r.Holds
		}
		for _, g := range v.Guards {
			stopped = stopped || g.Code == decide.CodeCap && g.Blocks
		}
		s.capped = v
		return v.Verdict == decide.Hold && wanted && stopped, fmt.Sprintf("verdict %s: %s", v.Verdict, v.Reason.Text)
	})
	if err != nil {
		return err
	}
	s.out.say("n8n: %s: %s", s.capped.Verdict, s.capped.Reason.Text)
	s.pass("cap", "%s", s.capped.Reason.Text)
	return nil
}

// fall takes the load away and waits for the baseline.
func (s *story) fall(ctx context.Context) error {
	s.out.title("Load gone: back to one machine each")
	for _, b := range s.loads {
		s.setRate(b, trickle)
	}
	err := until(ctx, "one machine of n8n and of embeddings", 60*time.Second, func(ctx context.Context) (bool, string) {
		st, err := s.mesh.status(ctx)
		if err != nil {
			return false, err.Error()
		}
		var missing []string
		for _, b := range s.loads {
			if x, done := service(st, b.service), s.follow.count(b.service, "down_done"); done < 2 || !is(x.Started, 1) {
				missing = append(missing, fmt.Sprintf("%s had %d of 2 removals (%s)", b.service, done, text(x.Reason)))
			}
		}
		return len(missing) == 0, strings.Join(missing, ", ")
	})
	if err == nil {
		s.past, err = s.agreement(ctx)
	}
	return err
}

func (s *story) setRate(b *bearing, machines float64) {
	rate := machines * b.capacity
	b.load.SetRate(rate)
	s.out.say("%s: %.1f requests/s now; one machine can do %.1f", b.service, rate, b.capacity)
}

func (s *story) pass(check, format string, args ...any) {
	s.passed[check] = fmt.Sprintf(format, args...)
}

// figures says now and then how the loaded services do, until all is told.
func (s *story) figures(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.told:
			return
		case <-time.After(3 * time.Second):
		}
		st, err := s.mesh.status(ctx)
		now := time.Now()
		if err != nil || s.loads[0].load.Between(now.Add(-3*time.Second), now).Count == 0 {
			continue
		}
		var parts []string
		for _, b := range s.loads {
			f := b.load.Between(now.Add(-3*time.Second), now)
			parts = append(parts, fmt.Sprintf("%s %s, p95 %s", figure(st, b.service), rate(f, 3*time.Second), ms(f.P95)))
		}
		s.out.say("  [%s]", strings.Join(parts, "]  ["))
	}
}

func figure(st api.Status, name string) string {
	x := service(st, name)
	started, cpu, queue := "?", "?", "?"
	if x.Started != nil {
		started = fmt.Sprint(*x.Started)
	}
	if x.CPU.OK {
		cpu = fmt.Sprintf("%.0f%%", 100*x.CPU.X)
	}
	if x.Queue.OK {
		queue = fmt.Sprintf("%.0f", x.Queue.X)
	}
	return fmt.Sprintf("%s x%s cpu %s queue %s", name, started, cpu, queue)
}

func rate(f Figures, d time.Duration) string {
	text := fmt.Sprintf("%.0f/s", float64(f.Count)/d.Seconds())
	if f.Failed > 0 {
		text += fmt.Sprintf(" (%d failed)", f.Failed)
	}
	return text
}

func ms(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

func text(s *string) string {
	if s == nil {
		return "unknown"
	}
	return *s
}

// since returns the events of a service of one of the kinds.
func (s *story) eventsOf(service string, kinds ...string) []state.Event {
	var list []state.Event
	for _, e := range s.follow.all() {
		for _, k := range kinds {
			if e.Service == service && e.Kind == k {
				list = append(list, e)
			}
		}
	}
	return list
}

var errUnfinished = errors.New("not reached")
