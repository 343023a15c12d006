package leader

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"flymesh/leader/decide"
	"flymesh/leader/window"
	"flymesh/probes/report"
	"flymesh/raftstore/state"
)

// up carries an addition on by one step.
func (d *driver) up(ctx context.Context, s Service, op state.Op) error {
	switch op.Step {
	case state.StepIntent:
		return d.choose(ctx, s, op)
	case state.StepStarting:
		return d.start(ctx, s, op)
	case state.StepCreating:
		return d.create(ctx, s, op)
	case state.StepBooting:
		return d.booting(ctx, s, op)
	case state.StepWarming:
		return d.warming(ctx, s, op)
	case state.StepUndo:
		return d.undoUp(ctx, s, op)
	}
	return d.finish(ctx, op, state.Abandoned, fmt.Sprintf("step %q is not one of an addition", op.Step), nil)
}

// choose picks a stopped machine of the same group and release, else a name
// for one to be created.
func (d *driver) choose(ctx context.Context, s Service, op state.Op) error {
	ms, err := d.group(ctx, s)
	if err != nil {
		return err
	}
	if full, why := d.full(s, ms, ""); full {
		return d.finish(ctx, op, state.Abandoned, why, nil)
	}
	avoid := d.l.Store.State().Avoid
	release := newestRelease(ms)
	for _, m := range ms {
		if !startable(m) || !m.HostOK || m.Standby || m.Release != release {
			continue
		}
		if a, ok := avoid[m.ID]; ok && a.Until.After(time.Now()) {
			continue
		}
		return d.advance(ctx, op, state.StepStarting, m.ID, "starts a stopped machine of the group")
	}
	if _, ok := template(ms); !ok {
		return d.finish(ctx, op, state.Failed, "no stopped machine to start, and no healthy machine of the group to copy", nil)
	}
	return d.advance(ctx, op, state.StepCreating, "", "creates "+op.Name)
}

// startable says whether a machine can be started as it is: it rests, and the
// platform has not given it up.
func startable(m Machine) bool {
	switch m.State {
	case "stopped", "suspended":
		return true
	case "created":
		return decide.Rests(m.State, m.Created, time.Now())
	}
	return false
}

// start makes sure that the chosen machine has been told to start.
func (d *driver) start(ctx context.Context, s Service, op state.Op) error {
	m, err := d.l.Cloud.Get(ctx, s.App, op.Machine)
	if err != nil {
		if FaultOf(err) == Gone {
			return d.finish(ctx, op, state.Abandoned, "machine "+op.Machine+" is gone", nil)
		}
		return err
	}
	switch {
	case m.State == "starting" || m.State == "started":
		return d.advance(ctx, op, state.StepBooting, m.ID, "")
	case m.State == "failed" || m.State == "destroying" || m.State == "destroyed":
		return d.another(ctx, op, m, "is "+m.State, "machine "+m.ID+" is "+m.State)
	case time.Since(op.StepAt) > startFor:
		return d.finish(ctx, op, state.Failed, fmt.Sprintf("machine %s could not be started for %s (%s)", m.ID, startFor, cmp.Or(op.Detail, m.State)), d.avoid("could not be started"))
	case !startable(m):
		return d.remark(ctx, op, "machine is "+m.State)
	}
	if !d.recall(5 * time.Second) {
		return nil
	}
	ms, err := d.group(ctx, s)
	if err != nil {
		return err
	}
	if full, why := d.full(s, ms, m.ID); full {
		return d.finish(ctx, op, state.Abandoned, why, nil)
	}
	if removal, sent := markOf(m); m.Cordoned || removal != "" { // as its removal left it
		if err := d.l.Cloud.Uncordon(ctx, s.App, m.ID); err != nil {
			return err
		}
		if outlived(sent) {
			if err := d.l.Cloud.SetMetadata(ctx, s.App, m.ID, MetaRemoval, ""); err != nil {
				return err
			}
		}
	}
	switch err := d.l.Cloud.Start(ctx, s.App, m.ID); faultOf(err) {
	case "":
		return d.advance(ctx, op, state.StepBooting, m.ID, "")
	case HostFull:
		return d.another(ctx, op, m, "its host is full", "the host of "+m.ID+" is full")
	case Quota, Denied, Invalid:
		return d.finish(ctx, op, state.Failed, err.Error(), nil)
	default:
		return err
	}
}

// another leaves a machine that cannot be started for another one. One that
// the operation has made itself ends it: its name is used up, and under that
// name the same machine would be found again.
func (d *driver) another(ctx context.Context, op state.Op, m Machine, avoid, detail string) error {
	if m.Name == op.Name {
		return d.finish(ctx, op, state.Failed, detail, d.avoid(avoid))
	}
	return d.move(ctx, op, state.Advance{To: state.StepIntent, Drop: true, Avoid: d.avoid(avoid), Detail: detail})
}

