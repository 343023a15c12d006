package flyapi

import (
	"sync"
	"time"

	"flymesh/leader"
)

const (
	// createdKept is how long a machine that this client created is looked for
	// by ID when a listing lacks it.
	createdKept = 2 * time.Minute
	// goneGrace is how long after its creation a machine that the API does not
	// find, or says it never saw, is still told as created.
	goneGrace = 15 * time.Second
	// patchKept is how long what this client has set is laid over what a read
	// says.
	patchKept = 10 * time.Second
)

// overlay is what this client has done of late. The API's listing is told by
// gossip between its hosts and may be some seconds behind; a leader that
// counts machines must not see less than it has made. So for a short while:
//
//   - a machine that it created and a listing lacks is asked for by ID, and
//     told as created until the API has had time to know of it;
//   - a machine that it started and that is told as stopped is "starting";
//   - a machine that it stopped and that is told as started is "stopping";
//   - its cordon and its metadata are as it set them.
//
// A read may so be wrong for up to patchKept when somebody else undoes in that
// time what this client did. The arbiter reads past the overlay.
type overlay struct {
	mu      sync.Mutex // guards all below
	created map[overlayKey]creation
	patches map[overlayKey]patch
}

type overlayKey struct{ app, id string }

type creation struct {
	machine leader.Machine
	at      time.Time
}

// patch is what was set on one machine; zero times mark what was not set.
type patch struct {
	stateAt  time.Time
	state    string // starting | stopping
	cordonAt time.Time
	cordoned bool
	meta     map[string]metaPatch
}

type metaPatch struct {
	at    time.Time
	value string // empty: removed
}

// create notes a machine that was created.
func (o *overlay) create(m leader.Machine) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.created == nil {
		o.created = map[overlayKey]creation{}
	}
	o.created[overlayKey{m.App, m.ID}] = creation{machine: m, at: time.Now()}
}

// set notes what was done to a machine.
func (o *overlay) set(app, id string, f func(p *patch, now time.Time)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.patches == nil {
		o.patches = map[overlayKey]patch{}
	}
	now := time.Now()
	for k, p := range o.patches {
		if p.stale(now) {
			delete(o.patches, k)
		}
	}
	p := o.patches[overlayKey{app, id}]
	f(&p, now)
	o.patches[overlayKey{app, id}] = p
}

func (o *overlay) setState(app, id, state string) {
	o.set(app, id, func(p *patch, now time.Time) { p.state, p.stateAt = state, now })
}

func (o *overlay) setCordon(app, id string, cordoned bool) {
	o.set(app, id, func(p *patch, now time.Time) { p.cordoned, p.cordonAt = cordoned, now })
}

func (o *overlay) setMeta(app, id, key, value string) {
	o.set(app, id, func(p *patch, now time.Time) {
		meta := map[string]metaPatch{key: {at: now, value: value}}
		for k, v := range p.meta {
			if _, ok := meta[k]; !ok && fresh(v.at, now) {
				meta[k] = v
			}
		}
		p.meta = meta
	})
}

// missing returns the machines of the app that were created of late and are
// not among those listed.
func (o *overlay) missing(app string, listed map[string]bool) []creation {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []creation
	for k, c := range o.created {
		switch {
		case time.Since(c.at) > createdKept:
			delete(o.created, k)
		case k.app == app && !listed[k.id]:
			out = append(out, c)
		}
	}
	return out
}

// forget drops a machine that is gone.
func (o *overlay) forget(app, id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.created, overlayKey{app, id})
	delete(o.patches, overlayKey{app, id})
}

// justCreated returns the machine if the API may not know of it yet.
func (o *overlay) justCreated(app, id string) (leader.Machine, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	c, ok := o.created[overlayKey{app, id}]
	return c.machine, ok && time.Since(c.at) <= goneGrace
}

// apply lays what was set over a machine that was read.
func (o *overlay) apply(m leader.Machine) leader.Machine {
	o.mu.Lock()
	p, ok := o.patches[overlayKey{m.App, m.ID}]
	o.mu.Unlock()
	if !ok {
		return m
	}
	now := time.Now()
	if fresh(p.stateAt, now) {
		switch {
		case p.state == "starting" && (m.State == "stopped" || m.State == "suspended" || m.State == "created"):
			m.State = p.state
		case p.state == "stopping" && (m.State == "started" || m.State == "starting"):
			m.State = p.state
		}
	}
	if fresh(p.cordonAt, now) {
		m.Cordoned = p.cordoned
	}
	for k, v := range p.meta {
		switch {
		case !fresh(v.at, now):
		case v.value == "":
			delete(m.Metadata, k)
		default:
			if m.Metadata == nil {
				m.Metadata = map[string]string{}
			}
			m.Metadata[k] = v.value
		}
	}
	return m
}

// stale reports whether nothing of the patch is fresh.
func (p patch) stale(now time.Time) bool {
	for _, v := range p.meta {
		if fresh(v.at, now) {
			return false
		}
	}
	return !fresh(p.stateAt, now) && !fresh(p.cordonAt, now)
}

func fresh(at, now time.Time) bool { return !at.IsZero() && now.Sub(at) <= patchKept }
