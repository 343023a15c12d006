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
		if time.Now().Before(again) {
			return
		}
		d, r := s.mayFound(quiet, &asked)
		s.setReason(d.Reason)
		switch {
		case r.Zero():
		case quiet < s.o.RecoverAfter:
			again = time.Now().Add(min(recordPause, s.o.RecoverAfter-quiet))
		default:
			again = time.Now().Add(recordEvery)
		}
		if !d.Found && !d.Resume {
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
		FormAfter: s.o.FormAfter, RecoverAfter: s.o.RecoverAfter, Stagger: stagger,
	}
	for _, p := range s.o.Peers.Peers() {
		if !p.Alive {
			continue
		}
		sit.SeenEpoch = max(sit.SeenEpoch, p.Epoch)
		if p.Eligible && p.Machine < s.o.Self.Machine {
			sit.Rank++
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
		d = epoch.MayFound(sit)
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

var errOvertaken = errors.New("the record names another cluster")

// establish takes the lease, writes the record, reads it back, waits until
// nobody can act on the older record any more, and bootstraps alone. A founder
// that stalls past its lease and writes late is harmless: before it acts the
// record must name it, and then it names nobody else.
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
	now, err := s.readRecord(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRecordUnreadable, err)
	}
	if !now.Same(seen) {
		return fmt.Errorf("found epoch %d: the record changed", d.Epoch)
	}
	rec := now
	if !d.Resume {
		self := s.next()
		rec = epoch.Record{
			Epoch: d.Epoch, Cluster: epoch.ClusterID(d.Epoch, self.Boot),
			Founder: self, Voters: []epoch.Voter{self}, At: time.Now().UTC(),
		}
		wctx, cancel := context.WithTimeout(ctx, s.o.ReadTimeout)
		err := s.o.Arbiter.Write(wctx, rec)
		cancel()
		if err != nil {
			// It may have been written: the next round resumes then.
			return fmt.Errorf("write the epoch record: %w", err)
		}
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
	return s.found(ctx, rec)
}

// Recover founds the next epoch by a person's order, without any proof that
// the recorded voters are gone. What they had committed is given up.
func (s *Store) Recover(ctx context.Context) error {
	s.mu.Lock()
	e := s.maxEpoch
	s.mu.Unlock()
	var r epoch.Record
	if s.o.Arbiter != nil {
		var err error
		if r, err = s.readRecord(ctx); err != nil {
			return fmt.Errorf("recover: %w: %w", ErrRecordUnreadable, err)
		}
	}
	for _, p := range s.o.Peers.Peers() {
		e = max(e, p.Epoch)
	}
	d := epoch.Decision{Found: true, Epoch: max(e, r.Epoch) + 1}
	s.log.Warn("recovering by order", "epoch", d.Epoch)
	if err := s.establish(ctx, r, d); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	return nil
}
