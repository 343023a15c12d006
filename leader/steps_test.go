package leader_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"flymesh/leader"
	"flymesh/leader/flyapi/flytest"
)

// diary is a receiver of steps that fails as told.
type diary struct {
	mu    sync.Mutex // guards all below
	got   []string
	fail  []error // of the next attempts
	tries []time.Time
}

func (d *diary) Name() string { return "diary" }

func (d *diary) SendStep(_ context.Context, mesh string, s leader.Step) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tries = append(d.tries, time.Now())
	if len(d.fail) > 0 {
		err := d.fail[0]
		d.fail = d.fail[1:]
		if err != nil {
			return err
		}
	}
	d.got = append(d.got, fmt.Sprintf("%s %s %d->%d %s", mesh, s.Service, s.From, s.To, s.Why))
	return nil
}

func (d *diary) read() (got []string, tries []time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.got), slices.Clone(d.tries)
}

func (d *diary) fails(errs ...error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail, d.tries = errs, nil
}

// TestStepsAreToldOnce: each scaling step that is done is told once over leader
// changes, with backoff where that may help, and never again where it will not;
// a receiver that is new is not told of the past.
func TestStepsAreToldOnce(t *testing.T) {
	d := &diary{}
	bubble(t, flytest.DefaultTiming(), func(s *stand) {
		s.lead("v0")
		time.Sleep(time.Minute)
		step := func(n int) {
			t.Helper()
			s.scale(n)
			s.await(fmt.Sprint(n, " machines"), 5*time.Minute, func() bool { return len(s.started()) == n && len(s.raft.state().Ops) == 0 })
		}
		step(2)
		s.lead("v1") // the first that knows of the receiver
		time.Sleep(time.Minute)
		if got, _ := d.read(); len(got) > 0 {
			t.Errorf("told of what was before: %q", got)
		}

		down := errors.New("answers 429")
		d.fails(down, down, down)
		step(3)
		s.await("the step is told", time.Minute, func() bool { got, _ := d.read(); return len(got) == 1 })
		for _, v := range []string{"v2", "v1"} {
			s.lead(v)
			time.Sleep(time.Minute)
		}
		_, tries := d.read()
		if len(tries) != 4 {
			t.Fatalf("%d attempts, want 4", len(tries))
		}
		for i := 1; i < len(tries); i++ {
			if gap, least := tries[i].Sub(tries[i-1]), time.Second<<(i-1); gap < least || gap > least+2*time.Second {
				t.Errorf("attempt %d came %s after the one before, want about %s", i+1, gap, least)
			}
		}

		d.fails(fmt.Errorf("%w: answers 400", leader.ErrRefused))
		step(2)
		time.Sleep(2 * time.Minute)
		if _, tries := d.read(); len(tries) != 1 {
			t.Errorf("a step that is refused for good was sent %d times", len(tries))
		}
		step(3)
		time.Sleep(time.Minute)
		got, _ := d.read()
		if want := []string{"m n8n 2->3 ", "m n8n 2->3 "}; len(got) != 2 || got[0][:len(want[0])] != want[0] || got[1][:len(want[1])] != want[1] {
			t.Errorf("told %q, want two steps from 2 to 3", got)
		}
	}, func(s *stand) {
		s.tweak = func(o *leader.Options) {
			if o.Self != "v0" {
				o.Alerting = leader.Alerting{Mesh: "m", Steps: []leader.StepReceiver{d}}
			}
		}
	})
}
