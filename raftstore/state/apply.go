package state

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Apply carries out one log entry. It is the only way the state changes. What
// is unknown, stale or out of place gets a Rejection and changes nothing but
// the index.
func (s *State) Apply(index uint64, data []byte) Result {
	s.Index = index
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var c Command
	if err := dec.Decode(&c); err != nil {
		return reject(index, BadEntry, fmt.Sprintf("decode: %v", err))
	}
	if c.V != Version {
		return reject(index, BadEntry, fmt.Sprintf("format version %d, this build knows %d", c.V, Version))
	}
	if c.ID != "" {
		for _, seen := range slices.Backward(s.Seen) {
			if seen.ID == c.ID {
				return seen.Result
			}
		}
	}
	r := s.do(index, c)
	if c.ID != "" && r.Rejection != BadEntry {
		s.Seen = append(s.Seen, Seen{c.ID, r})
		if n := len(s.Seen) - maxSeen; n > 0 {
			s.Seen = slices.Delete(s.Seen, 0, n)
		}
	}
	return r
}

func (s *State) do(index uint64, c Command) Result {
	if c.Term != 0 && c.Term < s.Term {
		return reject(index, Stale, fmt.Sprintf("term %d, newest is %d", c.Term, s.Term))
	}
	switch {
	case c.Elect != nil:
		return s.elect(index, c)
	case c.Begin != nil:
		return s.begin(index, c)
	case c.Advance != nil:
		return s.advance(index, c)
	case c.Finish != nil:
		return s.finish(index, c)
	case c.Pause != nil:
		return s.pause(index, c)
	case c.Resume != nil:
		return s.resume(index, c)
	case c.Scale != nil:
		return s.scale(index, c)
	case c.Settle != nil:
		return s.settle(index, c)
	case c.Pin != nil:
		return s.pin(index, c)
	case c.Admit != nil:
		return s.admit(index, c)
	case c.Revoke != nil:
		return s.revoke(index, c)
	case c.Wait != nil:
		return s.wait(index, c)
	case c.Meter != nil:
		return s.meter(index, c)
	case c.SetAlert != nil:
		return s.setAlert(index, c)
	case c.TellAlert != nil:
		return s.tellAlert(index, c)
	case c.TellSteps != nil:
		return s.tellSteps(index, c)
	case c.Silence != nil:
		return s.silence(index, c)
	case c.Grant != nil:
		return s.grant(index, c)
	case c.Free != nil:
		return s.free(index, c)
	case c.Adopt != nil:
		return s.adopt(index, c)
	case c.Rebuilt != nil:
		return s.rebuilt(index, c)
	case c.Claim != nil:
		return s.claim(index, c)
	case c.Mark != nil:
		return s.mark(index, c)
	case c.Skip != nil:
		return s.skip(index, c)
	case c.PauseJob != nil:
		return s.pauseJob(index, c)
	case c.Note != nil:
		n := c.Note
		s.tell(index, c, Event{Kind: n.Kind, Service: n.Service, Machine: n.Machine, Reason: n.Reason})
		return Result{Index: index}
	}
	return reject(index, BadEntry, "command has no body")
}

func (s *State) elect(index uint64, c Command) Result {
	if c.Term == 0 || c.Term <= s.Term && s.Leader != c.Elect.Machine {
		return reject(index, Stale, fmt.Sprintf("election in term %d, newest is %d", c.Term, s.Term))
	}
	s.Term, s.Leader, s.Epoch = c.Term, c.Elect.Machine, c.Elect.Epoch
	for _, o := range s.Ops {
		o.Crossed++
	}
	s.tell(index, c, Event{Kind: "leader", Machine: c.Elect.Machine, Reason: fmt.Sprintf("elected in term %d", c.Term)})
	return Result{Index: index}
}

func (s *State) begin(index uint64, c Command) Result {
	b := c.Begin
	if b.Service == "" || b.Kind != OpUp && b.Kind != OpDown {
		return reject(index, BadEntry, fmt.Sprintf("begin %q of service %q", b.Kind, b.Service))
	}
	if b.Kind == OpDown && b.Machine == "" {
		return reject(index, BadEntry, "a down operation names its machine")
	}
	if o, ok := s.OpOf(b.Service); ok {
		return reject(index, Conflict, fmt.Sprintf("operation %s of %s is open", o.ID, b.Service))
	}
	if b.Kind == OpDown && s.Service(b.Service).Primary == b.Machine {
		return reject(index, Conflict, fmt.Sprintf("machine %s is the primary of %s", b.Machine, b.Service))
	}
	if held := s.HeldBy(b.Machine); b.Kind == OpDown && len(held) > 0 {
		return reject(index, Conflict, fmt.Sprintf("machine %s holds lock %s", b.Machine, held[0].Name))
	}
	id := fmt.Sprintf("%d-%d-%d", s.Epoch, c.Term, index)
	o := &Op{
		ID: id, Service: b.Service, Kind: b.Kind, Step: StepIntent, Machine: b.Machine,
		From: b.From, To: b.To, Code: b.Code, Reason: b.Reason, By: c.By, Manual: b.Manual, Rule: b.Rule,
		Began: c.At, StepAt: c.At,
	}
	if b.Kind == OpUp {
		o.Name = "flymesh-" + b.Service + "-" + id
	}
	s.Ops[id] = o
	if b.Trigger != nil {
		v := s.service(b.Service)
		v.Additions = append(v.Additions, *b.Trigger)
	}
	s.tell(index, c, Event{Kind: string(b.Kind), Service: b.Service, Op: id, Machine: b.Machine, From: b.From, To: b.To, Reason: b.Reason})
	return Result{Index: index, Op: id}
}

