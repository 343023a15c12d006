package raftstore_test

import (
	"testing"
	"testing/synctest"
	"time"

	"flymesh/raftstore"
)

func TestFormation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 5, raftstore.Default)
		begin := time.Now()
		s.startAll()
		l := s.leader(20 * time.Second)
		t.Logf("first leader %s after %s", l.id, time.Since(begin))
		s.voters(3, 20*time.Second)
		t.Logf("3 voters after %s", time.Since(begin))
		s.stopAll()
	})
}
