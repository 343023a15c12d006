package raftstore

import (
	"context"
	"errors"
	"time"

	"flymesh/raftstore/epoch"
)

const (
	// recordEvery is how often a machine without a leader reads the record.
	recordEvery = 2 * time.Second
	// guardEvery is how often a leader that has nothing to do reads whether the
	// record still names it. Each read costs a listing and a call per anchor;
	// before each action it is read anyway, and gossip tells of a newer epoch
	// within gossipEvery.
	guardEvery  = 10 * time.Second
	gossipEvery = 2 * time.Second
)

// readRecord reads the record within its limit.
func (s *Store) readRecord(ctx context.Context) (epoch.Record, error) {
	if s.o.Arbiter == nil {
		return epoch.Record{}, errors.New("no arbiter")
	}
	ctx, cancel := context.WithTimeout(ctx, s.o.ReadTimeout)
	defer cancel()
	return s.o.Arbiter.Read(ctx)
}

// guardRecord ends a leadership whose cluster the record does not name any
// more. An action that finds it so has it look at once.
func (s *Store) guardRecord(l *leadership) {
	t := time.NewTicker(gossipEvery)
	defer t.Stop()
	var read time.Time // zero: now
	for {
		for _, p := range s.o.Peers.Peers() {
			if p.Alive && p.Epoch > l.Epoch {
				s.suspect(l.in, p.Epoch, "gossip carries a newer epoch")
				break
			}
		}
		switch {
		case s.o.Arbiter == nil:
			s.yield(l)
		case time.Since(read) >= guardEvery-gossipEvery/2:
			read = time.Now()
			if !s.lookAtRecord(l) {
				read = time.Time{}
			}
		}
		select {
		case <-t.C:
		case <-l.look:
			read = time.Time{}
		case <-l.Context.Done():
			return
		}
	}
}

// lookAtRecord does what the record demands of a leader and reports whether it
// could be read.
func (s *Store) lookAtRecord(l *leadership) bool {
	r, err := s.readRecord(l.Context)
	switch {
	case err != nil:
		if l.Context.Err() == nil {
			s.log.Warn("cannot read the epoch record", "error", err)
		}
	case r.Names(l.Epoch, l.in.cluster):
		l.control.compare(r)
	case r.Epoch < l.Epoch:
		s.repair(l, r)
	default:
		s.drop(s.ctx, l.in, "the record names "+r.Cluster)
	}
	return err == nil
}

// repair writes the record again where a writer of an older epoch, late past
// its lease, has overwritten it. It is as safe as founding: who reads the
// record next sees one cluster, and the other's leader stands down.
func (s *Store) repair(l *leadership, was epoch.Record) {
	release, err := s.o.Arbiter.Lease(l.Context, leaseTTL)
	if err != nil {
		s.log.Warn("cannot repair the epoch record", "error", err)
		return
	}
	defer release(s.ctx)
	r, err := s.readRecord(l.Context)
	if err != nil || r.Epoch >= l.Epoch {
		return
	}
	s.log.Warn("epoch record went back: writing it again", "record_epoch", was.Epoch, "epoch", l.Epoch)
	if err := l.control.writeRecord(l.Context, nil); err != nil {
		s.log.Warn("cannot repair the epoch record", "error", err)
	}
}

// yield breaks a tie without an arbiter: a founder that restarted blank founds
// its epoch again; alone, it gives way to the cluster that has others.
func (s *Store) yield(l *leadership) {
	if len(l.in.servers()) > 1 {
		return
	}
	for _, a := range s.askAll(l.Context, s.livingAddrs()) {
		if a.Leading && a.Cluster != l.in.cluster && a.Epoch >= l.Epoch && len(a.Servers) > 1 {
			s.drop(s.ctx, l.in, "another cluster of this epoch has more servers: "+a.Cluster)
			return
		}
	}
}

// suspect looks into a sign that a member's cluster is not the mesh any more.
// It does not wait; signs that come meanwhile are dropped.
func (s *Store) suspect(in *instance, newer uint64, why string) {
	in.mu.Lock()
	again := in.suspected
	in.suspected = true
	in.mu.Unlock()
	if again {
		return
	}
	s.goDo(func() {
		defer func() {
			in.mu.Lock()
			in.suspected = false
			in.mu.Unlock()
		}()
		r, err := s.readRecord(s.ctx)
		switch {
		case s.ctx.Err() != nil:
		case err == nil && r.Names(in.epoch, in.cluster):
			s.log.Debug("a machine claims a newer epoch that the record does not know", "claimed", newer)
		case err == nil && r.Epoch < in.epoch:
			// Its leader repairs the record.
		default:
			s.drop(s.ctx, in, why)
		}
	})
}