func (s *State) advance(index uint64, c Command) Result {
	a := c.Advance
	o := s.Ops[a.Op]
	if o == nil {
		return reject(index, NoSuch, fmt.Sprintf("operation %s is not open", a.Op))
	}
	if o.Step != a.From {
		return reject(index, Stale, fmt.Sprintf("operation %s is at step %s, not %s", a.Op, o.Step, a.From))
	}
	if a.To != o.Step {
		o.StepAt = c.At
	}
	if a.Avoid != nil && o.Machine != "" {
		s.Avoid[o.Machine] = *a.Avoid
	}
	moved := a.To != o.Step || a.Machine != "" && a.Machine != o.Machine || a.Region != "" && a.Region != o.Region
	o.Step, o.Tries, o.Detail = a.To, a.Tries, a.Detail
	if a.Machine != "" {
		o.Machine = a.Machine
	}
	if a.Region != "" {
		o.Region = a.Region
	}
	if a.Name != "" {
		o.Name = a.Name
	}
	if moved {
		s.tell(index, c, Event{Kind: "step", Service: o.Service, Op: o.ID, Machine: o.Machine, From: o.From, To: o.To, Reason: stepText(o)})
	}
	if a.Drop {
		o.Machine = ""
	}
	return Result{Index: index, Op: o.ID}
}

func stepText(o *Op) string {
	if o.Detail == "" {
		return string(o.Step)
	}
	return string(o.Step) + ": " + o.Detail
}

func (s *State) finish(index uint64, c Command) Result {
	f := c.Finish
	o := s.Ops[f.Op]
	if o == nil {
		return reject(index, NoSuch, fmt.Sprintf("operation %s is not open", f.Op))
	}
	delete(s.Ops, f.Op)
	v := s.service(o.Service)
	v.CooldownUntil = later(v.CooldownUntil, f.CooldownUntil)
	s.touch(o, c.At)
	switch f.Outcome {
	case Failed:
		v.Failures++
		if f.BreakerUntil.After(v.BreakerUntil) {
			v.BreakerUntil, v.BreakerReason = f.BreakerUntil, f.Reason
		}
		// An addition that never came to be is no evidence of "no improvement".
		if o.Kind == OpUp && len(v.Additions) > 0 {
			v.Additions = v.Additions[:len(v.Additions)-1]
		}
	case Done:
		v.Failures, v.BreakerUntil, v.BreakerReason = 0, time.Time{}, ""
		v.Budget.turn(o, c.At)
	}
	if f.Avoid != nil && o.Machine != "" {
		s.Avoid[o.Machine] = *f.Avoid
	}
	for m, a := range s.Avoid {
		if !a.Until.After(c.At) {
			delete(s.Avoid, m)
		}
	}
	if o.Kind == OpDown && f.Outcome == Done {
		delete(s.Admitted, o.Machine)
	}
	s.tell(index, c, Event{Kind: string(o.Kind) + "_" + string(f.Outcome), Service: o.Service, Op: o.ID, Machine: o.Machine, From: o.From, To: f.To, Reason: f.Reason})
	return Result{Index: index, Op: o.ID}
}

// touch remembers the machine of an operation that ends.
func (s *State) touch(o *Op, now time.Time) {
	s.Touched = slices.DeleteFunc(s.Touched, func(t Touch) bool {
		return t.Machine == o.Machine || now.Sub(t.At) > touchedFor
	})
	if o.Machine != "" {
		s.Touched = append(s.Touched, Touch{o.Service, o.Machine, now})
	}
}

func (s *State) wait(index uint64, c Command) Result {
	o := s.Ops[c.Wait.Op]
	if o == nil {
		return reject(index, NoSuch, fmt.Sprintf("operation %s is not open", c.Wait.Op))
	}
	was := o.Waits
	o.Waits = c.Wait.Reason
	switch {
	case was == "" && o.Waits != "":
		o.Waited++
		s.tell(index, c, Event{Kind: "wait", Service: o.Service, Op: o.ID, Machine: o.Machine, From: o.From, To: o.To, Reason: o.Waits})
	case was != "" && o.Waits == "":
		o.StepAt = c.At
		s.tell(index, c, Event{Kind: "go_on", Service: o.Service, Op: o.ID, Machine: o.Machine, From: o.From, To: o.To, Reason: "no more: " + was})
	}
	return Result{Index: index, Op: o.ID}
}

