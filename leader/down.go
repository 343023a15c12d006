package leader

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"flymesh/probes/report"
	"flymesh/raftstore/state"
)

// down carries a removal on by one step.
func (d *driver) down(ctx context.Context, s Service, op state.Op) error {
	switch op.Step {
	case state.StepIntent:
		return d.cordon(ctx, s, op)
	case state.StepCordon:
		return d.cordoned(ctx, s, op)
	case state.StepDrain:
		return d.drain(ctx, s, op)
	case state.StepStopping:
		return d.stop(ctx, s, op)
	case state.StepUndo:
		return d.undoDown(ctx, s, op)
	}
	return d.finish(ctx, op, state.Abandoned, fmt.Sprintf("step %q is not one of a removal", op.Step), nil)
}

// cordon checks the victim once more and commits that it is about to be
// cordoned.
func (d *driver) cordon(ctx context.Context, s Service, op state.Op) error {
	m, err := d.l.Cloud.Get(ctx, s.App, op.Machine)
	if err != nil {
		if FaultOf(err) == Gone {
			return d.finish(ctx, op, state.Abandoned, "machine "+op.Machine+" is gone", nil)
		}
		return err
	}
	if m.State != "started" {
		return d.finish(ctx, op, state.Abandoned, "machine "+op.Machine+" is "+m.State+" already", nil)
	}
	if veto, err := d.mayStop(ctx, s, op); err != nil {
		return err
	} else if veto != "" {
		return d.finish(ctx, op, state.Abandoned, veto, d.leave(veto))
	}
	return d.advance(ctx, op, state.StepCordon, op.Machine, "")
}

// cordoned takes the machine out of the proxy's rotation. The mark says whose
// cordon it is: a leader that finds it without an open operation takes it back.
func (d *driver) cordoned(ctx context.Context, s Service, op state.Op) error {
	if err := d.l.Cloud.SetMetadata(ctx, s.App, op.Machine, MetaRemoval, markFor(op.ID)); err != nil && FaultOf(err) != Gone {
		return err
	}
	switch err := d.l.Cloud.Cordon(ctx, s.App, op.Machine); faultOf(err) {
	case "":
		return d.advance(ctx, op, state.StepDrain, op.Machine, "")
	case Gone:
		return d.finish(ctx, op, state.Abandoned, "machine "+op.Machine+" is gone", nil)
	default:
		if time.Since(op.StepAt) > d.l.DrainTimeout+time.Minute {
			return d.advance(ctx, op, state.StepUndo, op.Machine, err.Error())
		}
		return err
	}
}

// drain lets the machine finish what it has.
func (d *driver) drain(ctx context.Context, s Service, op state.Op) error {
	left := d.l.DrainTimeout - time.Since(op.StepAt)
	if veto, err := d.mayStop(ctx, s, op); err != nil {
		d.called = time.Time{}
		return err
	} else if veto != "" {
		return d.advance(ctx, op, state.StepUndo, op.Machine, veto)
	}
	if err := d.allowed(ctx); err != nil {
		return err
	}
	r, err := d.l.Agents.Drain(ctx, op.Machine, max(left, time.Second))
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil && left > 0:
		return err
	case err != nil:
		return d.advance(ctx, op, state.StepUndo, op.Machine, fmt.Sprintf("the agent does not answer: %v", err))
	case r.Busy != "":
		return d.advance(ctx, op, state.StepUndo, op.Machine, "busy: "+r.Busy)
	case r.Done:
		return d.advance(ctx, op, state.StepStopping, op.Machine, "drained")
	case left > 0:
		return d.remark(ctx, op, fmt.Sprintf("%d requests in flight", r.InFlight))
	}
	return d.advance(ctx, op, state.StepStopping, op.Machine, fmt.Sprintf("deadline passed with %d requests in flight", r.InFlight))
}

// stop makes sure that the machine has been told to stop, and waits for it.
func (d *driver) stop(ctx context.Context, s Service, op state.Op) error {
	m, err := d.l.Cloud.Get(ctx, s.App, op.Machine)
	if err != nil && FaultOf(err) != Gone {
		return err
	}
	if err != nil || m.State == "stopped" || m.State == "destroyed" || m.State == "suspended" || m.State == "failed" {
		d.l.Reports.Leave(op.Machine)
		return d.finish(ctx, op, state.Done, fmt.Sprintf("%s %s after the decision", cmp.Or(m.State, "gone"), time.Since(op.Began).Round(100*time.Millisecond)), nil)
	}
	if time.Since(op.StepAt) > startFor {
		return d.advance(ctx, op, state.StepUndo, op.Machine, fmt.Sprintf("it could not be stopped for %s (%s)", startFor, cmp.Or(op.Detail, m.State)))
	}
	if m.State == "stopping" || m.State == "suspending" || !d.recall(30*time.Second) {
		return nil
	}
	if veto, err := d.mayStop(ctx, s, op); err != nil {
		d.called = time.Time{}
		return err
	} else if veto != "" {
		return d.advance(ctx, op, state.StepUndo, op.Machine, veto)
	}
	if err := d.allowed(ctx); err != nil {
		d.called = time.Time{}
		return err
	}
	if ok, err := d.idle(ctx, op); !ok || err != nil {
		d.called = time.Time{}
		return err
	}
	if s.Suspend && d.suspends {
		err = d.l.Cloud.Suspend(ctx, s.App, op.Machine)
	} else {
		err = d.l.Cloud.Stop(ctx, s.App, op.Machine, 0)
	}
	switch faultOf(err) {
	case "", Unknown, Gone:
		return nil // the next look says what became of it
	case Invalid, TooEarly:
		// Too much memory, an attached volume, a machine not updated for years:
		// the platform cannot suspend it, so it is stopped.
		d.suspends = d.suspends && faultOf(err) == TooEarly && d.fails < maxRefusals
	}
	d.called = time.Time{}
	return err
}