// create makes sure that the machine with the operation's name exists. The
// name is the API's idempotency key: whoever finds it adopts it.
func (d *driver) create(ctx context.Context, s Service, op state.Op) error {
	ms, err := d.group(ctx, s)
	if err != nil {
		return err
	}
	for _, m := range ms {
		if m.Name == op.Name && m.Metadata[MetaOp] == op.ID {
			return d.advance(ctx, op, state.StepBooting, m.ID, "adopted "+op.Name)
		}
	}
	if op.Waited > 0 {
		// It may have been made, and the deploy have put another in its place.
		return d.finish(ctx, op, state.Abandoned, "a deploy came in between; what is wanted is decided anew", nil)
	}
	if full, why := d.full(s, ms, ""); full {
		return d.finish(ctx, op, state.Abandoned, why, nil)
	}
	tpl, ok := template(ms)
	if !ok {
		return d.finish(ctx, op, state.Failed, "no healthy machine of the group to copy", nil)
	}
	// A call that another leader made, or whose answer was lost, may show up in
	// the listing late: look for a while before the same name is sent again.
	if op.Crossed > 0 && d.called.IsZero() && time.Since(op.StepAt) < lookFor || !d.recall(lookFor) {
		return nil
	}
	regions := s.Regions
	if len(regions) == 0 {
		regions = []string{tpl.Region}
	}
	region := cmp.Or(op.Region, regions[0])
	m, err := d.l.Cloud.Create(ctx, CreateRequest{App: s.App, Name: op.Name, Template: tpl.ID, Region: region, Op: op.ID})
	switch fault := faultOf(err); {
	case err == nil:
		return d.advance(ctx, op, state.StepBooting, m.ID, "")
	case fault == Unknown:
		return d.remark(ctx, op, "the answer to the create call was lost; looking for "+op.Name)
	case fault == RegionFull || fault == HostFull && d.fails >= maxRefusals:
		if i := slices.Index(regions, region) + 1; i > 0 && i < len(regions) {
			return d.move(ctx, op, state.Advance{To: state.StepCreating, Region: regions[i],
				Detail: fmt.Sprintf("region %s is full; creates %s in %s", region, op.Name, regions[i])})
		}
		return d.finish(ctx, op, state.Failed, "no room in "+strings.Join(regions, ", ")+": "+err.Error(), nil)
	case fault == Quota || fault == Denied || fault == Invalid:
		return d.finish(ctx, op, state.Failed, err.Error(), nil)
	case time.Since(op.StepAt) > startFor:
		return d.finish(ctx, op, state.Failed, fmt.Sprintf("%s could not be created for %s: %v", op.Name, startFor, err), nil)
	}
	d.called = time.Time{} // nothing happened: the backoff alone decides when to try again
	return err
}

// booting waits for the API's "started" and for the machine's agent.
func (d *driver) booting(ctx context.Context, s Service, op state.Op) error {
	m, err := d.l.Cloud.Get(ctx, s.App, op.Machine)
	if err != nil {
		if FaultOf(err) == Gone && time.Since(op.StepAt) > lookFor {
			return d.finish(ctx, op, state.Failed, "machine "+op.Machine+" does not exist any more", nil)
		}
		return err
	}
	late := time.Since(op.StepAt) > d.l.StartTimeout
	switch m.State {
	case "started":
		// Only what came after the start counts: a stopped machine's last words
		// are still fresh when it is told to start again. Uptime is no sign, for a
		// suspended machine goes on where it stood.
		if _, age, fresh, ok := d.l.Reports.Latest(time.Now(), op.Machine); ok && fresh && age < time.Since(op.StepAt) {
			return d.advance(ctx, op, state.StepWarming, m.ID, "agent heard")
		}
		if time.Since(op.StepAt) > d.l.StartTimeout+d.l.ReadyTimeout {
			return d.advance(ctx, op, state.StepUndo, m.ID, "started, but its agent was never heard")
		}
		return d.remark(ctx, op, "started; waiting for its agent")
	case "stopped", "failed", "suspended":
		// A moment ago it was created or told to start: the listing may lag.
		if time.Since(op.StepAt) < lookFor {
			return nil
		}
		if m.State != "failed" && !late {
			return d.advance(ctx, op, state.StepStarting, m.ID, "machine is "+m.State+"; starts it again")
		}
		return d.finish(ctx, op, state.Failed, fmt.Sprintf("machine %s is %s instead of started", m.ID, m.State), d.avoid("did not start"))
	case "destroyed", "destroying":
		return d.finish(ctx, op, state.Failed, fmt.Sprintf("machine %s is %s", m.ID, m.State), nil)
	}
	if late {
		return d.advance(ctx, op, state.StepUndo, m.ID, fmt.Sprintf("still %s after %s", m.State, d.l.StartTimeout))
	}
	return d.remark(ctx, op, "machine is "+m.State)
}

