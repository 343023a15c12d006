package leader_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"flymesh/leader"
	"flymesh/raftstore/state"
)

// lockSim gives the machines of a stand programs that hold locks by the rules
// of a holder, and watches from outside that no two do at one time.
type lockSim struct {
	s   *stand
	wg  sync.WaitGroup
	ctx context.Context

	mu      sync.Mutex // guards all below
	rnd     *rand.Rand
	seq     int64 // of the history
	history []lockOp
	granted map[string]string // request ID -> token
	boxes   map[string]*box
	running map[string]*work // by token
	newest  map[string]uint64
	wrong   []string
	begun   int
	quiet   bool // no client asks for a lock any more
	causes  map[state.Cause]int
}

// box is one machine: what its agent knows, and what happens to it.
type box struct {
	id       string
	boot     int
	down     bool // the machine does not run
	isolated bool
	frozen   bool
	floor    uint64
	sessions map[string]*work
}

// work is one hold and what runs under it.
type work struct {
	box            *box
	boot           int
	lock, session  string
	policy         state.LockPolicy
	token          string
	deadline       time.Time
	ended, running bool
}

var simLocks = []struct {
	name   string
	policy state.LockPolicy
}{{"migrate", state.Fenced}, {"soft", state.Expiry}}

var errLost = errors.New("no answer")

func newLockSim(ctx context.Context, s *stand, seed uint64) *lockSim {
	m := &lockSim{
		s: s, ctx: ctx, rnd: rand.New(rand.NewPCG(seed, 7)), granted: map[string]string{}, boxes: map[string]*box{},
		running: map[string]*work{}, newest: map[string]uint64{}, causes: map[state.Cause]int{},
	}
	for _, id := range s.started() {
		m.boxes[id] = &box{id: id, sessions: map[string]*work{}}
	}
	s.mu.Lock()
	s.holds = m
	s.mu.Unlock()
	s.raft.also(m.committed)
	return m
}

// n draws a number under max.
func (m *lockSim) n(max int) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rnd.IntN(max)
}

