package simulate

import (
	"fmt"
	"math"
	"time"

	"flymesh/leader"
	"flymesh/leader/decide"
	"flymesh/leader/history"
	"flymesh/leader/window"
	"flymesh/probes/report"
	"flymesh/raftstore/state"
)

// Outcome is what a policy would have done with a trace, beside what was done.
type Outcome struct {
	Service   string     `json:"service"`
	From      time.Time  `json:"from"`
	To        time.Time  `json:"to"`
	StepMS    int64      `json:"step_ms"` // length of a row
	Rows      int        `json:"rows"`
	Decisions []Decision `json:"decisions"`
	Replayed  Cost       `json:"replayed"`
	Recorded  Cost       `json:"recorded"`
}

// Decision is a verdict that differs from the one before it.
type Decision struct {
	At      time.Time   `json:"at"`
	Verdict string      `json:"verdict"` // hold | up | down
	Code    decide.Code `json:"code"`
	Reason  string      `json:"reason"`
	From    int         `json:"from"` // machines before and after the step
	To      int         `json:"to"`
}

// Cost sums up a day.
type Cost struct {
	Ups            int     `json:"ups"`
	Downs          int     `json:"downs"`
	MachineSeconds float64 `json:"machine_seconds"`
}

// replay is one service on its way through a trace. What must be remembered
// between two rounds is in the state machine that the mesh itself uses.
type replay struct {
	service decide.Service
	step    time.Duration
	ready   time.Duration // from the decision to add a machine until it is ready
	state   *state.State
	fleet   []decide.Machine // those that run, oldest first
	made    int              // machines so far, for their IDs
	samples []window.Sample
	op      string    // the addition that is under way; empty: none
	opEnds  time.Time // when its machine is ready
	out     Outcome
}

const term = 1 // of the one leader that a replay has

// run replays a trace on a policy. A service in shadow mode is replayed as if
// it acted: to see what it would do is what shadow is for.
func run(s decide.Service, t trace, ready time.Duration) (Outcome, error) {
	if s.Mode == decide.Shadow {
		s.Mode = decide.Auto
	}
	first, last := t.rows[0], t.rows[len(t.rows)-1]
	r := &replay{service: s, step: t.step, ready: ready, state: state.New(), out: Outcome{
		Service: s.Name, From: first.At, To: last.At.Add(t.step), StepMS: t.step.Milliseconds(), Rows: len(t.rows),
		Recorded: Cost{Ups: t.ups, Downs: t.downs}, Decisions: []Decision{},
	}}
	if _, err := r.commit(first.At, state.Command{Elect: &state.Elect{Machine: "replay", Epoch: 1}}); err != nil {
		return r.out, err
	}
	for range min(max(first.Expected, s.Baseline), s.Max) {
		r.start(first.At.Add(-time.Hour))
	}
	for _, row := range t.rows {
		r.out.Recorded.MachineSeconds += t.step.Seconds() * float64(row.Expected)
		r.out.Replayed.MachineSeconds += t.step.Seconds() * float64(len(r.fleet))
		if err := r.round(row); err != nil {
			return r.out, fmt.Errorf("replay %s at %s: %w", s.Name, row.At.Format(time.RFC3339), err)
		}
	}
	return r.out, nil
}

// round is what a leader does at the end of one row: end what is over, decide,
// remember.
func (r *replay) round(row history.Row) error {
	now := row.At.Add(r.step)
	if r.op != "" && !now.Before(r.opEnds) {
		if err := r.finish(now, r.op, len(r.fleet)); err != nil {
			return err
		}
		r.op = ""
		r.fleet[len(r.fleet)-1].Readiness = report.Ready
	}
	if _, err := r.commit(now, state.Command{Meter: &state.Meter{Service: r.service.Name, Running: len(r.fleet)}}); err != nil {
		return err
	}
	r.samples = append(r.samples, r.spread(row, now))
	v := decide.Plan(r.input(now)).Verdicts[0]
	if err := r.act(now, v); err != nil {
		return err
	}
	if v.Recovered && len(r.state.Service(r.service.Name).Additions) > 0 {
		if _, err := r.commit(now, state.Command{Settle: &state.Settle{Service: r.service.Name, Additions: true}}); err != nil {
			return err
		}
	}
	return nil
}

// spread is a row as the replayed fleet would have measured it: the same CPU
// time on as many machines as are ready here. What depends on more than the
// number of machines (latency, errors, queue, memory) stays as it was.
func (r *replay) spread(row history.Row, now time.Time) window.Sample {
	missing := row.Expected - row.Heard
	s := window.Sample{At: now, Expected: row.Expected, Heard: row.Heard, P95Count: row.Samples.X, Requests: row.Requests.X * r.step.Seconds()}
	for i := range missing {
		s.Missing = append(s.Missing, fmt.Sprintf("missing-%d", i+1))
	}
	share := 1.0
	if ready := r.serving(); ready > 0 && row.Heard > 0 {
		share = float64(row.Heard) / float64(ready)
	}
	cpu := row.CPU
	cpu.X = min(cpu.X*share, max(cpu.X, 1))
	s.CPU, s.Memory = interval(cpu, 1, missing, row.Heard), interval(row.Memory, 1, missing, row.Heard)
	s.Queue = interval(row.Queue, math.Inf(1), missing, row.Heard)
	s.P95, s.ErrorRate = interval(row.P95, math.Inf(1), missing, row.Heard), interval(row.Errors, 1, missing, row.Heard)
	if few := row.Heard > 0 && missing == 0 && row.Samples.OK; few {
		// Too few requests to tell: nobody was there to be kept waiting.
		if !row.P95.OK {
			s.P95 = window.Interval{}
		}
		if !row.Errors.OK {
			s.ErrorRate = window.Interval{}
		}
	}
	return s
}

