package leader

import (
	"context"
	"errors"
	"fmt"
	"time"

	"flymesh/raftstore/state"
)

// How an operation is carried on. Every step looks at what is true first, so
// that a step that was already done, by this leader or the one before, is not
// done again.
const (
	stepPause    = 500 * time.Millisecond // between two looks at an operation
	maxPause     = 10 * time.Second       // the longest pause after failures in a row
	avoidFor     = 15 * time.Minute       // a machine that never became ready is not chosen again for so long
	leaveFor     = time.Minute            // a machine that could not be removed is not chosen again for so long
	breakerFirst = 30 * time.Second       // pause after the first failed operation; doubles
	breakerMost  = 15 * time.Minute
	startFor     = 10 * time.Minute // a start or create that the API refuses for so long has failed
	hostFor      = 2 * time.Minute  // a host that does not answer for so long is not waited for
	maxRefusals  = 3                // calls refused in a row, for one host or state, before another way is taken
	lookFor      = 10 * time.Second // how long a lost create is looked up by name before the same name is sent again
)

// errGivenUp ends a driver: the operation is closed or another leader's.
var errGivenUp = errors.New("operation is not ours any more")

// drive starts a driver for an open operation that has none in this term.
func (l *Leader) drive(ctx context.Context, t Term, id string) {
	l.drvMu.Lock()
	defer l.drvMu.Unlock()
	if l.driven[id] {
		return
	}
	l.driven[id] = true
	l.drivers.Go(func() {
		d := &driver{l: l, term: t, id: id, log: l.log.With("op", id), suspends: true}
		d.run(ctx)
		l.drvMu.Lock()
		delete(l.driven, id)
		l.drvMu.Unlock()
	})
}

// driver carries one operation to its end, or until the term ends.
type driver struct {
	l    *Leader
	term Term
	id   string
	log  interface {
		Info(string, ...any)
		Warn(string, ...any)
	}
	fails  int       // failed looks in a row, for the backoff
	called time.Time // when this driver last made the step's call
	// suspends is false once the platform has refused to suspend the machine.
	suspends bool
}

func (d *driver) run(ctx context.Context) {
	for ctx.Err() == nil {
		op, ok := d.l.Store.State().Ops[d.id]
		if !ok {
			return
		}
		s, ok := d.l.service(op.Service)
		if !ok {
			_ = d.finish(ctx, *op, state.Abandoned, "the service is not in mesh.toml any more", nil)
			return
		}
		var err error
		if wait, werr := d.waits(ctx, s, *op); wait || werr != nil {
			d.pause(ctx, werr)
			continue
		}
		if op.Kind == state.OpUp {
			err = d.up(ctx, s, *op)
		} else {
			err = d.down(ctx, s, *op)
		}
		if errors.Is(err, errGivenUp) {
			return
		}
		if err != nil && ctx.Err() == nil {
			d.l.deploys.meet(s, op.Machine, err)
			d.fault(ctx, *op, err)
		}
		d.pause(ctx, err)
	}
}

// waits holds the operation while its service is being deployed, and lets it go
// on, with the step's time anew, when that is over.
func (d *driver) waits(ctx context.Context, s Service, op state.Op) (bool, error) {
	why := d.l.deploys.of(s)
	if (why == "") == (op.Waits == "") {
		return why != "", nil
	}
	if why != "" {
		why = "a deploy is in progress: " + why
	}
	_, err := d.l.propose(ctx, d.term, state.Command{Wait: &state.Wait{Op: op.ID, Reason: why}})
	d.called = time.Time{}
	return true, err
}

// fault records what a call was answered, for people: the operation goes on
// trying, and its log line alone would be easy to miss.
func (d *driver) fault(ctx context.Context, op state.Op, err error) {
	var ce *CloudError
	if op.Step == state.StepUndo || !errors.As(err, &ce) {
		return // the detail of an undo is why it is undone
	}
	if now, ok := d.l.Store.State().Ops[d.id]; ok && now.Step == op.Step {
		_ = d.remark(ctx, *now, fmt.Sprintf("%s: %s", ce.Action, ce.Fault)) // the next look tries again
	}
}

