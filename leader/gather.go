package leader

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"flymesh/leader/decide"
	"flymesh/leader/window"
	"flymesh/raftstore/state"
)

// Metadata keys that the leader keeps on machines, for people to see and for a
// leader of a new epoch to rebuild from.
const (
	MetaOp      = "flymesh_op"      // operation that created the machine
	MetaPrimary = "flymesh_primary" // service whose primary it is
	MetaRemoval = "flymesh_removal" // down operation that cordons it, and when: see markOf
)

// touchedFor is how long after an operation its machine is asked for by ID.
const touchedFor = time.Minute

// listing is the newest list of one app's machines.
type listing struct {
	machines []Machine
	began    time.Time // when the call that brought the machines was made
	err      error     // of the newest attempt; machines are then older
	errAt    time.Time
}

// listings holds the newest listing of every app. The loop fills it once a
// round; drivers wait for the next one instead of calling the API themselves.
type listings struct {
	mu   sync.Mutex // guards all below
	m    map[string]listing
	next chan struct{}   // closed at the next change
	gone map[string]bool // machines that were asked for by ID and are not there
}

func newListings() *listings {
	return &listings{m: map[string]listing{}, next: make(chan struct{}), gone: map[string]bool{}}
}

func (l *listings) bury(machine string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone[machine] = true
}

func (l *listings) buried(machine string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gone[machine]
}

func (l *listings) of(app string) (listing, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.m[app], l.next
}

func (l *listings) put(app string, n listing) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n.err != nil {
		old := l.m[app]
		n.machines, n.began = old.machines, old.began
	}
	l.m[app] = n
	close(l.next)
	l.next = make(chan struct{})
}

// after waits for a listing of the app that was asked for after now.
func (l *listings) after(ctx context.Context, app string) ([]Machine, error) {
	now := time.Now()
	for {
		n, next := l.of(app)
		switch {
		case n.began.After(now):
			return n.machines, nil
		case n.err != nil && n.errAt.After(now):
			return nil, n.err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-next:
		}
	}
}

// list reads every app once. What cannot be read keeps its old machines and
// says why.
func (l *Leader) list(ctx context.Context) {
	apps := map[string]bool{}
	for _, s := range l.Services {
		apps[s.App] = true
	}
	st := l.Store.State()
	var wg sync.WaitGroup
	for app := range apps {
		wg.Go(func() {
			began := time.Now()
			ms, err := l.Cloud.List(ctx, app)
			if err == nil {
				ms = l.recheck(ctx, app, ms, st)
			}
			if ctx.Err() != nil {
				return
			}
			if old, _ := l.listed.of(app); err != nil && old.err == nil {
				l.log.Warn("list machines failed", "app", app, "error", err)
			}
			if err == nil {
				l.watchDeploys(app, ms)
			}
			l.listed.put(app, listing{machines: ms, began: began, err: err, errAt: time.Now()})
		})
	}
	wg.Wait()
	now := time.Now()
	for _, s := range l.Services {
		if n, _ := l.listed.of(s.App); n.err != nil || n.began.IsZero() {
			continue
		}
		var started []string
		for _, m := range l.machines(s) {
			if m.State == "started" {
				started = append(started, m.ID)
			}
		}
		l.Reports.with(func(w *window.Window) { w.Expect(now, s.Policy.Name, started) })
	}
}

// doubt is a machine of which a listing may say too little.
type doubt struct{ machine, service string }

// recheck asks for machines by ID. The API's listing may be some seconds old,
// and what one leader did the next one's adapter does not remember: without
// this, a machine that was made a moment ago would not count, and one that was
// stopped a moment ago would still pass for one that serves. So the machines of
// operations are asked for, of those that are open and those that ended of
// late; and every machine that is not listed although it was, or was heard of
// within a day, or is a primary: that must not move because a listing is wrong.
func (l *Leader) recheck(ctx context.Context, app string, ms []Machine, st *state.State) []Machine {
	all := l.unlisted(app, ms, st)
	for _, o := range st.Ops {
		all = append(all, doubt{o.Machine, o.Service})
	}
	for _, t := range st.Touched {
		if time.Since(t.At) < touchedFor {
			all = append(all, doubt{t.Machine, t.Service})
		}
	}
	all = slices.DeleteFunc(all, func(d doubt) bool {
		s, ok := l.service(d.service)
		return !ok || s.App != app || d.machine == ""
	})
	slices.SortFunc(all, func(a, b doubt) int { return cmp.Compare(a.machine, b.machine) })
	all = slices.CompactFunc(all, func(a, b doubt) bool { return a.machine == b.machine })
	found, errs := make([]Machine, len(all)), make([]error, len(all))
	var wg sync.WaitGroup
	for n, d := range all {
		wg.Go(func() { found[n], errs[n] = l.Cloud.Get(ctx, app, d.machine) })
	}
	wg.Wait()
	for n, d := range all {
		i := slices.IndexFunc(ms, func(m Machine) bool { return m.ID == d.machine })
		m, err := found[n], errs[n]
		switch {
		case err == nil && i >= 0:
			m.LeaseOwner = ms[i].LeaseOwner // only listings tell it
			ms[i] = m
		case err == nil:
			ms = append(ms, m)
		case FaultOf(err) == Gone && i >= 0:
			ms = slices.Delete(ms, i, i+1)
		case FaultOf(err) == Gone:
			l.listed.bury(d.machine)
		case i < 0:
			// It may be there and nobody can say: better one too many.
			s, _ := l.service(d.service)
			ms = append(ms, Machine{ID: d.machine, App: app, Group: s.Group, State: "unknown", Created: time.Now()})
		}
	}
	return ms
}

