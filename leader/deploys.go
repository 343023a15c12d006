package leader

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

const (
	// deploySettle is how long after the newest change of a machine's version
	// mixed releases still count as a deploy that is under way. A deploy that
	// died half-way must not freeze scaling for ever.
	deploySettle = 5 * time.Minute
	// metFor is how long an answer that only a deploy gives (somebody else's
	// lease, a machine that is being replaced) freezes its app. A deploy renews
	// its leases every few seconds, so there is news within that time.
	metFor = time.Minute
	// ourNames begins the name of every machine that the mesh creates. Metadata
	// is no such sign: a blue-green deploy copies it to its own machines.
	ourNames = "flymesh-"
)

// deploys is what one term knows of deploys. While one is under way its
// service is frozen: nothing is decided, open operations wait where they are,
// and what becomes of their machines is nobody's failure.
type deploys struct {
	mu       sync.Mutex                   // guards all below
	frozen   map[string]string            // by service: what the newest listing shows
	met      map[string]met               // by app: what a call was answered
	versions map[string]map[string]string // by app and machine: instance ID in the newest listing
	mixed    map[string]mixture           // by service
}

// met is an answer that only a deploy gives.
type met struct {
	text string
	at   time.Time
}

// mixture is a set of releases side by side, and when something last changed
// in it. A leader that finds one cannot know how old it is and lets it settle.
type mixture struct {
	releases string
	changed  time.Time
}

func newDeploys() *deploys {
	return &deploys{
		frozen: map[string]string{}, met: map[string]met{},
		versions: map[string]map[string]string{}, mixed: map[string]mixture{},
	}
}

// of says what deploy the service is in; empty: none.
func (d *deploys) of(s Service) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if why := d.frozen[s.Policy.Name]; why != "" {
		return why
	}
	if m, ok := d.met[s.App]; ok && time.Since(m.at) < metFor {
		return m.text
	}
	return ""
}

// meet takes in the error of a call: what only a deploy answers freezes the app.
func (d *deploys) meet(s Service, machine string, err error) {
	text := ""
	switch faultOf(err) {
	case Leased:
		text = fmt.Sprintf("machine %s is held by somebody else: %v", machine, err)
	case Replacing:
		text = fmt.Sprintf("machine %s is being replaced: %v", machine, err)
	default:
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.met[s.App] = met{text, time.Now()}
}

// watchDeploys looks at a new listing for deploys: leases of others, machines
// that are being changed, and releases side by side. It comes before anybody
// else sees the listing, so that nobody acts on what a deploy is in the middle of.
func (l *Leader) watchDeploys(app string, ms []Machine) {
	d := l.deploys
	d.mu.Lock()
	defer d.mu.Unlock()
	changed := d.update(app, ms)
	for _, s := range l.Services {
		if s.App == app {
			d.frozen[s.Policy.Name] = d.look(s.Policy.Name, members(s, ms), changed, time.Now())
		}
	}
}

// update says whether a machine of the app that the mesh did not make is new,
// or has another version than in the listing before.
func (d *deploys) update(app string, ms []Machine) (changed bool) {
	old, again := d.versions[app]
	next := make(map[string]string, len(ms))
	for _, m := range ms {
		next[m.ID] = m.InstanceID
		was, known := old[m.ID]
		if again && (known && was != m.InstanceID || !known && !strings.HasPrefix(m.Name, ourNames)) {
			changed = true
		}
	}
	d.versions[app] = next
	return changed
}

// look says what deploy the machines of a service show; with mu held.
func (d *deploys) look(service string, ms []Machine, changed bool, now time.Time) string {
	releases := map[string]bool{}
	for _, m := range ms {
		switch {
		case m.LeaseOwner != "":
			return fmt.Sprintf("machine %s is leased by %s", m.ID, m.LeaseOwner)
		case m.State == "replacing" || m.State == "updating":
			return fmt.Sprintf("machine %s is %s", m.ID, m.State)
		case m.Release != "" && m.State != "destroying" && m.State != "destroyed":
			releases[m.Release] = true
		}
	}
	if len(releases) < 2 {
		delete(d.mixed, service)
		return ""
	}
	names := strings.Join(sortedKeys(releases), ", ")
	mix, ok := d.mixed[service]
	if !ok || mix.releases != names || changed {
		mix = mixture{names, now}
		d.mixed[service] = mix
	}
	if now.Sub(mix.changed) < deploySettle {
		return fmt.Sprintf("machines of releases %s run side by side; if nothing changes it goes on at %s",
			names, mix.changed.Add(deploySettle).UTC().Format("15:04:05"))
	}
	return ""
}
