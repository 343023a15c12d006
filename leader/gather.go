package leader

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"flymesh/leader/decide"
	"flymesh/leader/window"
	"flymesh/raftstore/state"
)

// deploySettle is how long after the newest change of a machine's version
// mixed releases still count as a deploy that is under way. A deploy that died
// half-way must not freeze scaling for ever.
const deploySettle = 5 * time.Minute

// Metadata keys that the leader keeps on machines, for people to see and for a
// leader of a new epoch to rebuild from.
const (
	MetaOp      = "flymesh_op"      // operation that created the machine
	MetaPrimary = "flymesh_primary" // service whose primary it is
	MetaRemoval = "flymesh_removal" // down operation that cordoned it
)

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
	next chan struct{} // closed at the next change
}

func newListings() *listings {
	return &listings{m: map[string]listing{}, next: make(chan struct{})}
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

type changedAt struct {
	instance string
	at       time.Time
}

// list reads every app once. What cannot be read keeps its old machines and
// says why.
func (l *Leader) list(ctx context.Context) {
	apps := map[string]bool{}
	for _, s := range l.Services {
		apps[s.App] = true
	}
	var wg sync.WaitGroup
	for app := range apps {
		wg.Go(func() {
			began := time.Now()
			ms, err := l.Cloud.List(ctx, app)
			if ctx.Err() != nil {
				return
			}
			if old, _ := l.listed.of(app); err != nil && old.err == nil {
				l.log.Warn("list machines failed", "app", app, "error", err)
			}
			l.listed.put(app, listing{machines: ms, began: began, err: err, errAt: time.Now()})
		})
	}
	wg.Wait()
	now := time.Now()
	for app := range apps {
		n, _ := l.listed.of(app)
		for _, m := range n.machines {
			c, seen := l.changed[m.ID]
			if !seen {
				l.changed[m.ID] = changedAt{instance: m.InstanceID} // no change was observed yet
			} else if c.instance != m.InstanceID {
				l.changed[m.ID] = changedAt{m.InstanceID, now}
			}
		}
	}
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

// machines returns the service's machines of the newest listing, sorted by ID.
func (l *Leader) machines(s Service) []Machine {
	var ms []Machine
	n, _ := l.listed.of(s.App)
	for _, m := range n.machines {
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
		in.Ops = append(in.Ops, decide.Op{ID: o.ID, Service: o.Service, Kind: string(o.Kind), Machine: o.Machine, Step: string(o.Step)})
	}
	slices.SortFunc(in.Ops, func(a, b decide.Op) int { return cmp.Compare(a.ID, b.ID) })
	l.Reports.with(func(w *window.Window) {
		for _, s := range l.Services {
			name := s.Policy.Name
			mem := st.Service(name)
			in.Services[name] = remembered(mem)
			in.Facts[name] = l.facts(s, mem, now)
			in.History[name] = w.Series(name)
			for _, m := range l.machines(s) {
				in.Machines = append(in.Machines, joined(m, name, mem, voters, lead, w, now))
			}
		}
	})
	return in
}

func remembered(s state.Service) decide.ServiceState {
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

// facts collects what holds a service back besides its load.
func (l *Leader) facts(s Service, mem state.Service, now time.Time) decide.Facts {
	var f decide.Facts
	switch lst, _ := l.listed.of(s.App); {
	case lst.err != nil && lst.began.IsZero():
		f.APIError = fmt.Sprintf("the Machines API has not answered yet for app %s: %v", s.App, lst.err)
	case lst.err != nil:
		f.APIError = fmt.Sprintf("the Machines API does not answer for app %s (%s old): %v", s.App, now.Sub(lst.began).Round(time.Second), lst.err)
	}
	if mem.BreakerUntil.After(now) {
		f.Breaker = fmt.Sprintf("%d operations failed in a row, the newest with %q; the next try is not before %s",
			mem.Failures, mem.BreakerReason, mem.BreakerUntil.UTC().Format("15:04:05"))
	}
	releases := map[string]bool{}
	var newest time.Time
	for _, m := range l.machines(s) {
		if m.LeaseOwner != "" {
			f.Deploy = fmt.Sprintf("machine %s is leased by %s", m.ID, m.LeaseOwner)
		}
		if m.State == "replacing" || m.State == "updating" {
			f.Deploy = fmt.Sprintf("machine %s is %s", m.ID, m.State)
		}
		if m.Release != "" {
			releases[m.Release] = true
		}
		if c := l.changed[m.ID].at; c.After(newest) {
			newest = c
		}
		if (m.Autostop || m.Autostart) && f.Owner == "" {
			f.Owner = fmt.Sprintf("Fly Proxy may start or stop machine %s (autostop or autostart is on): switch them off, or set owner = \"proxy\"", m.ID)
		}
	}
	if len(releases) > 1 && now.Sub(newest) < deploySettle && f.Deploy == "" {
		f.Deploy = fmt.Sprintf("machines of releases %s run side by side", strings.Join(sortedKeys(releases), ", "))
	}
	if s.Owner == "proxy" {
		f.Owner = "owner = \"proxy\" in mesh.toml: Fly Proxy scales this service"
	}
	return f
}

func sortedKeys[V any](m map[string]V) []string {
	ks := make([]string, 0, len(m))
	for k := range m {
		ks = append(ks, k)
	}
	slices.Sort(ks)
	return ks
}