// warming waits until the machine is ready.
func (d *driver) warming(ctx context.Context, s Service, op state.Op) error {
	if rep, ok := d.report(op.Machine); ok {
		if rep.Readiness == report.Ready {
			return d.finish(ctx, op, state.Done, fmt.Sprintf("ready %s after the decision", time.Since(op.Began).Round(100*time.Millisecond)), nil)
		}
		if err := d.remark(ctx, op, rep.Readiness.String()); err != nil {
			return err
		}
	}
	if time.Since(op.StepAt) > d.l.ReadyTimeout {
		return d.advance(ctx, op, state.StepUndo, op.Machine, fmt.Sprintf("not ready after %s", d.l.ReadyTimeout))
	}
	m, err := d.l.Cloud.Get(ctx, s.App, op.Machine)
	if err != nil {
		if FaultOf(err) == Gone {
			return d.finish(ctx, op, state.Failed, "machine "+op.Machine+" does not exist any more", nil)
		}
		return err
	}
	if m.State != "started" {
		return d.advance(ctx, op, state.StepBooting, op.Machine, "machine is "+m.State+" again")
	}
	return nil
}

// undoUp stops a machine that did not become what it should.
func (d *driver) undoUp(ctx context.Context, s Service, op state.Op) error {
	m, err := d.l.Cloud.Get(ctx, s.App, op.Machine)
	if faultOf(err) == Gone || err == nil && decide.Rests(m.State, time.Time{}, time.Now()) && m.State != "destroying" {
		return d.finish(ctx, op, state.Failed, op.Detail, d.avoid(op.Detail))
	}
	if err != nil {
		return err
	}
	if rep, ok := d.report(op.Machine); ok && rep.Readiness == report.Ready {
		return d.finish(ctx, op, state.Done, "ready after all", nil)
	}
	if held := time.Since(op.StepAt); held > startFor || !m.HostOK && held > hostFor {
		// It goes on counting, but the service must not wait for it.
		return d.finish(ctx, op, state.Failed, op.Detail+"; it could not be stopped and is left as it is", d.avoid(op.Detail))
	}
	if !d.recall(10 * time.Second) {
		return nil
	}
	if veto, err := d.mayStop(ctx, s, op); err != nil {
		return err
	} else if veto != "" {
		return nil // it is busy, or holds a vote for now: it may still become ready
	}
	if _, heard := d.report(op.Machine); !heard {
		// Its reports do not come; it may say more when it is asked.
		// The drain is only the way to ask, and must not outlive the question.
		r, err := d.l.Agents.Drain(ctx, op.Machine, time.Second)
		if err == nil {
			err = d.l.Agents.Undrain(ctx, op.Machine)
		}
		if err == nil && r.Busy != "" {
			return nil
		}
	}
	return d.l.Cloud.Stop(ctx, s.App, op.Machine, 0)
}

// group returns the service's machines as the API lists them from now on: it
// waits for the loop's next listing. One that shows a deploy is none to act on.
func (d *driver) group(ctx context.Context, s Service) ([]Machine, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*d.l.Round+10*time.Second)
	defer cancel()
	if _, err := d.l.listed.after(ctx, s.App); err != nil {
		return nil, fmt.Errorf("wait for the next listing: %w", err)
	}
	if why := d.l.deploys.of(s); why != "" {
		return nil, fmt.Errorf("a deploy is in progress: %s", why)
	}
	return d.l.machines(s), nil
}

// full counts what runs, is starting or may run against the cap; except is the
// machine that this operation is about.
func (d *driver) full(s Service, ms []Machine, except string) (bool, string) {
	n := 0
	for _, m := range ms {
		if m.ID != except && !decide.Rests(m.State, m.Created, time.Now()) {
			n++
		}
	}
	if n >= s.Policy.Max {
		return true, fmt.Sprintf("%d machines run, are starting or may run; the cap is %d", n, s.Policy.Max)
	}
	return false, ""
}

// report returns the machine's newest report if it is fresh.
func (d *driver) report(machine string) (rep report.Report, ok bool) {
	d.l.Reports.with(func(w *window.Window) {
		r, age, heard := w.Latest(time.Now(), machine)
		rep, ok = r, heard && w.Fresh(age)
	})
	return rep, ok
}

// template picks the machine whose config a new one copies: healthy, without a
// volume, of the newest release.
func template(ms []Machine) (Machine, bool) {
	release := newestRelease(ms)
	for _, m := range ms {
		if m.HostOK && !m.Mounts && !m.Standby && m.Release == release && (m.State == "started" || m.State == "stopped" || m.State == "suspended") {
			return m, true
		}
	}
	return Machine{}, false
}

// newestRelease is the release of the machines that run, the highest if they
// differ. Releases are numbers in decimal.
func newestRelease(ms []Machine) string {
	best := ""
	for _, m := range ms {
		if len(m.Release) > len(best) || len(m.Release) == len(best) && m.Release > best {
			best = m.Release
		}
	}
	return best
}