// unlisted returns the machines of an app that a new listing lacks, although the
// one before had them, the mesh remembers them, or they are primaries.
func (l *Leader) unlisted(app string, ms []Machine, st *state.State) (all []doubt) {
	there := map[string]bool{}
	for _, m := range ms {
		there[m.ID] = true
	}
	add := func(id, service string) {
		if !there[id] && !l.listed.buried(id) {
			there[id] = true
			all = append(all, doubt{id, service})
		}
	}
	for _, s := range l.Services {
		if s.App != app {
			continue
		}
		if p := st.Service(s.Policy.Name).Primary; p != "" {
			add(p, s.Policy.Name)
		}
		for _, m := range l.machines(s) {
			if m.State != "destroyed" {
				add(m.ID, s.Policy.Name)
			}
		}
		for _, id := range l.Reports.heardToday(s.Policy.Name) {
			add(id, s.Policy.Name)
		}
	}
	l.Reports.with(func(w *window.Window) {
		for _, id := range w.Machines() {
			r, _, ok := w.Latest(time.Now(), id)
			if s, known := l.service(r.Service); ok && known && s.App == app {
				add(id, r.Service)
			}
		}
	})
	return all
}

// machines returns the service's machines of the newest listing, sorted by ID.
func (l *Leader) machines(s Service) []Machine {
	n, _ := l.listed.of(s.App)
	return members(s, n.machines)
}

// members returns the machines of an app that are the service's, sorted by ID.
func members(s Service, all []Machine) []Machine {
	var ms []Machine
	for _, m := range all {
		if m.Group == s.Group && !m.Special {
			ms = append(ms, m)
		}
	}
	slices.SortFunc(ms, func(a, b Machine) int { return cmp.Compare(a.ID, b.ID) })
	return ms
}

// gather joins the API's word, the mesh's reports and the replicated state
// into what the policy depends on. It does no I/O but reading the clock.
func (l *Leader) gather(t Term) decide.Input {
	now := time.Now()
	st := l.Store.State()
	voters, lead := l.Store.Roles()
	in := decide.Input{
		Now: now, Term: t.Number, Quorum: t.Context.Err() == nil, Policy: l.Policy,
		Services: map[string]decide.ServiceState{}, Facts: map[string]decide.Facts{},
		History: map[string][]window.Sample{},
	}
	for _, o := range st.Ops {
		in.Ops = append(in.Ops, decide.Op{ID: o.ID, Service: o.Service, Kind: string(o.Kind), Machine: o.Machine, Step: string(o.Step), Detail: cmp.Or(o.Waits, o.Detail)})
	}
	slices.SortFunc(in.Ops, func(a, b decide.Op) int { return cmp.Compare(a.ID, b.ID) })
	l.Reports.with(func(w *window.Window) {
		for _, s := range l.Services {
			name := s.Policy.Name
			mem := st.Service(name)
			in.Services[name] = Remembered(mem)
			in.Facts[name] = l.facts(s, mem, now)
			in.History[name] = w.Series(name)
			for _, m := range l.machines(s) {
				d := joined(m, name, mem, voters, lead, w, now)
				d.Locked = len(st.HeldBy(m.ID)) > 0
				if a, ok := st.Avoid[m.ID]; ok && a.Until.After(now) {
					d.Avoid = fmt.Sprintf("not chosen before %s: %s", a.Until.UTC().Format("15:04:05"), a.Reason)
				}
				in.Machines = append(in.Machines, d)
			}
		}
	})
	return in
}

// Remembered is what the policy needs of what the replicated state keeps.
func Remembered(s state.Service) decide.ServiceState {
	d := decide.ServiceState{
		Mode: decide.Mode(s.Mode), PausedUntil: s.PausedUntil, PauseReason: s.PauseReason,
		CooldownUntil: s.CooldownUntil,
	}
	if s.Manual != nil {
		d.Manual = &decide.Manual{Target: s.Manual.Target, Reason: s.Manual.Reason, By: s.Manual.By}
	}
	for _, a := range s.Additions {
		d.Additions = append(d.Additions, decide.Addition{At: a.At, Metric: decide.Metric(a.Metric), Value: a.Value})
	}
	return d
}

func joined(m Machine, service string, mem state.Service, voters []string, lead string, w *window.Window, now time.Time) decide.Machine {
	d := decide.Machine{
		ID: m.ID, Service: service, State: m.State, HostOK: m.HostOK, Created: m.Created, Started: m.Started,
		Cordoned: m.Cordoned, Pinned: mem.Primary == m.ID, Leader: lead == m.ID, Voter: slices.Contains(voters, m.ID),
	}
	if r, age, ok := w.Latest(now, m.ID); ok {
		d.Heard, d.ReportAge = w.Fresh(age), age
		d.Readiness, d.Busy, d.InFlight = r.Readiness, r.Busy, r.InFlight
	}
	return d
}

func sortedKeys[V any](m map[string]V) []string {
	ks := make([]string, 0, len(m))
	for k := range m {
		ks = append(ks, k)
	}
	slices.Sort(ks)
	return ks
}
