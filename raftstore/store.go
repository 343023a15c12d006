// Package raftstore is the replicated state of the mesh: hashicorp/raft on
// machines that forget. One Store runs on every machine. It joins the cluster
// that is the mesh when that cluster's leader invites it, founds one when the
// epoch record permits (package epoch), keeps the voters right while it leads,
// and drops its raft state when the record names another cluster.
//
// Open prepares; Run owns every goroutine and returns after an orderly
// shutdown. All other methods may be called from any goroutine while Run runs.
// Only the leader proposes; forwarding to it is the caller's, with the address
// in Status. A raft server ID lives as long as its log and vote: dropping them
// makes a new one.
package raftstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"flymesh/raftstore/epoch"
	"flymesh/raftstore/state"
	"flymesh/raftstore/stranger"
)

// The errors that callers tell apart.
var (
	ErrNotLeader        = errors.New("not the leader")
	ErrUnknownOutcome   = errors.New("leadership lost while in flight: the outcome is unknown")
	ErrRecordUnreadable = errors.New("epoch record cannot be read")
	ErrDeposed          = errors.New("the epoch record names another cluster")
	ErrVoter            = errors.New("machine is a voter")
	ErrClosed           = errors.New("store is closed")
)

const (
	dialTimeout      = 2 * time.Second
	handshakeTimeout = 3 * time.Second
)

// Store is this machine's part in the replicated state.
type Store struct {
	o       Options
	log     *slog.Logger
	m       *metrics
	asker   *asker
	refused *stranger.Log
	terms   chan Term

	// life is held through each change of membership: adopt, found, drop,
	// restart. It is a channel because those wait for timers.
	life chan struct{}

	ctx    context.Context // of Run; set before anything is started
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex // guards what follows
	run      bool       // Run was called
	closing  bool       // no new membership
	resumed  string     // boot in the server ID that the volume's log goes on as
	lives    int        // raft states dropped so far: part of the server ID
	in       *instance  // nil: in no cluster
	lead     *leadership
	gen      uint64 // counts leadership changes seen
	seen     epoch.Record
	maxEpoch uint64
	leader   sighting
	quietAt  time.Time // when the newest sign of a leader was seen; start of Run before any
	last     *state.State
	lastOf   string // cluster of last
	reason   string // why this machine does not found, for Status
}

// Open checks the options. Nothing runs before Run.
func Open(o Options) (*Store, error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("open raftstore: %w", err)
	}
	s := &Store{
		o: o, log: o.Logger.With("component", "raftstore"),
		terms: make(chan Term, 1), life: make(chan struct{}, 1),
	}
	s.refused = stranger.New(s.log)
	s.asker = newAsker(s.dialQuery)
	s.m = newMetrics(o.Registerer, s)
	return s, nil
}

// Run takes part in the mesh until ctx ends. On the way out it hands over
// leadership and asks the leader to remove this server, each within 1 s.
func (s *Store) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.run {
		s.mu.Unlock()
		return errors.New("run raftstore: already ran")
	}
	s.run = true
	s.quietAt = time.Now()
	// Goroutines outlive ctx by the time that an orderly leave takes.
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.mu.Unlock()

	if err := s.resume(); err != nil {
		s.cancel()
		s.o.Network.Close()
		return fmt.Errorf("run raftstore: %w", err)
	}
	failed := make(chan error, 1)
	s.goDo(func() {
		if err := s.accept(); err != nil && s.ctx.Err() == nil {
			failed <- err
		}
	})
	s.goDo(s.watch)
	s.goDo(s.form)
	s.goDo(s.guardClock)

	var err error
	select {
	case <-ctx.Done():
		s.leave()
	case err = <-failed:
		err = fmt.Errorf("run raftstore: %w", err)
	}
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	s.cancel()
	s.o.Network.Close()
	s.life <- struct{}{}
	if in := s.member(); in != nil {
		s.endLeadership(in)
		if in.stop() {
			err = errors.Join(err, in.stores.close())
		}
	}
	<-s.life
	s.asker.close()
	s.wg.Wait()
	return err
}

func (s *Store) goDo(f func()) {
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		f()
	}()
}

