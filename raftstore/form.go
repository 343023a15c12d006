package raftstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"flymesh/raftstore/epoch"
)

const (
	formEvery = 500 * time.Millisecond
	// recordPause is how often the record is read while patience lasts.
	recordPause = 5 * time.Second
	leaseTTL    = 20 * time.Second // of the lease around founding
	stagger     = 3 * time.Second  // patience for each machine that goes first
)

// form founds the next cluster when nobody leads and the record permits.
func (s *Store) form() {
	if !s.o.Self.Eligible && !s.o.Founder {
		return
	}
	var asked, again time.Time // when fates were asked, when to read the record again: both cost API calls
	s.every(s.ctx, formEvery, func() {
		quiet := s.quietFor()
		if s.leading() != nil || quiet < s.o.FormAfter {
			asked, again = time.Time{}, time.Time{}
			return
		}
		if time.Now().Before(again) || s.laterInLine(quiet) {
			return
		}
		d, r := s.mayFound(quiet, &asked)
		s.setReason(d.Reason)
		switch {
		case r.Zero(): // none yet, or it cannot be read: then asking at once again would make that worse
			again = time.Now().Add(recordEvery)
		case quiet < s.o.RecoverAfter:
			again = time.Now().Add(min(recordPause, s.o.RecoverAfter-quiet))
		default:
			again = time.Now().Add(recordEvery)
		}
		if !d.Found {
			return
		}
		if s.look(); s.quietFor() < quiet || s.isClosing() {
			return // one has appeared
		}
		s.log.Info("founding a cluster", "epoch", d.Epoch, "reason", d.Reason)
		if err := s.establish(s.ctx, r, d); err != nil {
			s.setReason(err.Error())
			if s.ctx.Err() == nil {
				s.log.Info("did not found a cluster", "epoch", d.Epoch, "error", err)
			}
		}
	})
}

// laterInLine says that machines which go first still have time, and that this
// one has nothing to ask the record for meanwhile: all that start together
// would use up the API's rate limit, and the first of them with it.
func (s *Store) laterInLine(quiet time.Duration) bool {
	return s.o.Arbiter != nil && s.member() == nil && quiet < s.o.FormAfter+time.Duration(s.rank())*stagger
}

// rank counts the living machines that go first in founding.
func (s *Store) rank() int {
	n := 0
	for _, p := range s.o.Peers.Peers() {
		if p.Alive && p.Eligible && p.Machine < s.o.Self.Machine {
			n++
		}
	}
	return n
}

func (s *Store) quietFor() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.quietAt)
}

func (s *Store) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

func (s *Store) setReason(r string) {
	s.mu.Lock()
	changed := r != s.reason
	s.reason = r
	s.mu.Unlock()
	if changed {
		s.log.Debug("founding", "reason", r)
	}
}

// mayFound gathers the situation and lets package epoch decide.
func (s *Store) mayFound(quiet time.Duration, asked *time.Time) (epoch.Decision, epoch.Record) {
	s.mu.Lock()
	seen, lives := s.maxEpoch, s.lives
	s.mu.Unlock()
	sit := epoch.Situation{
		Self: s.next(), Eligible: s.o.Self.Eligible, SeenEpoch: seen, NoLeaderFor: quiet,
		FormAfter: s.o.FormAfter, RecoverAfter: s.o.RecoverAfter, Stagger: stagger, Rank: s.rank(),
	}
	for _, p := range s.o.Peers.Peers() {
		if p.Alive {
			sit.SeenEpoch = max(sit.SeenEpoch, p.Epoch)
		}
	}
	if s.o.Arbiter == nil {
		if !s.o.Founder || lives > 0 || s.member() != nil || sit.SeenEpoch > 0 {
			return epoch.Decision{Reason: "no arbiter: a person must recover"}, epoch.Record{}
		}
		sit.Eligible, sit.Rank = true, 0
		return epoch.MayFound(sit), epoch.Record{}
	}
	r, err := s.readRecord(s.ctx)
	if err != nil {
		return epoch.Decision{Reason: fmt.Sprintf("%v: %v", ErrRecordUnreadable, err)}, r
	}
	if in := s.member(); in != nil && r.Epoch >= in.epoch && !r.Names(in.epoch, in.cluster) {
		s.drop(s.ctx, in, "the record names "+r.Cluster)
		return epoch.Decision{Reason: "the cluster of this machine was deposed"}, r
	}
	sit.Record = r
	d := epoch.MayFound(sit)
	if d.Ask && time.Since(*asked) >= fatesEvery/2 {
		*asked = time.Now()
		sit.Fates = s.fates(s.ctx, r.Voters)
		if d = epoch.MayFound(sit); d.Resign {
			s.resign(s.ctx, r, d.Living)
		}
	}
	return d, r
}

