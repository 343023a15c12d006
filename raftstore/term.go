package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"flymesh/raftstore/state"
)

// Term is one leadership of this machine, given out once its predecessors'
// entries have been applied.
type Term struct {
	Number  uint64
	Epoch   uint64
	Context context.Context // ends with the leadership
}

// leadership is a Term with what its end needs.
type leadership struct {
	Term
	in      *instance
	since   time.Time
	cancel  context.CancelFunc
	control *control
	look    chan struct{} // capacity 1: the record has to be looked at now
	flights atomic.Int64  // proposals that wait for their commit
}

// Terms gives one value for each leadership of this machine; an unread one is
// replaced by the newest.
func (s *Store) Terms() <-chan Term { return s.terms }

// follow is the one consumer of an instance's LeaderCh.
func (s *Store) follow(in *instance) {
	defer s.endLeadership(in)
	for {
		select {
		case up := <-in.raft.LeaderCh():
			gen := s.endLeadership(in)
			if up {
				s.goDo(func() { s.begin(in, gen) })
			}
		case <-in.done:
			return
		}
	}
}

// endLeadership ends what leadership an instance has and returns the new generation.
func (s *Store) endLeadership(in *instance) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gen++
	if l := s.lead; l != nil && l.in == in {
		l.cancel()
		s.lead = nil
		s.log.Info("leadership ended", "epoch", l.Epoch, "term", l.Number)
	}
	return s.gen
}

// begin waits for the log of earlier terms and then announces the leadership.
func (s *Store) begin(in *instance, gen uint64) {
	number := in.raft.CurrentTerm()
	t := time.NewTimer(stuckAfter)
	defer t.Stop()
	select {
	case err := <-in.call(func() error { return in.raft.Barrier(stuckAfter).Error() }):
		if err != nil && in.raft.State() == raft.Leader && in.raft.CurrentTerm() == number {
			s.goDo(func() { s.restart(s.ctx, in, "no barrier: "+err.Error()) })
			return
		}
		if err != nil {
			s.log.Info("leadership ended before it began", "term", number, "error", err)
			return
		}
	case <-t.C:
		s.goDo(func() { s.restart(s.ctx, in, "no barrier for 3 s") })
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	l := &leadership{
		Term: Term{Number: number, Epoch: in.epoch, Context: ctx},
		in:   in, since: time.Now(), cancel: cancel, look: make(chan struct{}, 1),
	}
	l.control = newControl(s, l)
	s.mu.Lock()
	ok := s.gen == gen && s.in == in && in.raft.CurrentTerm() == number
	if ok {
		s.lead = l
		s.quietAt = l.since
		select {
		case <-s.terms:
		default:
		}
		s.terms <- l.Term
	}
	s.mu.Unlock()
	if !ok {
		cancel()
		return
	}
	s.log.Info("leading", "epoch", l.Epoch, "cluster", in.cluster, "term", number)
	s.goDo(func() { s.guardRecord(l) })
	s.goDo(func() { s.guardCommit(l) })
	s.goDo(l.control.run)
}

// leading returns the current leadership, nil without one.
func (s *Store) leading() *leadership {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lead
}

// Propose commits a command where this machine leads. A nil error means
// committed: the Result may still hold a Rejection. ErrNotLeader means that
// nothing was proposed, ErrUnknownOutcome that the command may or may not be
// committed; repeating it with the same ID is safe.
func (s *Store) Propose(ctx context.Context, c state.Command) (state.Result, error) {
	b, err := c.Encode()
	if err != nil {
		return state.Result{}, fmt.Errorf("propose command: %w", err)
	}
	l := s.leading()
	if l == nil {
		return state.Result{}, fmt.Errorf("propose command: %w", ErrNotLeader)
	}
	if err := ctx.Err(); err != nil {
		return state.Result{}, fmt.Errorf("propose command: %w", err)
	}
	var f raft.ApplyFuture
	answer := l.in.call(func() error {
		l.flights.Add(1)
		defer l.flights.Add(-1)
		f = l.in.raft.Apply(b, time.Second)
		return f.Error()
	})
	select {
	case err = <-answer:
	case <-ctx.Done():
		s.m.proposals.WithLabelValues("unknown").Inc()
		return state.Result{}, fmt.Errorf("propose command: %w: %w", ErrUnknownOutcome, ctx.Err())
	}
	switch {
	case err == nil:
	case errors.Is(err, errStopping), errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		s.m.proposals.WithLabelValues("refused").Inc()
		return state.Result{}, fmt.Errorf("propose command: %w: %w", ErrNotLeader, err)
	default:
		s.m.proposals.WithLabelValues("unknown").Inc()
		return state.Result{}, fmt.Errorf("propose command: %w: %w", ErrUnknownOutcome, err)
	}
	r, ok := f.Response().(state.Result)
	if !ok {
		return state.Result{}, fmt.Errorf("propose command: %w: no result", ErrUnknownOutcome)
	}
	s.m.proposals.WithLabelValues("committed").Inc()
	return r, nil
}

// Verify proves that this machine leads the mesh now: the epoch record, read
// by this call, names its cluster, and after that a majority of the voters
// confirmed its leadership within 250 ms. An action must follow within 250 ms.
func (s *Store) Verify(ctx context.Context) error {
	l := s.leading()
	if l == nil {
		return fmt.Errorf("verify leader: %w", ErrNotLeader)
	}
	if s.o.Arbiter != nil {
		rctx, cancel := context.WithTimeout(ctx, s.o.ReadTimeout)
		r, err := s.o.Arbiter.Read(rctx)
		cancel()
		if err != nil {
			return fmt.Errorf("verify leader: %w: %w", ErrRecordUnreadable, err)
		}
		if !r.Names(l.Epoch, l.in.cluster) {
			select {
			case l.look <- struct{}{}:
			default:
			}
			return fmt.Errorf("verify leader: %w: %s", ErrDeposed, r.Cluster)
		}
	}
	return s.confirm(ctx, l)
}

// Leads proves that a majority of the voters takes this machine for the leader
// now, without reading the epoch record. It is enough to renew what was granted
// before, and not to begin anything.
func (s *Store) Leads(ctx context.Context) error {
	l := s.leading()
	if l == nil {
		return fmt.Errorf("verify leader: %w", ErrNotLeader)
	}
	return s.confirm(ctx, l)
}

// confirm has a majority confirm a leadership within 250 ms.
func (s *Store) confirm(ctx context.Context, l *leadership) error {
	answer := l.in.call(func() error { return l.in.raft.VerifyLeader().Error() })
	t := time.NewTimer(verifyLimit)
	defer t.Stop()
	select {
	case err := <-answer:
		if err != nil {
			return fmt.Errorf("verify leader: %w: %w", ErrNotLeader, err)
		}
	case <-t.C:
		return fmt.Errorf("verify leader: %w: no majority answered within %s", ErrNotLeader, verifyLimit)
	case <-ctx.Done():
		return fmt.Errorf("verify leader: %w", ctx.Err())
	}
	if s.leading() != l || l.in.raft.CurrentTerm() != l.Number {
		return fmt.Errorf("verify leader: %w: the term ended", ErrNotLeader)
	}
	return nil
}
