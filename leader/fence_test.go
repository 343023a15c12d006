package leader_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"flymesh/leader"
	"flymesh/leader/alert"
	"flymesh/leader/flyapi/flytest"
	"flymesh/raftstore/state"
)

// want asks for a lock as a program of a machine that the stand does not know.
func (s *stand) want(m *lockSim, session, lock string, p state.LockPolicy) leader.LockAnswer {
	a, err := m.ask(&box{id: session}, leader.LockRequest{
		Verb: leader.LockAcquire, ID: fmt.Sprint(session, m.n(1<<40)), Lock: lock, Policy: p,
		Holder: state.Holder{Machine: session, App: appName, Boot: "b", Session: session},
	})
	if err != nil {
		a = leader.LockAnswer{}
	}
	return a
}

// holdFrozen has a machine take both locks and freeze, and returns it.
func holdFrozen(s *stand, m *lockSim) *box {
	var b *box
	for _, o := range m.boxes {
		b = o
	}
	for _, l := range simLocks {
		w := &work{box: b, boot: b.boot, lock: l.name, policy: l.policy, session: "first-" + l.name}
		m.with(func() { b.sessions[w.session] = w })
		s.await("lock "+l.name, time.Minute, func() bool { return m.acquire(w) })
	}
	m.with(func() { b.frozen = true })
	return b
}

// TestSilentHolderIsFencedByThePlatform: a frozen holder's fenced lock is not
// granted while the API is down, and an alert says why; an expiry lock is; when
// the API is back the machine is stopped first, and then the lock is granted.
func TestSilentHolderIsFencedByThePlatform(t *testing.T) {
	bubble(t, flytest.DefaultTiming(), func(s *stand) {
		s.seed("more", 2, true)
		time.Sleep(time.Minute)
		s.lead("v0")
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		m := newLockSim(ctx, s, 1)
		b := holdFrozen(s, m)
		if err := s.api.AddFaults(flytest.Fault{Action: "stop", Status: 503}); err != nil {
			t.Fatal(err)
		}
		from, told := time.Now(), ""
		soft := s.await("the expiry lock", time.Minute, func() bool { return s.want(m, "second", "soft", state.Expiry).OK })
		if least := leader.LockLease + leader.LockMargin + leader.LockGrace + leader.LockDelay - 5*time.Second; soft < least {
			t.Errorf("the expiry lock was granted %s after the holder froze, want at least %s", soft, least)
		}
		for time.Since(from) < 5*time.Minute {
			if a := s.want(m, "second", "migrate", state.Fenced); a.OK {
				t.Fatalf("the fenced lock was granted %s after its holder froze, and its machine runs\n%s", time.Since(from), s.story())
			} else if strings.Contains(a.Why, "cannot be stopped") {
				told = a.Why
			} else if told != "" && a.Why != "" { // empty: the answer was lost
				t.Errorf("after %q who asks for the lock is told %q", told, a.Why)
			}
			time.Sleep(2 * time.Second)
		}
		if told == "" {
			t.Errorf("who asks for the lock is not told why\n%s", s.story())
		}
		if n := s.events("fence_blocked"); n != 1 {
			t.Errorf("%d events fence_blocked, want 1\n%s", n, s.story())
		}
		if a := s.raft.state().Alerts[alert.FenceRule]; a.Phase != state.Firing || !strings.Contains(a.Text, "lock migrate") || !strings.Contains(a.Text, "cannot be stopped") {
			t.Errorf("the alert is %+v\n%s", a, s.story())
		}
		s.api.ClearFaults()
		s.await("the fenced lock", 2*time.Minute, func() bool {
			ok := s.want(m, "second", "migrate", state.Fenced).OK
			if ok && s.stateOf(b.id) != "stopped" {
				t.Errorf("the lock was granted while its first holder's machine is %s", s.stateOf(b.id))
			}
			return ok
		})
		s.await("the end of the alert", time.Minute, func() bool { return s.raft.state().Alerts[alert.FenceRule].Phase == state.Resolved })
	}, func(s *stand) {
		s.tweak = func(o *leader.Options) { o.Alerting = leader.Alerting{Mesh: "m", Rules: alert.OfMesh()} }
	})
}

// TestForcedRelease: a person frees a lock whose machine cannot be stopped.
func TestForcedRelease(t *testing.T) {
	bubble(t, flytest.DefaultTiming(), func(s *stand) {
		s.lead("v0")
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		m := newLockSim(ctx, s, 1)
		holdFrozen(s, m)
		if _, err := s.voters[0].leader.ForceUnlock(ctx, "migrate", "r1", "ann", "seen dead"); err != nil {
			t.Fatal(err)
		}
		s.await("the lock after its forced release", 5*time.Second, func() bool { return s.want(m, "second", "migrate", state.Fenced).OK })
		if !strings.Contains(s.story(), "forced: seen dead") {
			t.Errorf("the events do not tell\n%s", s.story())
		}
	})
}

// TestLockHolderIsNotRemoved: a machine that holds a lock stays, though every
// rule and a person want fewer.
func TestLockHolderIsNotRemoved(t *testing.T) {
	bubble(t, flytest.DefaultTiming(), func(s *stand) {
		s.seed("more", 1, true)
		time.Sleep(time.Minute)
		s.lead("v0")
		s.await("a primary", time.Minute, func() bool { return s.raft.state().Service("n8n").Primary != "" })
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		m := newLockSim(ctx, s, 1)
		primary := s.raft.state().Service("n8n").Primary
		for id, b := range m.boxes {
			if id == primary {
				continue
			}
			w := &work{box: b, lock: "migrate", policy: state.Fenced, session: "long"}
			m.with(func() { b.sessions[w.session] = w })
			s.await("the lock", time.Minute, func() bool { return m.acquire(w) })
			m.wg.Go(func() { m.hold(w, 20*time.Minute) })
		}
		s.offer(0.1)
		s.raft.person(state.Command{By: "ann", Scale: &state.Scale{Service: "n8n", Target: 1}})
		from := time.Now()
		for time.Since(from) < 18*time.Minute {
			if n := len(s.started()); n != 2 {
				t.Fatalf("%d machines run %s after the request, while one holds a lock\n%s", n, time.Since(from), s.story())
			}
			time.Sleep(10 * time.Second)
		}
		s.await("the removal after the lock was released", 30*time.Minute, func() bool { return len(s.started()) == 1 })
		cancel()
		m.wg.Wait()
	})
}

func (s *stand) events(kind string) (n int) {
	for _, e := range s.raft.state().Events {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

func (s *stand) stateOf(id string) string {
	for _, m := range s.machines() {
		if m.ID == id {
			return m.State
		}
	}
	return "gone"
}