// every calls f at once and then after each period until the store closes.
func (s *Store) every(ctx context.Context, d time.Duration, f func()) {
	t := time.NewTicker(d)
	defer t.Stop()
	for {
		f()
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// member returns the instance that runs, nil in no cluster.
func (s *Store) member() *instance {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.in
}

// incarnation names this process's n-th raft state: server IDs are never used
// again after a log and vote were dropped.
func (s *Store) incarnation(lives int) epoch.Voter {
	boot := s.o.Self.Boot
	if lives == 0 && s.resumed != "" {
		boot = s.resumed
	}
	if lives > 0 {
		boot += "." + strconv.Itoa(lives)
	}
	return epoch.Voter{App: s.o.Self.App, Machine: s.o.Self.Machine, Boot: boot, BootAt: s.o.Self.BootAt, Durable: s.o.DataDir != ""}
}

// selfNow returns the incarnation that is a member, or that would join next.
func (s *Store) selfNow() epoch.Voter {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.incarnation(s.lives)
}

// hold takes the right to change membership.
func (s *Store) hold(ctx context.Context) error {
	select {
	case s.life <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.ctx.Done():
		return ErrClosed
	}
}

func (s *Store) release() { <-s.life }

// adopt joins the cluster that an invitation names. Others may have adopted
// it in the meantime.
func (s *Store) adopt(ctx context.Context, epoch uint64, cluster, target string) (*instance, error) {
	if err := s.hold(ctx); err != nil {
		return nil, err
	}
	defer s.release()
	if in := s.member(); in != nil {
		if in.cluster != cluster || in.epoch != epoch || in.server != target {
			return nil, fmt.Errorf("adopt cluster %s: already in %s", cluster, in.cluster)
		}
		return in, nil
	}
	self := s.selfNow()
	if self.ID() != target {
		return nil, fmt.Errorf("adopt cluster %s: invited as %s, now %s", cluster, target, self.ID())
	}
	in, err := s.startBlank(target, epoch, cluster, false)
	if err != nil {
		return nil, fmt.Errorf("adopt cluster %s: %w", cluster, err)
	}
	s.mu.Lock()
	s.quietAt = time.Now() // whoever invites leads
	s.mu.Unlock()
	s.log.Info("joined cluster", "epoch", epoch, "cluster", cluster, "server", target)
	return in, nil
}

// found bootstraps the cluster of a record that names an incarnation of this
// machine as its founder, which is the current one or, for a member of an
// older cluster, the next.
func (s *Store) found(ctx context.Context, r epoch.Record) error {
	if err := s.hold(ctx); err != nil {
		return err
	}
	defer s.release()
	if in := s.member(); in != nil {
		s.dropHeld(in, "founding the next cluster")
	}
	if self := s.selfNow(); self.ID() != r.Founder.ID() {
		return fmt.Errorf("found cluster %s: its founder %s is gone", r.Cluster, r.Founder.ID())
	}
	if _, err := s.startBlank(r.Founder.ID(), r.Epoch, r.Cluster, true); err != nil {
		return fmt.Errorf("found cluster %s: %w", r.Cluster, err)
	}
	s.log.Info("founded cluster", "epoch", r.Epoch, "cluster", r.Cluster)
	return nil
}

// startBlank starts a server that has never been. The caller holds life.
func (s *Store) startBlank(server string, epoch uint64, cluster string, bootstrap bool) (*instance, error) {
	st, err := s.blankStores(server, epoch, cluster)
	if err != nil {
		return nil, err
	}
	in, err := s.start(&instance{server: server, epoch: epoch, cluster: cluster, stores: st}, bootstrap)
	if err != nil {
		return nil, errors.Join(err, st.close())
	}
	return in, nil
}

// start runs an instance and makes it the member. The caller holds life.
func (s *Store) start(in *instance, bootstrap bool) (*instance, error) {
	if s.isClosing() {
		return nil, ErrClosed
	}
	if err := in.start(s, bootstrap); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.in = in
	s.mu.Unlock()
	s.know(in.epoch, in.cluster)
	s.goDo(func() { s.follow(in) })
	s.goDo(func() { s.guardLeader(in) })
	return in, nil
}

// drop ends an instance with its log and vote; this machine is then a new
// server in no cluster.
func (s *Store) drop(ctx context.Context, in *instance, why string) {
	if s.hold(ctx) != nil {
		return
	}
	defer s.release()
	s.dropHeld(in, why)
}

func (s *Store) dropHeld(in *instance, why string) {
	if s.member() != in {
		return
	}
	s.endLeadership(in)
	in.stop()
	s.forget(why)
}

// restart ends an instance and starts it again on its log and vote, as a
// durable server would after a crash: leadership is lost, nothing else.
func (s *Store) restart(ctx context.Context, in *instance, why string) {
	if s.hold(ctx) != nil {
		return
	}
	defer s.release()
	if s.member() != in {
		return
	}
	s.endLeadership(in)
	s.log.Warn("restarting raft", "epoch", in.epoch, "cluster", in.cluster, "reason", why)
	if !in.stop() {
		s.forget("raft does not end: " + why)
		return
	}
	s.m.restarts.WithLabelValues("watchdog").Inc()
	next := &instance{server: in.server, epoch: in.epoch, cluster: in.cluster, stores: in.stores}
	if _, err := s.start(next, false); err != nil {
		s.forget("raft does not start: " + err.Error())
	}
}

// forget leaves a log and vote behind: this machine is a new server in no
// cluster. The caller holds life.
func (s *Store) forget(why string) {
	s.mu.Lock()
	in := s.in
	s.in = nil
	s.lives++
	s.mu.Unlock()
	if err := errors.Join(in.stores.close(), s.wipe()); err != nil {
		s.log.Error("cannot clear the dropped raft state", "error", err)
	}
	s.log.Warn("dropped raft state", "epoch", in.epoch, "cluster", in.cluster, "reason", why)
	s.m.restarts.WithLabelValues("dropped").Inc()
}

// know notes the newest cluster that is known as the mesh.
func (s *Store) know(e uint64, cluster string) {
	s.mu.Lock()
	s.maxEpoch = max(s.maxEpoch, e)
	changed := e > s.seen.Epoch || e == s.seen.Epoch && cluster != s.seen.Cluster
	if changed {
		s.seen = epoch.Record{Epoch: e, Cluster: cluster}
	}
	s.mu.Unlock()
	if changed {
		s.o.OnAdopt(e, cluster)
	}
}