func (s *State) meter(index uint64, c Command) Result {
	m := c.Meter
	if m.Service == "" || m.Running < 0 {
		return reject(index, BadEntry, fmt.Sprintf("meter %d machines of %q", m.Running, m.Service))
	}
	b := &s.service(m.Service).Budget
	*b = b.Until(c.At)
	b.Running = m.Running
	return Result{Index: index}
}

func (s *State) pause(index uint64, c Command) Result {
	p := c.Pause
	if p.Service == "" || !p.Until.After(c.At) {
		return reject(index, BadEntry, "a pause names a service and ends in the future")
	}
	v := s.service(p.Service)
	v.PausedUntil, v.PauseReason, v.PausedBy = p.Until, p.Reason, c.By
	s.tell(index, c, Event{Kind: "pause", Service: p.Service, Reason: joined("until "+p.Until.UTC().Format(time.RFC3339), p.Reason)})
	return Result{Index: index}
}

func (s *State) resume(index uint64, c Command) Result {
	v := s.Services[c.Resume.Service]
	if v == nil || v.PausedUntil.IsZero() {
		return reject(index, NoSuch, fmt.Sprintf("service %q is not paused", c.Resume.Service))
	}
	v.PausedUntil, v.PauseReason, v.PausedBy = time.Time{}, "", ""
	s.tell(index, c, Event{Kind: "resume", Service: c.Resume.Service})
	return Result{Index: index}
}

func (s *State) scale(index uint64, c Command) Result {
	r := c.Scale
	if r.Service == "" || r.Target < 0 {
		return reject(index, BadEntry, fmt.Sprintf("scale %q to %d", r.Service, r.Target))
	}
	s.service(r.Service).Manual = &Manual{Target: r.Target, Reason: r.Reason, By: c.By, At: c.At}
	s.tell(index, c, Event{Kind: "scale", Service: r.Service, To: r.Target, Reason: r.Reason})
	return Result{Index: index}
}

func (s *State) settle(index uint64, c Command) Result {
	t := c.Settle
	v := s.Services[t.Service]
	if v == nil {
		return reject(index, NoSuch, fmt.Sprintf("nothing is kept of service %q", t.Service))
	}
	if t.Additions {
		v.Additions = nil
	}
	if t.Manual && v.Manual != nil {
		to := v.Manual.Target
		v.Manual = nil
		kind := "scale_done"
		if t.Reason != "" {
			kind = "scale_given_up"
		}
		s.tell(index, c, Event{Kind: kind, Service: t.Service, To: to, Reason: t.Reason})
	}
	return Result{Index: index}
}

func (s *State) pin(index uint64, c Command) Result {
	p := c.Pin
	if p.Service == "" || p.Machine == "" {
		return reject(index, BadEntry, "a pin names a service and a machine")
	}
	for _, id := range slices.Sorted(maps.Keys(s.Ops)) {
		if o := s.Ops[id]; o.Kind == OpDown && o.Machine == p.Machine {
			return reject(index, Conflict, fmt.Sprintf("operation %s removes machine %s", o.ID, p.Machine))
		}
	}
	v := s.service(p.Service)
	if v.Primary == p.Machine {
		return Result{Index: index}
	}
	v.Primary, v.PrimarySince = p.Machine, c.At
	s.tell(index, c, Event{Kind: "pin", Service: p.Service, Machine: p.Machine, Reason: p.Reason})
	return Result{Index: index}
}

func (s *State) admit(index uint64, c Command) Result {
	a := c.Admit
	if a.Machine == "" || a.Boot == "" {
		return reject(index, BadEntry, "an admission names a machine and its boot")
	}
	if s.Admitted[a.Machine] == a.Boot {
		return Result{Index: index}
	}
	s.Admitted[a.Machine] = a.Boot
	s.tell(index, c, Event{Kind: "admit", Service: a.Service, Machine: a.Machine, Reason: "loaded"})
	return Result{Index: index}
}

func (s *State) revoke(index uint64, c Command) Result {
	r := c.Revoke
	if _, ok := s.Admitted[r.Machine]; !ok {
		return reject(index, NoSuch, fmt.Sprintf("machine %q is not admitted", r.Machine))
	}
	delete(s.Admitted, r.Machine)
	s.tell(index, c, Event{Kind: "revoke", Service: r.Service, Machine: r.Machine, Reason: r.Reason})
	return Result{Index: index}
}

func (s *State) service(name string) *Service {
	v := s.Services[name]
	if v == nil {
		v = &Service{}
		s.Services[name] = v
	}
	return v
}

// tell appends an event, stamped with the command's index, time and author.
func (s *State) tell(index uint64, c Command, e Event) {
	e.Index, e.At, e.By = index, c.At, c.By
	s.Events = append(s.Events, e)
	if n := len(s.Events) - MaxEvents; n > 0 {
		s.Events = slices.Delete(s.Events, 0, n)
	}
}

func reject(index uint64, r Rejection, detail string) Result {
	return Result{Index: index, Rejection: r, Detail: detail}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func joined(parts ...string) string {
	parts = slices.DeleteFunc(parts, func(p string) bool { return p == "" })
	return strings.Join(parts, ": ")
}
