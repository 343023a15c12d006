package decide

import (
	"fmt"
	"time"
)

// gain is the share by which the metric must have come down since the first of
// the last NoGainAfter additions; less is no improvement.
const gain = 0.10

// shortFor is how long listings must agree that a machine of the baseline is
// missing: the first one of a new leader may be some seconds old.
const shortFor = 30 * time.Second

// guards evaluates every guard, in the order of the codes. A guard that has no
// say about what is wanted does not block, but still tells how things stand.
func (r *round) guards() []GuardEval {
	out := make([]GuardEval, 0, 19)
	add := func(c Code, blocks bool, detail string) { out = append(out, GuardEval{c, blocks, detail}) }
	r.standing(add)
	r.additions(add)
	r.limits(add)
	r.removal(add)
	return out
}

// standing are the guards that stop any step.
func (r *round) standing(add func(Code, bool, string)) {
	blocks, detail := r.off()
	add(CodeOff, blocks, detail)
	if now, until := r.in.Now, r.state.PausedUntil; now.Before(until) {
		detail = fmt.Sprintf("paused until %s (%s left)", clock(until), brief(until.Sub(now)))
		if r.state.PauseReason != "" {
			detail += ": " + r.state.PauseReason
		}
		add(CodePaused, true, detail)
	} else {
		add(CodePaused, false, "not paused")
	}
	if r.in.Quorum {
		add(CodeNoQuorum, false, "the leader can commit")
	} else {
		add(CodeNoQuorum, true, "the leader cannot commit: too few voters answer")
	}
	fact := func(c Code, text, prefix, fine string) {
		if text != "" {
			add(c, true, prefix+text)
		} else {
			add(c, false, fine)
		}
	}
	fact(CodeAPIDown, r.facts.APIError, "nothing is done on an old list of machines: ", "the Machines API answers")
	fact(CodeOwner, r.facts.Owner, "another autoscaler owns the service: ", "no other autoscaler owns the service")
	fact(CodeDeploy, r.facts.Deploy, "a deploy is in progress: ", "no deploy is in progress")
	blocks, detail = r.dataMissing()
	add(CodeDataMissing, blocks, detail)
	if o := r.openOp(); o != nil {
		detail := fmt.Sprintf("operation %s (%s, %s, step %s) is under way", o.ID, o.Kind, or(o.Machine, "no machine yet"), o.Step)
		if o.Detail != "" {
			detail += ": " + o.Detail
		}
		add(CodeOpInFlight, true, detail)
	} else {
		add(CodeOpInFlight, false, "no operation is under way")
	}
	fact(CodeBreaker, r.facts.Breaker, "the circuit breaker is open: ", "the circuit breaker is closed")
	blocks, detail = r.cooldown()
	add(CodeCooldown, blocks, detail)
}

func (r *round) off() (bool, string) {
	switch r.mode {
	case Auto, UpOnly, Shadow:
		return false, "mode " + string(r.mode)
	case Off:
		return true, "mode off: nothing is decided"
	}
	return true, fmt.Sprintf("mode %q is not known, so nothing is decided", string(r.mode))
}

// dataMissing blocks every removal while a machine is not heard: what is not
// heard may be serving, and what it serves is not in the figures. It also
// blocks the replacement of a baseline machine that still speaks.
func (r *round) dataMissing() (bool, string) {
	f := &r.fleet
	if r.want.code == CodeBelowBaseline {
		since := r.facts.ShortSince
		if short := r.in.Now.Sub(since); since.IsZero() || short < shortFor {
			if since.IsZero() {
				short = 0
			}
			return true, fmt.Sprintf("fewer than the baseline have been listed for %s; a listing may lag, so nothing is replaced before %s",
				brief(max(0, short)), brief(shortFor))
		}
	}
	switch {
	case f.unknown > 0:
		return r.want.kind == Down, fmt.Sprintf("%s not heard and of unknown fate: %s",
			machines(f.unknown, "is", "are"), f.named(asUnknown))
	case f.settling > 0:
		return r.want.kind == Down, machines(f.settling, "is", "are") + " starting and not heard yet"
	}
	if !r.fresh() {
		return false, "every machine that runs is heard"
	}
	last := &r.samples[len(r.samples)-1]
	switch {
	case r.want.code == CodeRuleDown && len(last.Missing) > 0:
		return true, fmt.Sprintf("%d of %d machines are missing from the newest sample%s",
			len(last.Missing), last.Expected, among(last.Missing))
	case r.want.code == CodeBelowBaseline && last.Heard > f.counted:
		return true, fmt.Sprintf("%s heard, and the API lists %d as running", machines(last.Heard, "is", "are"), f.counted)
	}
	return false, "every machine that runs is heard"
}

