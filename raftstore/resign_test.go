package raftstore_test

import (
	"testing"
	"testing/synctest"
	"time"

	"flymesh/raftstore"
	"flymesh/raftstore/epoch"
)

// TestLeaderDiesWithinAChange: the leader of two voters promotes a third,
// reaches only that one, and dies. The two that live are a majority, but the
// old one does not know the new one as a voter and refuses it its vote, and
// lacks entries itself. They find out, and the next epoch begins.
func TestLeaderDiesWithinAChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 3, raftstore.Default)
		var leader, old, added string
		chosen := make(chan struct{})
		s.reg.Watch(func(_, after epoch.Record) {
			if len(after.Voters) != 3 || leader != "" {
				return
			}
			for _, v := range after.Voters {
				switch {
				case v.Pending:
					added = v.Machine
				case v.ID() == after.Founder.ID():
					leader = v.Machine
				default:
					old = v.Machine
				}
			}
			s.net.Cut(leader+":7947", old+":7947")
			s.net.Cut(old+":7947", leader+":7947")
			close(chosen)
		})
		s.startAll()
		<-chosen
		time.Sleep(100 * time.Millisecond)
		for _, m := range s.machines {
			if m.id == leader {
				if v := m.up().Status().Voters; len(v) != 3 {
					t.Errorf("the change did not happen: %+v", v)
				}
				m.kill()
			}
		}
		s.net.HealAll()
		time.Sleep(59 * time.Second)
		if r := s.reg.Record(); r.Epoch != 1 {
			t.Errorf("epoch %d within a minute: %s and %s live", r.Epoch, old, added)
		}
		begin := time.Now()
		s.leader(time.Minute)
		t.Logf("%s, %s promoted by %s: next epoch after %s", old, added, leader, time.Since(begin)+59*time.Second)
		s.stopAll()
	})
}