func (m *lockSim) wait(d time.Duration) bool {
	select {
	case <-m.ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// committed takes the leader's own steps into the history.
func (m *lockSim) committed(c state.Command) {
	switch {
	case c.Grant != nil:
		if l := m.s.raft.state().Locks[c.Grant.Lock]; l != nil && l.Holder.Session == c.Grant.Holder.Session {
			m.mu.Lock()
			m.granted[c.ID] = l.Token
			m.mu.Unlock()
		}
	case c.Free != nil:
		m.mu.Lock()
		m.causes[c.Free.Cause]++
		m.seq += 2
		m.history = append(m.history, lockOp{call: m.seq - 1, back: m.seq, lock: c.Free.Lock, verb: "free", token: c.Free.Token, ok: true})
		m.mu.Unlock()
	}
}

// ask sends a request to whoever leads, over a network that may lose it.
func (m *lockSim) ask(b *box, r leader.LockRequest) (leader.LockAnswer, error) {
	m.mu.Lock()
	m.seq++
	op := lockOp{call: m.seq, lock: r.Lock, verb: string(r.Verb), token: r.Token, id: r.ID}
	lose, delay := m.rnd.IntN(20), time.Duration(m.rnd.IntN(150))*time.Millisecond
	cut := b.isolated || b.frozen || b.down
	m.mu.Unlock()
	m.wait(delay)
	var ans leader.LockAnswer
	err := errLost
	if !cut && lose != 0 {
		m.s.raft.mu.Lock()
		lead := m.s.raft.leader
		m.s.raft.mu.Unlock()
		for _, v := range m.s.voters {
			if v.id == lead {
				ctx, cancel := context.WithTimeout(m.ctx, 2*time.Second)
				ans, err = v.leader.Lock(ctx, r)
				cancel()
			}
		}
	}
	m.wait(delay)
	if lose == 1 {
		err = errLost
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seq++
	op.back, op.ok, op.unknown = m.seq, ans.OK, err != nil
	if r.Verb == leader.LockAcquire {
		op.token = ans.Token
	}
	m.history = append(m.history, op)
	return ans, err
}

// client asks for locks and works under them, on one machine.
func (m *lockSim) client(b *box) {
	for m.wait(time.Duration(m.n(6000)) * time.Millisecond) {
		l := simLocks[m.n(len(simLocks))]
		m.mu.Lock()
		if m.quiet {
			m.mu.Unlock()
			return
		}
		if b.down || b.frozen {
			m.mu.Unlock()
			continue
		}
		w := &work{box: b, boot: b.boot, lock: l.name, policy: l.policy, session: fmt.Sprintf("s%d-%d", len(m.history), m.rnd.Int64())}
		b.sessions[w.session] = w
		m.mu.Unlock()
		if m.acquire(w) {
			m.hold(w, time.Duration(500+m.n(40000))*time.Millisecond)
		}
		m.mu.Lock()
		if w.token == "" || !w.running && w.ended {
			delete(b.sessions, w.session)
		}
		m.mu.Unlock()
	}
}

func (m *lockSim) acquire(w *work) bool {
	for range 1 + m.n(10) {
		sent := time.Now()
		a, err := m.ask(w.box, leader.LockRequest{
			Verb: leader.LockAcquire, ID: fmt.Sprintf("%s-%d", w.session, m.n(1<<30)), Lock: w.lock, Policy: w.policy,
			Holder: state.Holder{Machine: w.box.id, App: appName, Boot: fmt.Sprint(w.boot), Session: w.session},
		})
		if err == nil && a.OK {
			return m.begin(w, a, sent)
		}
		if !m.wait(time.Second) {
			return false
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	w.ended = true
	return false
}

// begin starts the work, and holds it against everything that runs.
func (m *lockSim) begin(w *work, a leader.LockAnswer, sent time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	w.token, w.deadline = a.Token, sent.Add(a.Lease)
	fence := state.Fence(a.Token)
	if w.ended || w.boot != w.box.boot || fence>>40 < w.box.floor || w.box.frozen || time.Until(w.deadline) < leader.LockGrace {
		w.ended = true
		return false
	}
	for _, o := range m.running {
		if o.lock == w.lock && !(o.policy == state.Expiry && o.box.frozen) {
			m.wrong = append(m.wrong, fmt.Sprintf("%s: %s starts on %s under %s while %s runs on %s (frozen: %v)",
				time.Now().Format("15:04:05"), w.lock, w.box.id, w.token, o.token, o.box.id, o.box.frozen))
		}
	}
	if m.newest[w.lock] >= fence {
		m.wrong = append(m.wrong, fmt.Sprintf("%s: token %s is not greater than the one before", w.lock, w.token))
	}
	m.newest[w.lock], w.running = fence, true
	m.running[w.token] = w
	m.begun++
	return true
}

func (m *lockSim) stop(w *work) {
	w.ended, w.running = true, false
	delete(m.running, w.token)
}

// hold works for a time, renewing; it stops by the end of its lease.
func (m *lockSim) hold(w *work, length time.Duration) {
	type renewal struct {
		sent time.Time
		a    leader.LockAnswer
		err  error
	}
	answers := make(chan renewal, 1)
	done, next, asking := time.Now().Add(length), time.Now().Add(leader.LockRenew), false
	late := time.Duration(m.n(int(leader.LockGrace))) // how long it takes to obey SIGTERM
	for {
		m.mu.Lock()
		now := time.Now()
		switch {
		case m.ctx.Err() != nil || !w.running:
			m.stop(w)
			m.mu.Unlock()
			return
		case w.box.frozen:
		case !now.Before(w.deadline), !now.Before(w.deadline.Add(late - leader.LockGrace)):
			m.stop(w)
		case !now.Before(done):
			m.stop(w)
			m.mu.Unlock()
			for range 3 {
				if _, err := m.ask(w.box, leader.LockRequest{Verb: leader.LockRelease, Lock: w.lock, Token: w.token}); err == nil {
					return
				}
			}
			return
		case !now.Before(next) && !asking:
			asking = true
			go func() {
				sent := time.Now()
				verb := leader.LockRenewal
				a, err := m.ask(w.box, leader.LockRequest{Verb: verb, Lock: w.lock, Token: w.token})
				answers <- renewal{sent, a, err}
			}()
		}
		m.mu.Unlock()
		select {
		case <-m.ctx.Done():
		case <-time.After(100 * time.Millisecond):
		case r := <-answers:
			asking = false
			m.mu.Lock()
			switch {
			case w.box.frozen:
			case r.err != nil:
				next = time.Now().Add(500 * time.Millisecond)
			case !r.a.OK:
				m.stop(w)
			default:
				w.deadline, next = r.sent.Add(r.a.Lease), time.Now().Add(leader.LockRenew)
			}
			m.mu.Unlock()
		}
	}
}

// halted is told by the platform: everything on the machine has ended.
func (m *lockSim) halted(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.boxes[id]
	if b == nil {
		return
	}
	for _, w := range b.sessions {
		m.stop(w)
	}
	b.boot++
	b.down, b.frozen, b.floor, b.sessions = true, false, 0, map[string]*work{}
}

// booted is told by the platform: the machine runs.
func (m *lockSim) booted(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b := m.boxes[id]; b != nil {
		b.down = false
	}
}

// thaw lets a machine go on. What it sees first is that time has passed.
func (m *lockSim) thaw(b *box) {
	for _, w := range b.sessions {
		if w.running && time.Now().After(w.deadline) {
			m.stop(w)
		}
	}
	b.frozen = false
}

func (m *lockSim) holds(id string) (*box, error) {
	b := m.boxes[id]
	if b == nil || b.down || b.isolated || b.frozen {
		return nil, errLost
	}
	return b, nil
}

// Held and End are the agents' side of leader.Holders.
func (s *stand) Held(_ context.Context, id string, epoch uint64) ([]state.Lock, error) {
	m, runs := s.sim()
	if runs != nil {
		return runs.held(id, epoch)
	}
	if m == nil {
		return nil, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b, err := m.holds(id)
	if err != nil {
		return nil, err
	}
	b.floor = max(b.floor, epoch)
	var all []state.Lock
	for _, w := range b.sessions {
		if w.running {
			all = append(all, state.Lock{Name: w.lock, Token: w.token, Policy: w.policy, Holder: state.Holder{Machine: id, App: appName, Boot: fmt.Sprint(w.boot), Session: w.session}})
		}
	}
	return all, nil
}

func (s *stand) End(_ context.Context, id string, l state.Lock) (bool, string, error) {
	m, runs := s.sim()
	if runs != nil {
		return runs.end(l)
	}
	if m == nil {
		return true, "", nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b, err := m.holds(id)
	if err != nil {
		return false, "", err
	}
	if w := b.sessions[l.Holder.Session]; w != nil {
		m.stop(w)
	}
	return true, "", nil
}

// Start implements leader.Holders.
func (s *stand) Start(ctx context.Context, id string, r leader.JobStart) error {
	_, runs := s.sim()
	if runs == nil {
		return errLost
	}
	return runs.start(ctx, id, r)
}

func (s *stand) sim() (*lockSim, *jobSim) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.holds, s.jobs
}

// forget loses all state, as a new epoch does. The history then has what was
// held and nobody says any more.
func (c *cluster) forget() *state.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.st
	c.st, c.index, c.term = state.New(), 0, 0
	c.lost++
	return old
}
