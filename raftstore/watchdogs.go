package raftstore

import "time"

const (
	clockEvery  = 500 * time.Millisecond
	commitEvery = 500 * time.Millisecond
	stuckAfter  = 3 * time.Second
)

// gap is how much longer than the tick an interval was, by either clock: a
// stalled process loses both, a suspended machine at least the wall clock.
func gap(mono, wall, tick time.Duration) time.Duration {
	return max(mono, wall) - tick
}

// guardClock ends a leadership whose machine stood still for longer than 1 s
// and a lease: others may have elected in the meantime.
func (s *Store) guardClock() {
	if !s.o.Self.Eligible && !s.o.Founder {
		return // it neither leads nor founds
	}
	_, lease, _ := s.o.Profile.timeouts()
	last := time.Now()
	s.every(s.ctx, clockEvery, func() {
		now := time.Now()
		g := gap(now.Sub(last), now.Round(0).Sub(last.Round(0)), clockEvery)
		last = now
		if g <= time.Second+lease {
			return
		}
		s.log.Warn("clock gap", "gap", g)
		s.mu.Lock()
		s.quietAt = now // silence was not observed while standing still
		s.mu.Unlock()
		if l := s.leading(); l != nil {
			s.goDo(func() { s.restart(s.ctx, l.in, "clock gap") })
		}
	})
}

// guardCommit restarts the raft of a leader that commits nothing while
// something waits: a follower then leads, and this one keeps its log and vote.
func (s *Store) guardCommit(l *leadership) {
	var commit uint64
	since := time.Now()
	s.every(l.Context, commitEvery, func() {
		now := time.Now()
		if c := l.in.raft.CommitIndex(); c != commit || l.flights.Load() == 0 {
			commit, since = c, now
		}
		if now.Sub(since) >= stuckAfter {
			s.goDo(func() { s.restart(s.ctx, l.in, "no commit for 3 s while a proposal waits") })
			since = now
		}
	})
}