// next is the incarnation that this machine would found as.
func (s *Store) next() epoch.Voter {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.in != nil {
		return s.incarnation(s.lives + 1)
	}
	return s.incarnation(s.lives)
}

var errChanged = errors.New("the record changed")

var errOvertaken = errors.New("the record names another cluster")

// establish takes the lease, writes the record, reads it back, waits until
// nobody can act on the older record any more, and bootstraps alone. A founder
// that stalls past its lease and writes late deposes whoever founded meanwhile,
// and must found the epoch after that: so no two clusters have one epoch, and
// before a cluster acts the record names it and nobody else.
func (s *Store) establish(ctx context.Context, seen epoch.Record, d epoch.Decision) error {
	if s.o.Arbiter == nil {
		self := s.next()
		return s.found(ctx, epoch.Record{Epoch: d.Epoch, Cluster: epoch.ClusterID(d.Epoch, self.Boot), Founder: self})
	}
	release, err := s.o.Arbiter.Lease(ctx, leaseTTL)
	if err != nil {
		return fmt.Errorf("take the epoch lease: %w", err)
	}
	defer func() {
		rctx, cancel := context.WithTimeout(s.ctx, s.o.ReadTimeout)
		defer cancel()
		if err := release(rctx); err != nil && s.ctx.Err() == nil {
			s.log.Warn("cannot release the epoch lease", "error", err)
		}
	}()
	began := time.Now()
	now, err := s.readRecord(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRecordUnreadable, err)
	}
	if !now.Same(seen) {
		return fmt.Errorf("found epoch %d: %w", d.Epoch, errChanged)
	}
	self := s.next()
	rec := epoch.Record{
		Epoch: d.Epoch, Cluster: epoch.ClusterID(d.Epoch, self.Boot),
		Founder: self, Voters: []epoch.Voter{self}, At: began.UTC(),
	}
	wctx, cancel := context.WithTimeout(ctx, s.o.ReadTimeout)
	err = s.o.Arbiter.Write(wctx, rec)
	cancel()
	if err != nil {
		return fmt.Errorf("write the epoch record: %w", err) // it may have been written
	}
	// Read at both ends of the wait.
	for _, pause := range []time.Duration{0, s.o.quarantine()} {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
		r, err := s.readRecord(ctx)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrRecordUnreadable, err)
		}
		if !r.Names(rec.Epoch, rec.Cluster) {
			return fmt.Errorf("found epoch %d: %w: %s", rec.Epoch, errOvertaken, r.Cluster)
		}
	}
	// Past the lease another may have founded this epoch in between.
	if late := gap(time.Since(began), time.Now().Round(0).Sub(began.Round(0)), 0); late > leaseTTL {
		return fmt.Errorf("found epoch %d: it took %s, longer than the lease", rec.Epoch, late)
	}
	return s.found(ctx, rec)
}

// recoverTries bounds how often Recover begins again because a leader that
// still lives changed its voters in the record meanwhile.
const recoverTries = 5

// Recover founds the next epoch by a person's order, without any proof that
// the recorded voters are gone. What they had committed is given up.
func (s *Store) Recover(ctx context.Context) error {
	for try := 1; ; try++ {
		err := s.recoverOnce(ctx)
		if err == nil {
			return nil
		}
		if try == recoverTries || !errors.Is(err, errChanged) {
			return fmt.Errorf("recover: %w", err)
		}
	}
}

func (s *Store) recoverOnce(ctx context.Context) error {
	s.mu.Lock()
	e := s.maxEpoch
	s.mu.Unlock()
	var r epoch.Record
	if s.o.Arbiter != nil {
		var err error
		if r, err = s.readRecord(ctx); err != nil {
			return fmt.Errorf("%w: %w", ErrRecordUnreadable, err)
		}
	}
	for _, p := range s.o.Peers.Peers() {
		e = max(e, p.Epoch)
	}
	d := epoch.Decision{Found: true, Epoch: max(e, r.Epoch) + 1}
	s.log.Warn("recovering by order", "epoch", d.Epoch)
	return s.establish(ctx, r, d)
}