// interval bounds a value that missing machines may change.
func interval(v report.Value, ceiling float64, missing, heard int) window.Interval {
	switch {
	case !v.OK || heard == 0:
		return window.Interval{Worst: ceiling}
	case missing == 0:
		return window.Interval{Best: v.X, Worst: v.X, Value: v}
	}
	all := float64(heard + missing)
	sum := v.X * float64(heard)
	return window.Interval{Best: sum / all, Worst: (sum + float64(missing)*max(ceiling, v.X)) / all, Value: v}
}

func (r *replay) serving() (n int) {
	for _, m := range r.fleet {
		if m.Readiness == report.Ready {
			n++
		}
	}
	return n
}

func (r *replay) input(now time.Time) decide.Input {
	name := r.service.Name
	mem := r.state.Service(name)
	f := decide.Facts{Hours: mem.Budget.Until(now).Spent.Hours(), Turned: string(mem.Budget.Turned)}
	f.Turns, f.TurnsUntil = mem.Budget.Turns(now)
	in := decide.Input{
		Now: now, Term: term, Quorum: true, Policy: decide.Policy{ReportEvery: r.step, Services: []decide.Service{r.service}},
		Machines: r.fleet, Services: map[string]decide.ServiceState{name: leader.Remembered(mem)},
		Facts: map[string]decide.Facts{name: f}, History: map[string][]window.Sample{name: r.samples},
	}
	for id, o := range r.state.Ops {
		in.Ops = append(in.Ops, decide.Op{ID: id, Service: name, Kind: string(o.Kind), Machine: o.Machine, Step: string(o.Step)})
	}
	return in
}

// act carries a step out and notes what changed. A removal takes effect at
// once, an addition when its machine is ready.
func (r *replay) act(now time.Time, v decide.Verdict) error {
	d := Decision{At: now, Verdict: v.Verdict, Code: v.Reason.Code, Reason: v.Reason.Text, From: len(r.fleet), To: len(r.fleet)}
	if a := v.Action; a != nil {
		b := &state.Begin{Service: v.Service, Kind: state.OpKind(a.Kind), Machine: a.Machine, From: a.From, To: a.To,
			Code: string(v.Reason.Code), Reason: v.Reason.Text, Rule: true}
		if a.Kind == decide.Up {
			b.Machine = r.start(now)
			r.fleet[len(r.fleet)-1].Readiness = report.Warming
		}
		if a.Trigger != nil {
			b.Trigger = &state.Addition{At: a.Trigger.At, Metric: string(a.Trigger.Metric), Value: a.Trigger.Value}
		}
		res, err := r.commit(now, state.Command{Begin: b})
		if err != nil {
			return err
		}
		if a.Kind == decide.Up {
			r.op, r.opEnds = res.Op, now.Add(r.ready)
			r.out.Replayed.Ups++
		} else {
			for i := range r.fleet {
				if r.fleet[i].ID == a.Machine {
					r.fleet = append(r.fleet[:i:i], r.fleet[i+1:]...)
					break
				}
			}
			r.out.Replayed.Downs++
			if err := r.finish(now, res.Op, len(r.fleet)); err != nil {
				return err
			}
		}
		d.To = len(r.fleet)
	}
	if n := len(r.out.Decisions); n == 0 || v.Action != nil || r.out.Decisions[n-1].Verdict != d.Verdict || r.out.Decisions[n-1].Code != d.Code {
		r.out.Decisions = append(r.out.Decisions, d)
	}
	return nil
}

// start adds a machine that is ready, and returns its ID.
func (r *replay) start(at time.Time) string {
	r.made++
	id := fmt.Sprintf("machine-%d", r.made)
	r.fleet = append(r.fleet, decide.Machine{
		ID: id, Service: r.service.Name, State: "started", HostOK: true, Created: at, Started: at, Heard: true,
		Pinned: r.service.Pinned && r.made == 1, Readiness: report.Ready,
	})
	return id
}

func (r *replay) finish(now time.Time, op string, to int) error {
	_, err := r.commit(now, state.Command{Finish: &state.Finish{Op: op, Outcome: state.Done, To: to, CooldownUntil: now.Add(r.service.Cooldown)}})
	return err
}

// commit is one entry of the log.
func (r *replay) commit(now time.Time, c state.Command) (state.Result, error) {
	c.At, c.Term, c.By = now, term, "replay"
	b, err := c.Encode()
	if err != nil {
		return state.Result{}, err
	}
	res := r.state.Apply(r.state.Index+1, b)
	return res, res.Err()
}