// cooldown blocks the rules until it is over. A missing baseline machine waits
// a tenth of it: an outage must not last as long as a flap is suppressed, but
// a machine that dies at every start must not be replaced every round either.
// A person waits for nothing.
func (r *round) cooldown() (bool, string) {
	now, until := r.in.Now, r.state.CooldownUntil
	if !now.Before(until) {
		return false, "no cooldown"
	}
	detail := fmt.Sprintf("cooldown until %s (%s left)", clock(until), brief(until.Sub(now)))
	switch r.want.code {
	case CodeManual:
		return false, detail + "; a person need not wait"
	case CodeBelowBaseline:
		short := until.Add(-r.service.Cooldown + r.service.Cooldown/10)
		if !now.Before(short) {
			return false, detail + "; a missing baseline machine need not wait"
		}
		return true, fmt.Sprintf("cooldown of a missing baseline machine until %s (%s left)", clock(short), brief(short.Sub(now)))
	}
	return true, detail
}

// additions are the guards of an addition alone.
func (r *round) additions(add func(Code, bool, string)) {
	blocks, detail := r.noGain()
	add(CodeNoImprovement, blocks, detail)
	n, most := r.fleet.counted, r.service.Max
	detail = fmt.Sprintf("%s, the cap is %d", machines(n, "counts", "count"), most)
	if m := r.state.Manual; m != nil && m.Target > most {
		add(CodeCap, r.want.kind == Up, fmt.Sprintf("%d is over the cap of %d", m.Target, most))
	} else {
		if r.fleet.unknown > 0 {
			detail += fmt.Sprintf(" (%d of unknown fate)", r.fleet.unknown)
		}
		add(CodeCap, r.want.kind == Up && n >= most, detail)
	}
	blocks, detail = r.budget()
	add(CodeBudget, blocks, detail)
}

// noGain blocks a further addition when the last NoGainAfter ones did not move
// the metric that asked for the first of them: the cause is downstream.
func (r *round) noGain() (bool, string) {
	limit, past := r.service.NoGainAfter, r.state.Additions
	if limit <= 0 || len(past) < limit {
		return false, fmt.Sprintf("additions in this breach: %d", len(past))
	}
	first := past[len(past)-limit]
	for i := range r.ups {
		e := &r.ups[i]
		if e.rule.Metric != first.Metric || !e.holds() || !finite(first.Value) {
			continue
		}
		was, is := first.Metric.format(first.Value), first.Metric.format(e.value())
		improved := e.value() <= first.Value-gain*abs(first.Value)
		if e.rule.Op == "<" {
			improved = e.value() >= first.Value+gain*abs(first.Value)
		}
		if improved {
			return false, fmt.Sprintf("%s went from %s to %s over the last %d additions", first.Metric, was, is, limit)
		}
		return r.want.code == CodeRuleUp, fmt.Sprintf(
			"the last %d additions did not help (%s was %s at %s and is %s): look downstream of the service",
			limit, first.Metric, was, clock(first.At), is)
	}
	return false, fmt.Sprintf("additions in this breach: %d, for no rule that holds", len(past))
}

// limits is what the mode allows.
func (r *round) limits(add func(Code, bool, string)) {
	switch {
	case r.mode == UpOnly:
		add(CodeMode, r.want.kind == Down, "mode up-only never removes a machine")
	case r.mode == Shadow:
		add(CodeMode, false, "mode shadow tells what it would do and does not do it")
	default:
		add(CodeMode, false, "mode "+string(r.mode))
	}
}

// removal are the guards of a removal alone.
func (r *round) removal(add func(Code, bool, string)) {
	down := r.want.kind == Down
	detail := fmt.Sprintf("%s, the baseline is %d", machines(r.fleet.staying, "stays", "stay"), r.service.Baseline)
	blocks := down && r.fleet.staying <= r.service.Baseline
	if m := r.state.Manual; m != nil && m.Target < r.service.Baseline {
		blocks, detail = down, fmt.Sprintf("%d is under the baseline of %d", m.Target, r.service.Baseline)
	}
	add(CodeBaseline, blocks, detail)
	if !down {
		const idle = "nothing is to be removed"
		add(CodePinned, false, idle)
		add(CodeLastReady, false, idle)
		add(CodeProjected, false, idle)
		add(CodeNoVictim, false, idle)
		return
	}
	add(CodePinned, r.out.pinned != "", or(r.out.pinned, "a machine besides the primary can go"))
	add(CodeLastReady, r.out.lastReady != "", or(r.out.lastReady, machines(r.fleet.serving, "is", "are")+" ready"))
	blocks, detail = r.projected()
	add(CodeProjected, blocks, detail)
	add(CodeNoVictim, r.out.none != "", or(r.out.none, "there is a machine that can go"))
}

func abs(x float64) float64 {
	if x < 0 {
		return -x
	}
	return x
}
