package flytest

import (
	"cmp"
	"context"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	fly "github.com/superfly/fly-go"
)

// fleet is every machine of every app and what happens to them over time. It
// owns the goroutines that carry machines from state to state.
type fleet struct {
	launcher Launcher
	timing   Timing
	ids      *source
	env      func(app string, v view) map[string]string
	self     func(*machine) http.Handler // its /.fly/api
	log      *slog.Logger

	ctx  context.Context // ends at close
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu      sync.Mutex
	apps    map[string]*app
	changed chan struct{} // closed and replaced at each change of any machine or lease
}

// app is the machines of one app by ID, destroyed ones included.
type app struct {
	name     string
	created  time.Time
	machines map[string]*machine
	usage    usage
}

func newFleet(l Launcher, t Timing, ids *source, log *slog.Logger) *fleet {
	f := &fleet{launcher: l, timing: t, ids: ids, log: log, apps: make(map[string]*app), changed: make(chan struct{})}
	f.ctx, f.stop = context.WithCancel(context.Background())
	return f
}

// close ends every sequence and every machine.
func (f *fleet) close() error {
	f.stop()
	f.mu.Lock()
	for _, a := range f.apps {
		for _, m := range a.machines {
			if inst := m.inst; inst != nil {
				f.wg.Go(inst.Kill)
			}
		}
	}
	f.mu.Unlock()
	f.wg.Wait() // a boot that was under way kills its own instance
	return f.launcher.Close()
}

// spawn runs fn in a goroutine that close waits for, unless close has begun.
func (f *fleet) spawn(fn func()) {
	if f.ctx.Err() == nil {
		f.wg.Go(fn)
	}
}

// sleep returns false if the fleet closed meanwhile.
func (f *fleet) sleep(d time.Duration) bool {
	if d <= 0 {
		return f.ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-f.ctx.Done():
		return false
	}
}

// addApp makes an app exist; with mu held.
func (f *fleet) addApp(name string) *app {
	a := f.apps[name]
	if a == nil {
		a = &app{name: name, created: time.Now(), machines: make(map[string]*machine)}
		f.apps[name] = a
	}
	return a
}

// find returns a machine that the API still knows; with mu held.
func (f *fleet) find(appName, id string) (*machine, error) {
	a := f.apps[appName]
	if a == nil {
		return nil, notFound("app not found")
	}
	m := a.machines[id]
	if m == nil || f.forgotten(m) {
		return nil, notFound("machine not found")
	}
	return m, nil
}

// byID returns a machine of any app; with mu held.
func (f *fleet) byID(id string) *machine {
	for _, a := range f.apps {
		if m := a.machines[id]; m != nil {
			return m
		}
	}
	return nil
}

func (f *fleet) forgotten(m *machine) bool {
	return m.state == fly.MachineStateDestroyed && time.Since(m.since) >= f.timing.Forget
}

// sorted returns the machines of an app, oldest first; with mu held.
func (a *app) sorted() []*machine {
	ms := make([]*machine, 0, len(a.machines))
	for _, m := range a.machines {
		ms = append(ms, m)
	}
	slices.SortFunc(ms, func(x, y *machine) int {
		return cmp.Or(x.created.Compare(y.created), cmp.Compare(x.id, y.id))
	})
	return ms
}

// touch tells waiters that something changed; with mu held.
func (f *fleet) touch() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// enter puts a machine into a state with the event that says so; with mu held.
func (f *fleet) enter(m *machine, state, kind, source string, exit *fly.MachineExitEvent) {
	now := time.Now()
	a := f.apps[m.app]
	a.usage.leave(m, now)
	if m.state != state {
		m.state, m.since = state, now
	}
	a.usage.peak(a, m)
	e := event{ID: f.ids.ulid(now), Type: kind, Status: state, Source: source, Timestamp: now.UnixMilli()}
	if exit != nil {
		e.Request = &fly.MachineRequest{ExitEvent: exit, RestartCount: m.restarts}
	}
	m.events = append([]event{e}, m.events...)
	if len(m.events) > 50 {
		m.events = m.events[:50]
	}
	f.changedMachine(m)
	f.log.Debug("machine event", "app", m.app, "machine", m.id, "event", kind, "state", state)
}

// changedMachine records a change for lagging listings and wakes waiters; with mu held.
func (f *fleet) changedMachine(m *machine) {
	now := time.Now()
	m.updated = now
	if lag := f.timing.ListLag; lag > 0 {
		m.past = append(m.past, snapshot{now, m.view})
		for len(m.past) > 1 && now.Sub(m.past[1].at) > lag {
			m.past = m.past[1:]
		}
	}
	f.touch()
}

// await blocks until ok, called with mu held at each change and at the time
// that it returns, says true or fails. It returns with mu not held.
func (f *fleet) await(ctx context.Context, ok func() (done bool, again time.Time, err error)) error {
	for {
		f.mu.Lock()
		done, again, err := ok()
		changed := f.changed
		f.mu.Unlock()
		if done || err != nil {
			return err
		}
		if err := f.next(ctx, changed, again); err != nil {
			return err
		}
	}
}

// next blocks until the channel is closed or the time, if there is one, has come.
func (f *fleet) next(ctx context.Context, changed <-chan struct{}, at time.Time) error {
	var timer <-chan time.Time
	if !at.IsZero() {
		t := time.NewTimer(max(0, time.Until(at)))
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-changed:
	case <-timer:
	case <-ctx.Done():
		return ctx.Err()
	case <-f.ctx.Done():
		return context.Canceled
	}
	return nil
}