// pause waits before the next look, longer after each failure in a row.
func (d *driver) pause(ctx context.Context, err error) {
	wait := stepPause
	if err != nil && ctx.Err() == nil {
		d.fails++
		wait = min(stepPause<<min(d.fails, 6), maxPause)
		d.log.Warn("operation is held up", "error", err, "retry_in", wait.String())
	} else {
		d.fails = 0
	}
	select {
	case <-ctx.Done():
	case <-time.After(wait):
	}
}

// allowed is asked immediately before agents are told to do something. What
// changes something through the Machines API asks the same by itself.
func (d *driver) allowed(ctx context.Context) error {
	if err := d.l.Store.Verify(ctx); err != nil {
		return fmt.Errorf("verify leadership: %w", err)
	}
	return ctx.Err()
}

// advance commits the next step. A rejection means that somebody else moved
// the operation: this driver looks again.
func (d *driver) advance(ctx context.Context, op state.Op, to state.Step, machine, detail string) error {
	return d.move(ctx, op, state.Advance{To: to, Machine: machine, Detail: detail})
}

func (d *driver) move(ctx context.Context, op state.Op, a state.Advance) error {
	a.Op, a.From = op.ID, op.Step
	if _, err := d.l.propose(ctx, d.term, state.Command{Advance: &a}); err != nil {
		return err
	}
	d.called = time.Time{}
	d.log.Info("operation step", "service", op.Service, "step", string(a.To), "machine", a.Machine, "detail", a.Detail)
	return nil
}

// finish closes the operation and starts the service's cooldown. What went
// wrong with a deploy in between is nobody's failure: the breaker stays closed
// and the machine may be chosen again.
func (d *driver) finish(ctx context.Context, op state.Op, how state.Outcome, reason string, avoid *state.Avoid) error {
	now := time.Now().UTC()
	if op.Waited > 0 {
		avoid = nil
	}
	if how == state.Failed && op.Waited > 0 {
		how, reason = state.Abandoned, reason+"; a deploy came in between"
	}
	f := &state.Finish{Op: op.ID, Outcome: how, Reason: reason, Avoid: avoid, To: op.To}
	s, _ := d.l.service(op.Service)
	switch how {
	case state.Done:
		f.CooldownUntil = now.Add(s.Policy.Cooldown)
	case state.Failed:
		n := d.l.Store.State().Service(op.Service).Failures
		f.BreakerUntil = now.Add(min(breakerFirst<<min(n, 10), breakerMost))
		f.To = op.From
	case state.Abandoned:
		f.To = op.From
	}
	if _, err := d.l.propose(ctx, d.term, state.Command{Finish: f}); err != nil {
		return err
	}
	d.log.Info("operation ended", "service", op.Service, "kind", string(op.Kind), "outcome", string(how), "machine", op.Machine, "reason", reason)
	return errGivenUp
}

// remark records why an operation waits, without moving it.
func (d *driver) remark(ctx context.Context, op state.Op, detail string) error {
	if op.Detail == detail {
		return nil
	}
	_, err := d.l.propose(ctx, d.term, state.Command{Advance: &state.Advance{
		Op: op.ID, From: op.Step, To: op.Step, Detail: detail, Tries: op.Tries + 1,
	}})
	return err
}

// recall says whether the step's call may be made (again): not while an
// earlier one may still be on its way.
func (d *driver) recall(every time.Duration) bool {
	if !d.called.IsZero() && time.Since(d.called) < every {
		return false
	}
	d.called = time.Now()
	return true
}

func (d *driver) avoid(reason string) *state.Avoid {
	return &state.Avoid{Until: time.Now().UTC().Add(avoidFor), Reason: reason}
}
