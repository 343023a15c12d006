package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"flymesh/agent/api"
	"flymesh/cmd/agentctl/emulator"
)

// floor is what the bare library does with the same timeouts on such a machine.
type floor struct {
	p50, max float64 // seconds
	goal     float64 // for p99; 0: none
}

var floors = map[string]floor{
	"fast":    {p50: 0.99, max: 1.43, goal: 1.5},
	"default": {p50: 2.0, max: 2.84, goal: 3},
	"wide":    {p50: 4.07, max: 5.38},
}

// Goals for planned changes, in seconds.
const (
	goalHandOver = 0.1
	goalRecovery = 45
)

const (
	besideTransfer = "library alone 4.4 ms p50, 7.7 ms max"
	besideCommit   = "library alone, in memory, TLS, at its leader: 0.09 ms p50, 0.22 ms p99"
)

// electors is how many machines may vote in this part: three do, two stand
// by, and one more waits. So each is killed rarely enough that its supervisor
// starts it again at once.
const electors = 6

// failover measures changes of the leader.
func (c *course) failover(ctx context.Context, o FailoverOptions) ([]Figure, error) {
	c.say("failover, profile %s: starting %d machines", o.Profile, electors)
	m, err := c.start(ctx, o.Profile, electors, 0, "")
	if err != nil {
		return nil, err
	}
	s := &sheet{part: fmt.Sprintf("changes of the leader, profile %s, 3 voters and 2 stand-bys", o.Profile)}
	err = c.changes(ctx, m, o, s)
	if closed := m.Close(); err == nil {
		err = closed
	}
	return s.list, err
}

func (c *course) changes(ctx context.Context, m *mesh, o FailoverOptions, s *sheet) error {
	if err := c.proposals(ctx, m, o, s); err != nil {
		return err
	}
	back, err := c.ends(ctx, m, s, syscall.SIGKILL, o.Kills, o.Profile)
	if err != nil {
		return err
	}
	s.add("killed mesh half: from its new start to its first answer", back.spread(millis), "")
	if _, err := c.ends(ctx, m, s, syscall.SIGSTOP, o.Silences, o.Profile); err != nil {
		return err
	}

	var gaps, ends times
	for i := range o.Transfers {
		k, err := m.change(ctx, syscall.SIGTERM)
		if err != nil {
			return fmt.Errorf("end leader %d of %d: %w", i+1, o.Transfers, err)
		}
		gaps, ends = append(gaps, k.gap), append(ends, k.commit)
		c.say("SIGTERM %d of %d: no commits for %.1f ms", i+1, o.Transfers, 1000*k.gap.Seconds())
	}
	s.add("planned hand-over: longest wait of a commit", gaps.spread(millis), besideTransfer)
	s.below("the same, p99", gaps.at(0.99), goalHandOver, millis, besideTransfer)
	s.add("SIGTERM to the first commit of the new leader", ends.spread(millis), "")

	if err := c.busy(ctx, m, o, s); err != nil {
		return err
	}

	var recovered times
	for i := range o.Restarts {
		d, err := m.restartAll(ctx)
		if err != nil {
			return fmt.Errorf("restart all %d of %d: %w", i+1, o.Restarts, err)
		}
		recovered = append(recovered, d)
		c.say("all machines updated at once: first commit of the next epoch after %.1f s", d.Seconds())
	}
	if o.Restarts > 0 {
		s.below("recovery after all machines are replaced at once (immediate)", recovered.at(1), goalRecovery, seconds, "")
	}
	return nil
}

// ends times unplanned ends of the leader: kill -9, which ends its connections
// too, or a stop, after which it is silent on connections that stay. It returns
// how long killed mesh halves took to come back.
func (c *course) ends(ctx context.Context, m *mesh, s *sheet, sig syscall.Signal, n int, profile string) (back times, err error) {
	what := map[syscall.Signal]string{syscall.SIGKILL: "kill -9 of the leader", syscall.SIGSTOP: "leader falls silent (SIGSTOP)"}[sig]
	var commit, told times
	for i := range n {
		k, err := m.change(ctx, sig)
		if err != nil {
			return nil, fmt.Errorf("%s, %d of %d: %w", what, i+1, n, err)
		}
		commit, told, back = append(commit, k.commit), append(told, k.status), append(back, k.back)
		c.say("%s, %d of %d: first commit after %.2f s, status after %.2f s", what, i+1, n, k.commit.Seconds(), k.status.Seconds())
	}
	f := floors[profile]
	beside := fmt.Sprintf("library alone: p50 %s, max %s", seconds(f.p50), seconds(f.max))
	s.add(what+" to the first commit", commit.spread(seconds), beside)
	if f.goal > 0 {
		s.below("the same, p99", commit.at(0.99), f.goal, seconds, beside)
	}
	s.add(what+" to a status from the new leader", told.spread(seconds), "")
	return back, nil
}

// proposals times commits through the front door: pause and resume over a
// unix socket, at the leader and at another machine, which forwards.
func (c *course) proposals(ctx context.Context, m *mesh, o FailoverOptions, s *sheet) error {
	st, err := m.status(ctx)
	if err != nil {
		return err
	}
	var leads, other emulator.Machine
	for _, x := range m.Machines() {
		if x.ID == st.Leader.Machine {
			leads = x
		} else {
			other = x
		}
	}
	for _, x := range []struct {
		at   emulator.Machine
		what string
	}{{leads, "at the leader"}, {other, "at another machine, forwarded"}} {
		var ts times
		for range o.Proposals {
			began := time.Now()
			if err := propose(ctx, x.at); err != nil {
				return fmt.Errorf("time a commit %s: %w", x.what, err)
			}
			ts = append(ts, time.Since(began))
		}
		if len(ts) > 0 {
			s.add("commit over the unix socket "+x.what, ts.spread(millis), besideCommit)
		}
	}
	return nil
}

