package decide

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"flymesh/probes/report"
)

// How a machine counts, in Counted.As.
const (
	asReady    = "ready"
	asStarting = "starting"
	asUnknown  = "unknown"
	asStopping = "stopping"
	asDraining = "draining"
	asStopped  = "stopped" // does not count
)

// roster is all machines sorted by service and ID, and the one array that the
// Counted lists of all verdicts share, so that a bigger fleet makes bigger
// allocations, not more.
type roster struct {
	machines []Machine
	order    []int32 // indices into machines
	counted  []Counted
}

func newRoster(in *Input) *roster {
	r := &roster{
		machines: in.Machines,
		order:    make([]int32, len(in.Machines)),
		counted:  make([]Counted, 0, len(in.Machines)+len(in.Ops)),
	}
	for i := range r.order {
		r.order[i] = int32(i)
	}
	slices.SortStableFunc(r.order, func(i, j int32) int { return before(&in.Machines[i], &in.Machines[j]) })
	return r
}

// before orders machines; two that are equal here count alike.
func before(a, b *Machine) int {
	return cmp.Or(
		cmp.Compare(a.Service, b.Service), cmp.Compare(a.ID, b.ID), cmp.Compare(a.State, b.State),
		a.Started.Compare(b.Started), a.Created.Compare(b.Created), cmp.Compare(a.Readiness, b.Readiness),
	)
}

// of returns the indices of one service's machines, sorted by ID.
func (r *roster) of(service string) []int32 {
	lo, _ := slices.BinarySearchFunc(r.order, service, func(i int32, s string) int {
		return cmp.Compare(r.machines[i].Service, s)
	})
	hi := lo
	for hi < len(r.order) && r.machines[r.order[hi]].Service == service {
		hi++
	}
	return r.order[lo:hi]
}

// fleet is one service's machines, counted.
type fleet struct {
	machines []Machine // all services'
	mine     []int32
	list     []Counted // the machines of mine in order, then operations without a machine

	counted  int // against the cap
	staying  int // of these, not on their way out
	unknown  int // started or in doubt, and not heard
	settling int // started but not heard yet, or in the middle of a change
	serving  int // ready, in traffic, on a host that answers
	pinned   int // the primary, wherever it stands
}

// count counts one service's machines. All but those that rest count, because
// a slow or silent platform must not make room under the cap; so does an open
// up operation that has no machine yet.
func (r *roster) count(in *Input, s *Service) fleet {
	f := fleet{machines: r.machines, mine: r.of(s.Name)}
	start := len(r.counted)
	for _, i := range f.mine {
		m := &r.machines[i]
		c := classify(m, in.Now, s.ReadyGrace, openOp(in.Ops, m))
		r.counted = append(r.counted, c)
		f.add(m, c)
	}
	for i := range in.Ops {
		if o := &in.Ops[i]; o.Service == s.Name && o.Kind == Up && !f.has(o.Machine) {
			r.counted = append(r.counted, Counted{o.Machine, asStarting, "operation " + o.ID + " adds it (step " + o.Step + ")"})
			f.counted++
			f.staying++
		}
	}
	f.list = slices.Clip(r.counted[start:])
	return f
}

func (f *fleet) add(m *Machine, c Counted) {
	if m.Pinned {
		f.pinned++
	}
	if c.As == asStopped {
		return
	}
	f.counted++
	switch c.As {
	case asStopping, asDraining:
		return
	case asUnknown:
		f.unknown++
	case asStarting:
		if !m.Heard && m.State != "created" {
			f.settling++
		}
	case asReady:
		// One whose host the platform cannot reach may be gone the next moment:
		// nothing is removed in reliance on it.
		if !m.Cordoned && m.HostOK {
			f.serving++
		}
	}
	f.staying++
}

// has says whether the machine is one of the service's listed ones.
func (f *fleet) has(id string) bool {
	if id == "" {
		return false
	}
	_, ok := slices.BinarySearchFunc(f.mine, id, func(i int32, id string) int {
		return cmp.Compare(f.machines[i].ID, id)
	})
	return ok
}