// idle asks the agent once more before its machine is stopped: between the
// drain and now may lie a deploy or a change of leaders, and the newest report
// may be old. A machine that does not answer is not stopped on what it said then.
func (d *driver) idle(ctx context.Context, op state.Op) (bool, error) {
	r, err := d.l.Agents.Drain(ctx, op.Machine, time.Second)
	switch {
	case err == nil && r.Busy == "":
		return true, nil
	case err == nil:
		return false, d.advance(ctx, op, state.StepUndo, op.Machine, "busy: "+r.Busy)
	case time.Since(op.StepAt) > d.l.DrainTimeout:
		return false, d.advance(ctx, op, state.StepUndo, op.Machine, fmt.Sprintf("the agent does not answer: %v", err))
	}
	return false, fmt.Errorf("ask agent before the stop: %w", err)
}

// undoDown gives a machine back to its service.
func (d *driver) undoDown(ctx context.Context, s Service, op state.Op) error {
	if err := d.allowed(ctx); err != nil {
		return err
	}
	if err := d.l.takeBack(ctx, s.App, op.Machine, true); err != nil && FaultOf(err) != Gone {
		if time.Since(op.StepAt) > hostFor {
			// Its host or agent may be gone for hours. The mark stays on it, so the
			// loop gives it back when it can.
			return d.finish(ctx, op, state.Abandoned, op.Detail+"; it is given back later: "+err.Error(), nil)
		}
		return err
	}
	return d.finish(ctx, op, state.Abandoned, op.Detail, d.leave(op.Detail))
}

// leave keeps a machine that could not be removed from being chosen again at
// once: what the policy does not see would else be tried every round.
func (d *driver) leave(reason string) *state.Avoid {
	return &state.Avoid{Until: time.Now().UTC().Add(leaveFor), Reason: reason}
}

// takeBack undoes a removal: the machine is in the proxy's rotation again, and
// its agent answers for it. The mark stays: see giveBack.
func (l *Leader) takeBack(ctx context.Context, app, machine string, cordoned bool) error {
	if cordoned {
		if err := l.Cloud.Uncordon(ctx, app, machine); err != nil {
			return err
		}
	}
	if err := l.Agents.Undrain(ctx, machine); err != nil {
		return fmt.Errorf("take drain of machine %s back: %w", machine, err)
	}
	return nil
}

// mayStop holds the machine against everything that must never be stopped, as
// it is now and not as it was when the removal was decided. An error says that
// it could not be told: the caller waits.
func (d *driver) mayStop(ctx context.Context, s Service, op state.Op) (veto string, err error) {
	if d.l.Store.State().Service(op.Service).Primary == op.Machine {
		return fmt.Sprintf("machine %s is the primary of %s", op.Machine, op.Service), nil
	}
	if held := d.l.Store.State().HeldBy(op.Machine); len(held) > 0 {
		return fmt.Sprintf("machine %s holds lock %s", op.Machine, held[0].Name), nil
	}
	if op.Machine == d.l.Self {
		return fmt.Sprintf("machine %s leads the mesh", op.Machine), nil
	}
	if rep, ok := d.report(op.Machine); ok && rep.Busy {
		return fmt.Sprintf("machine %s is busy: %s", op.Machine, rep.Reason), nil
	}
	if op.Kind == state.OpDown {
		if n, err := d.othersReady(ctx, s, op.Machine); err != nil {
			return "", err
		} else if n == 0 {
			return fmt.Sprintf("machine %s is the last ready one of %s", op.Machine, op.Service), nil
		}
	}
	if err := d.l.Store.MayStop(ctx, op.Machine); err != nil {
		return fmt.Sprintf("machine %s holds a vote: %v", op.Machine, err), nil
	}
	return "", nil
}

// othersReady counts the service's other machines that the API calls started
// and that say now that they are ready.
func (d *driver) othersReady(ctx context.Context, s Service, machine string) (int, error) {
	ms, err := d.group(ctx, s)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, m := range ms {
		if m.ID == machine || m.State != "started" || m.Cordoned || !m.HostOK {
			continue
		}
		if rep, ok := d.report(m.ID); ok && rep.Readiness == report.Ready {
			n++
		}
	}
	return n, nil
}
