package leader_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"flymesh/leader"
	"flymesh/leader/alert"
	"flymesh/leader/decide"
	"flymesh/leader/flyapi/flytest"
	"flymesh/raftstore/state"
)

// inbox is a receiver in the bubble: it keeps what it took, and fails as told.
type inbox struct {
	name  string
	again time.Duration

	mu    sync.Mutex // guards all below
	got   []string   // "key firing|resolved", in order
	at    []time.Time
	fail  error
	tries int
}

func (b *inbox) Name() string         { return b.name }
func (b *inbox) Wants(string) bool    { return true }
func (b *inbox) Again() time.Duration { return b.again }

func (b *inbox) Send(_ context.Context, n leader.Notice) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tries++
	if b.fail != nil {
		return b.fail
	}
	phase := "firing"
	if n.Resolved {
		phase = "resolved"
	}
	b.got, b.at = append(b.got, n.Key+" "+phase), append(b.at, time.Now())
	return nil
}

func (b *inbox) breaks(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail = err
}

func (b *inbox) all() ([]string, int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.got), b.tries
}

// alerted runs f on a stand whose three voters share the receivers. The service
// is in shadow mode, so that nothing but people can help.
func alerted(t *testing.T, f func(s *stand), boxes ...*inbox) {
	synctest.Test(t, func(t *testing.T) {
		r, err := decide.ParseRule("cpu > 90% for 5m")
		if err != nil {
			t.Fatal(err)
		}
		var rs []leader.Receiver
		for _, b := range boxes {
			rs = append(rs, b)
		}
		s := newStand(t, flytest.Timing{}, func(s *stand) {
			s.policy.Services[0].Mode = decide.Shadow
			s.tweak = func(o *leader.Options) {
				o.Alerting = leader.Alerting{Mesh: "m", Rules: alert.Metrics("n8n", alert.Page, []decide.Rule{r}), NoDataAfter: 3 * time.Minute, Receivers: rs}
			}
		})
		defer s.close()
		f(s)
	})
}

const page = "cpu_page/n8n"

func (s *stand) phase() state.Phase { return s.raft.state().Alerts[page].Phase }

func TestPageFiresOnceOverLeaderChanges(t *testing.T) {
	box := &inbox{name: "box"}
	alerted(t, func(s *stand) {
		s.lead("v0")
		time.Sleep(time.Minute)
		s.offer(1)
		began := time.Now()
		s.await("the alert is pending", time.Minute, func() bool { return s.phase() == state.Pending })
		time.Sleep(2 * time.Minute)
		s.raft.elect("") // the leader dies while the alert is pending
		time.Sleep(20 * time.Second)
		s.lead("v1")
		s.await("the alert fires", 4*time.Minute, func() bool { return s.phase() == state.Firing })
		if took := time.Since(began); took < 5*time.Minute || took > 5*time.Minute+20*time.Second {
			t.Errorf("fired %s after the breach began, want 5m and some seconds: the leader change must not restart its clock", took)
		}
		time.Sleep(10 * time.Second)
		for _, v := range []string{"v2", "v0", "v1"} { // and while it fires
			s.lead(v)
			time.Sleep(time.Minute)
		}
		if got, _ := box.all(); !slices.Equal(got, []string{page + " firing"}) {
			t.Errorf("told %q over four leaders, want one page", got)
		}
		s.offer(0.3)
		s.await("the alert is over", 5*time.Minute, func() bool { return s.phase() == state.Resolved })
		time.Sleep(10 * time.Second) // a leader that dies before it has recorded what it sent sends it again
		s.lead("v2")
		time.Sleep(time.Minute)
		if got, _ := box.all(); !slices.Equal(got, []string{page + " firing", page + " resolved"}) {
			t.Errorf("told %q, want the page and its end, once each", got)
		}
		time.Sleep(65 * time.Minute)
		if got := s.raft.state().Alerts; len(got) != 0 {
			t.Errorf("alerts kept an hour later: %v", got)
		}
	}, box)
}