// named lists the machines that count as one of the kinds.
func (f *fleet) named(as ...string) string {
	var ids []string
	for _, c := range f.list {
		if slices.Contains(as, c.As) && c.Machine != "" {
			ids = append(ids, c.Machine)
		}
	}
	return strings.Join(ids, ", ")
}

// openOp returns the open operation on a machine, if any.
func openOp(ops []Op, m *Machine) *Op {
	for i := range ops {
		if ops[i].Machine == m.ID && ops[i].Service == m.Service {
			return &ops[i]
		}
	}
	return nil
}

// classify says how one machine counts and why. The texts are fixed where
// nothing is wrong, so that counting a large fleet makes no strings.
func classify(m *Machine, now time.Time, grace time.Duration, op *Op) Counted {
	c := Counted{Machine: m.ID}
	set := func(as, why string) Counted { c.As, c.Why = as, why; return c }
	if Rests(m.State, m.Created, now) {
		switch {
		case op != nil && op.Kind == Up:
			return set(asStarting, "operation "+op.ID+" starts it")
		case m.State == "failed" && m.Heard:
			return set(asUnknown, "the API calls it failed, and yet the mesh hears it")
		case m.Avoid != "":
			return set(asStopped, "the API calls it "+m.State+"; "+m.Avoid)
		case m.State == "created":
			return set(asStopped, "created "+brief(now.Sub(m.Created))+" ago and never started")
		}
		return set(asStopped, "the API calls it "+m.State)
	}
	switch m.State {
	case "stopping", "suspending":
		return set(asStopping, "counts until it has stopped")
	case "created", "creating", "starting":
		return set(asStarting, "the API calls it "+m.State)
	case "restarting", "updating", "replacing":
		return set(asStarting, "the API is changing it: "+m.State)
	case "started":
	default:
		return set(asUnknown, "the API calls it \""+m.State+"\", which says too little")
	}
	switch since := now.Sub(m.Started); {
	case m.Heard && (m.Readiness == report.Draining || op != nil && op.Kind == Down):
		return set(asDraining, "it finishes what it has")
	case m.Heard && m.Readiness == report.Ready && m.Cordoned:
		return set(asReady, "ready, but cordoned")
	case m.Heard && m.Readiness == report.Ready:
		return set(asReady, "ready")
	case m.Heard && m.Readiness == report.Loaded:
		return set(asStarting, "heard, waits for admission")
	case m.Heard && m.Readiness == report.Warming:
		return set(asStarting, "heard, warming")
	case m.Heard:
		return set(asStarting, "heard, not ready")
	case m.HostOK && !m.Started.IsZero() && since <= grace && since >= -grace:
		return set(asStarting, "started "+brief(since)+" ago, not heard yet")
	case !m.HostOK:
		return set(asUnknown, "started, but the API cannot reach its host and the mesh does not hear it")
	case m.Started.IsZero():
		return set(asUnknown, "started, and the mesh does not hear it")
	}
	return set(asUnknown, "started "+brief(now.Sub(m.Started))+" ago, and the mesh does not hear it")
}

// createdRests is how long a machine may be "created" before nobody can be
// starting it any more: the platform pulls its image in that time.
const createdRests = 10 * time.Minute

// Rests says whether a machine in this state does not run and will not unless
// somebody starts it, so that it does not count against the cap.
//
// A failed machine is one of these: the platform has given it up, and only a
// start or an update takes it on again. It must not block removals for as long
// as nobody tidies it up, and it costs nothing. Nor does it serve: it is never
// picked to be started, since it says nothing of why it failed.
func Rests(state string, created, now time.Time) bool {
	switch state {
	case "stopped", "suspended", "destroying", "destroyed", "failed", "launch_failed":
		return true
	case "created":
		return !created.IsZero() && now.Sub(created) > createdRests
	}
	return false
}
