package raftstore_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"flymesh/raftstore"
)

// TestDemote: the autoscaler asks before it stops a voter; a stand-by takes
// its place, and it is not chosen again soon.
func TestDemote(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		s := newSim(t, 5, raftstore.Default)
		s.startAll()
		l := s.voters(3, 20*time.Second)
		time.Sleep(5 * time.Second)
		var victim, standby string
		voters := map[string]bool{}
		for _, v := range l.up().Status().Voters {
			voters[v.Machine] = true
			if v.Machine != l.id {
				victim = v.Machine
			}
		}
		for _, m := range s.machines {
			if !voters[m.id] {
				standby = m.id
			}
			if err := m.up().MayStop(victim); m != l && !errors.Is(err, raftstore.ErrNotLeader) {
				t.Errorf("%s, which does not lead, says %v", m.id, err)
			}
		}
		if err := l.up().MayStop(victim); !errors.Is(err, raftstore.ErrVoter) {
			t.Errorf("a voter may be stopped: %v", err)
		}
		if err := l.up().MayStop(standby); err != nil {
			t.Errorf("a stand-by may not be stopped: %v", err)
		}
		if err := l.up().Demote(ctx, l.id); !errors.Is(err, raftstore.ErrVoter) {
			t.Errorf("the leader demotes itself: %v", err)
		}
		begin := time.Now()
		if err := l.up().Demote(ctx, victim); err != nil {
			t.Fatal(err)
		}
		t.Logf("demoted after %s", time.Since(begin))
		if err := l.up().MayStop(victim); err != nil {
			t.Errorf("after the demotion: %v", err)
		}
		s.voters(3, 10*time.Second)
		time.Sleep(time.Minute)
		for _, v := range s.voters(3, time.Second).up().Status().Voters {
			if v.Machine == victim {
				t.Error("the demoted machine was chosen again")
			}
		}
		s.stopAll()
	})
}

// TestDemotedMachineComesBack: a machine that was demoted and stopped is
// chosen again as soon as it has booted.
func TestDemotedMachineComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 3, raftstore.Default)
		s.startAll()
		l := s.voters(3, 20*time.Second)
		time.Sleep(5 * time.Second)
		victim := s.machines[0]
		if victim == l {
			victim = s.machines[1]
		}
		if err := l.up().Demote(context.Background(), victim.id); err != nil {
			t.Fatal(err)
		}
		victim.kill()
		time.Sleep(45 * time.Second)
		victim.start()
		s.voters(3, 30*time.Second)
		s.stopAll()
	})
}

// TestLeave: a server that stops in order is out of raft, and a leader hands
// over first; each within a second, also where a call of the API takes long.
func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 5, raftstore.Default)
		s.api = 300 * time.Millisecond
		s.startAll()
		for range 3 {
			l := s.voters(3, 20*time.Second)
			time.Sleep(5 * time.Second)
			begin := time.Now()
			l.stop()
			took := time.Since(begin)
			n := s.leader(time.Second)
			for _, v := range n.up().Status().Voters {
				if v.Machine == l.id {
					t.Errorf("%s left and is still a voter", l.id)
				}
			}
			time.Sleep(2 * time.Second)
			for _, v := range s.reg.Record().Voters {
				if v.Machine == l.id && !v.Pending {
					t.Errorf("%s left and is still recorded", l.id)
				}
			}
			t.Logf("left within %s", took)
			if took > time.Second {
				t.Errorf("leaving took %s", took)
			}
			l.start()
		}
		s.stopAll()
	})
}

// TestSizes: one voter until three can be, five from seven on, one again when
// two machines are left for long; and machines that may not vote never do.
func TestSizes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 8, raftstore.Default)
		s.machines[7].eligible = false
		s.machines[7].start()
		for _, m := range s.machines[:2] {
			m.start()
		}
		s.voters(1, 20*time.Second)
		time.Sleep(20 * time.Second)
		s.voters(1, time.Second)
		s.machines[2].start()
		s.voters(3, 10*time.Second)
		for _, m := range s.machines[3:7] {
			m.start()
		}
		s.voters(5, 20*time.Second)
		st := s.machines[7].up().Status()
		if st.Role != raftstore.None || st.Leader == "" || st.LeaderAddr == "" || len(st.Voters) < 1 {
			t.Errorf("a machine outside raft knows %+v", st)
		}
		time.Sleep(10 * time.Second)
		if st := s.machines[7].up().Status(); len(st.Voters) != 5 || !st.Healthy || st.Epoch != 1 {
			t.Errorf("a machine outside raft knows %+v", st)
		}
		for _, m := range s.machines[:5] {
			m.stop()
		}
		s.voters(1, 3*time.Minute)
		if e := s.reg.Record().Epoch; e != 1 {
			t.Errorf("epoch %d", e)
		}
		s.stopAll()
	})
}