func TestReceiversThatFail(t *testing.T) {
	down, bad, again := &inbox{name: "down"}, &inbox{name: "bad", again: time.Minute}, &inbox{name: "again", again: time.Minute}
	alerted(t, func(s *stand) {
		down.breaks(errors.New("answers 503"))
		bad.breaks(fmt.Errorf("%w: answers 400", leader.ErrRefused))
		s.offer(1)
		s.lead("v0")
		s.await("the alert fires", 10*time.Minute, func() bool { return s.phase() == state.Firing })
		fired := time.Now()
		time.Sleep(90 * time.Second)
		s.lead("v1")
		time.Sleep(90 * time.Second)
		down.breaks(nil)
		time.Sleep(65 * time.Second)
		if got, tries := down.all(); !slices.Equal(got, []string{page + " firing"}) || tries > 20 {
			t.Errorf("a receiver that was down for 3m: took %q after %d tries, want one page after few", got, tries)
		}
		if _, tries := bad.all(); tries != 1 {
			t.Errorf("a receiver that refuses was asked %d times, want once over both leaders", tries)
		}
		got, _ := again.all()
		if span := time.Since(fired); len(got) < int(span/time.Minute) {
			t.Errorf("a receiver that wants repeats got %d in %s", len(got), span)
		}
		for i := 1; i < len(again.at); i++ {
			if gap := again.at[i].Sub(again.at[i-1]); gap > 5*time.Minute {
				t.Errorf("%s between repeats: Alertmanager takes the alert for resolved", gap)
			}
		}
		s.offer(0.3)
		s.await("the alert is over", 5*time.Minute, func() bool { return s.phase() == state.Resolved })
		time.Sleep(5 * time.Second)
		if _, tries := bad.all(); tries != 1 {
			t.Errorf("a receiver that refused the page was asked %d times, want once", tries)
		}
	}, down, bad, again)
}

func TestSilenceAndNoData(t *testing.T) {
	box := &inbox{name: "box"}
	alerted(t, func(s *stand) {
		s.raft.person(state.Command{By: "ann", Silence: &state.Silence{Rule: "cpu_page", Until: time.Now().Add(20 * time.Minute), Reason: "known"}})
		s.offer(1)
		s.lead("v0")
		s.await("the alert fires", 10*time.Minute, func() bool { return s.phase() == state.Firing })
		time.Sleep(5 * time.Minute)
		if got, _ := box.all(); len(got) != 0 {
			t.Errorf("told %q while silenced", got)
		}
		time.Sleep(15 * time.Minute)
		if got, _ := box.all(); !slices.Equal(got, []string{page + " firing"}) {
			t.Errorf("told %q after the silence, want the page", got)
		}
		s.mu.Lock()
		for _, a := range s.agents {
			a.mute = true
		}
		s.mu.Unlock()
		time.Sleep(20 * time.Minute)
		if p := s.phase(); p != state.Firing {
			t.Errorf("phase = %q after 20m without data: silence must not resolve a page", p)
		}
		if a := s.raft.state().Alerts[page]; a.Unknown.IsZero() {
			t.Error("the alert does not say that nothing is known")
		}
	}, box)
}

// TestEventsTellAlerts holds that an alert is among the events.
func TestEventsTellAlerts(t *testing.T) {
	alerted(t, func(s *stand) {
		s.offer(1)
		s.lead("v0")
		s.await("the alert fires", 10*time.Minute, func() bool { return s.phase() == state.Firing })
		var found bool
		for _, e := range s.raft.state().Events {
			found = found || e.Kind == "alert" && e.Service == "n8n" && strings.Contains(e.Reason, "CPU is 100 %")
		}
		if !found {
			t.Errorf("no event tells of the alert:\n%s", s.story())
		}
	})
}