// propose commits something harmless.
func propose(ctx context.Context, x emulator.Machine) error {
	_, err := api.NewSocketClient(x.Socket).Pause(ctx, api.PauseRequest{Service: "voters", For: time.Minute, Reason: "bench", By: "bench"})
	return err
}

// change is one end of a leader.
type change struct {
	commit time.Duration // from the signal to the first commit under another leader
	gap    time.Duration // longest time between two commits, tried without pause
	status time.Duration // from the signal to a status by another leader
	back   time.Duration // from the start of the new mesh half to its first answer
}

// change ends the leader's mesh half with a signal and waits until the mesh is
// complete again.
func (m *mesh) change(ctx context.Context, sig syscall.Signal) (change, error) {
	before, err := m.status(ctx)
	if err != nil {
		return change{}, err
	}
	_, halves := m.halves()
	old, ok := halves[before.Leader.Machine]
	if !ok {
		return change{}, fmt.Errorf("find leader: machine %s has no mesh half", before.Leader.Machine)
	}
	var others []emulator.Machine
	var leader emulator.Machine
	for _, x := range m.Machines() {
		if x.ID == before.Leader.Machine {
			leader = x
		} else if len(others) < 2 {
			others = append(others, x)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()

	p := &prober{last: time.Now()}
	probing, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, x := range others {
		wg.Go(func() { p.run(probing, x) })
	}
	// Commits flow before the leader ends, so that the gap is one of service.
	if err := until(ctx, 5*time.Second, "commits", func(context.Context) error { return p.flowing() }); err != nil {
		return change{}, err
	}
	var k change
	at := time.Now()
	p.signalled(at)
	if err := syscall.Kill(old.pid, sig); err != nil {
		return k, fmt.Errorf("signal leader: %w", err)
	}
	type answer struct {
		took time.Duration
		err  error
	}
	back := make(chan answer, 1)
	wg.Go(func() {
		took, err := m.backAgain(ctx, leader, old.pid)
		back <- answer{took, err}
	})
	err = until(ctx, 30*time.Second, "another leader", func(ctx context.Context) error {
		s, err := m.statusOf(ctx, leader.ID, patience)
		if err == nil && s.Term == before.Term && s.Epoch == before.Epoch {
			err = fmt.Errorf("machine %s still leads", s.Leader.Machine)
		}
		return err
	})
	if err != nil {
		return k, err
	}
	k.status = time.Since(at)
	if err := until(ctx, 10*time.Second, "commits", func(context.Context) error { return p.since(at.Add(k.status)) }); err != nil {
		return k, err
	}
	stop()
	k.commit, k.gap = p.result()
	if sig == syscall.SIGSTOP { // so that its supervisor need not find out first
		if err := syscall.Kill(old.pid, syscall.SIGKILL); err != nil {
			return k, fmt.Errorf("kill silent leader: %w", err)
		}
	}

	again := <-back
	if again.err != nil {
		return k, again.err
	}
	k.back = again.took
	return k, m.ready(ctx, 45*time.Second)
}

// backAgain waits until the supervisor has started a machine's mesh half again
// and it answers, and tells how long it takes from the start to the answer.
func (m *mesh) backAgain(ctx context.Context, x emulator.Machine, old int) (took time.Duration, err error) {
	err = until(ctx, 40*time.Second, "the mesh half to come back", func(ctx context.Context) error {
		now, ok := meshHalves(map[int]string{x.PID: x.ID})[x.ID]
		if !ok || now.pid == old {
			return errors.New("its supervisor has not started it again")
		}
		_, _, err := api.NewSocketClient(x.Socket).Health(ctx)
		took = sinceBoot() - now.began
		return err
	})
	return took, err
}

// patience is how long one try may take while the leader changes: what an agent
// has forwarded to a leader that fell silent hangs.
const patience = 250 * time.Millisecond

// prober commits without a pause, through machines that stay.
type prober struct {
	mu    sync.Mutex // guards all below
	n     int
	last  time.Time     // when the newest commit returned
	gap   time.Duration // longest since the signal
	at    time.Time     // of the signal
	first time.Time     // end of the wait that was longest
}

func (p *prober) run(ctx context.Context, x emulator.Machine) {
	for ctx.Err() == nil {
		one, cancel := context.WithTimeout(ctx, patience)
		err := propose(one, x)
		cancel()
		if err == nil {
			p.committed(time.Now())
		}
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (p *prober) committed(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n++
	if d := now.Sub(p.last); !p.at.IsZero() && d > p.gap {
		p.gap, p.first = d, now
	}
	p.last = now
}

func (p *prober) flowing() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n < 20 {
		return fmt.Errorf("%d commits so far", p.n)
	}
	return nil
}

func (p *prober) signalled(at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at = at
}

func (p *prober) since(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.last.After(t) {
		return errors.New("none since the new leader is known")
	}
	return nil
}

// result tells when commits flowed again after the longest wait, and how long
// that was.
func (p *prober) result() (commit, gap time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.first.Sub(p.at), p.gap
}
