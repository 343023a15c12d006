package leader_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"flymesh/leader/decide"
	"flymesh/leader/flyapi/flytest"
	"flymesh/raftstore/state"
)

// oracle holds a random run against what must never be true. It looks at the
// world itself (the emulator, the agents), never at what the leader believes.
// What the leader cannot know yet, it is given time to learn: known.
type oracle struct {
	*stand
	forget bool // the API does not show a client its own writes

	wg   sync.WaitGroup
	stop chan struct{}

	om       sync.Mutex // guards all below
	over     bool       // no new trouble
	terms    []term
	deploysN int       // deploys under way
	deployed time.Time // when the newest ended
	foreign  time.Time // when somebody else last started a machine
	broken   []string
	pending  []func()
	notes    []string // what was done to the mesh
}

// known is after how long a leader must know of a change: a report interval
// and its tolerance, a listing and its lag.
const known = 35 * time.Second

// term is one leadership.
type term struct {
	voter    string
	from, to time.Time // zero: goes on
}

func (o *oracle) breaks(format string, args ...any) {
	o.om.Lock()
	defer o.om.Unlock()
	o.broken = append(o.broken, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

func (o *oracle) note(format string, args ...any) {
	o.om.Lock()
	defer o.om.Unlock()
	o.notes = append(o.notes, time.Now().Format("15:04:05.000 ")+"TROUBLE "+fmt.Sprintf(format, args...))
}

func (o *oracle) elected(id string) {
	o.om.Lock()
	defer o.om.Unlock()
	if n := len(o.terms); n > 0 {
		o.terms[n-1].to = time.Now()
	}
	o.terms = append(o.terms, term{voter: id, from: time.Now()})
}

// started notes that somebody else starts a machine.
func (o *oracle) started() {
	o.om.Lock()
	defer o.om.Unlock()
	o.foreign = time.Now()
}

// changed notes that what a machine says of itself has changed.
func (o *oracle) changed(id string) { o.agentOf(id, func(a *machineAgent) { a.since = time.Now() }) }

// later runs f after d, or when quiet begins.
func (o *oracle) later(d time.Duration, f func()) {
	var once sync.Once
	g := func() { once.Do(f) }
	o.om.Lock()
	o.pending = append(o.pending, g)
	o.om.Unlock()
	o.wg.Go(func() {
		select {
		case <-time.After(d):
			g()
		case <-o.stop:
		}
	})
}

// deploying runs a deploy, one at a time.
func (o *oracle) deploying(d flytest.Deploy, sum *tally) {
	o.om.Lock()
	defer o.om.Unlock()
	if o.deploysN > 0 || o.over {
		return
	}
	o.deploysN++
	sum.deploys++
	o.wg.Go(func() { o.deployBy(d) })
}

// deployBy runs a deploy that was counted, to its end.
func (o *oracle) deployBy(d flytest.Deploy) {
	<-o.deploy(d)
	o.om.Lock()
	defer o.om.Unlock()
	o.deploysN--
	o.deployed = time.Now()
}

// quiet carries out what was put off and waits for deploys to end.
func (o *oracle) quiet() {
	o.om.Lock()
	o.over = true
	todo := o.pending
	o.om.Unlock()
	for _, f := range todo {
		f()
	}
	o.await("the deploy to end", time.Hour, func() bool {
		o.om.Lock()
		defer o.om.Unlock()
		return o.deploysN == 0
	})
}

// cordoned returns the machines that a deploy made cordoned, or cordoned last,
// and left so.
func (o *oracle) cordoned() []string {
	by := map[string]string{}
	for _, r := range o.api.Requests() {
		switch {
		case !r.Committed:
		case r.Action == "cordon", r.Action == "create": // a blue-green deploy makes its machines cordoned
			by[r.Machine] = r.By
		case r.Action == "uncordon":
			delete(by, r.Machine)
		}
	}
	var ids []string
	for _, m := range o.machines() {
		if by[m.ID] == "flyctl" && m.Cordoned {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

// excused says whether others may just have made machines.
func (o *oracle) excused() bool {
	for _, r := range slices.Backward(o.api.Requests()) {
		if time.Since(r.At) > known {
			break
		}
		if r.By == "fly-proxy" && r.Action == "start" {
			return true
		}
	}
	o.om.Lock()
	defer o.om.Unlock()
	return o.deploysN > 0 || time.Since(o.deployed) < known || time.Since(o.foreign) < known
}

// addedOfLate says whether the mesh itself has created or started one, so that
// it may be what is too many.
func (o *oracle) addedOfLate() bool {
	for _, r := range slices.Backward(o.api.Requests()) {
		if time.Since(r.At) > 3*time.Minute {
			return false
		}
		if (r.Action == "create" || r.Action == "start") && strings.HasPrefix(r.UserAgent, "flymesh") && (r.Committed || r.DurationMS < 0) {
			return true
		}
	}
	return false
}

// watch begins to look.
func (o *oracle) watch() {
	o.stop = make(chan struct{})
	limit := o.policy.Services[0].Max
	o.raft.hook(o.beforeCommit, func(state.Command) {})
	o.wg.Go(func() {
		t := time.NewTicker(time.Second)
		defer t.Stop()
		was := 0
		for {
			select {
			case <-o.stop:
				return
			case <-t.C:
			}
			n := 0
			for _, m := range o.machines() {
				if !decide.Rests(m.State, time.Time{}, time.Now()) {
					n++
				}
			}
			if n > limit && n > was && !o.excused() && o.addedOfLate() {
				o.breaks("%d machines, the cap is %d", n, limit)
			}
			was = n
		}
	})
}

// beforeCommit holds that no rule removes a machine on missing data.
func (o *oracle) beforeCommit(c state.Command) {
	b := c.Begin
	if b == nil || b.Kind != state.OpDown || !b.Rule {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, m := range o.machines() {
		if m.State != "started" {
			continue
		}
		if a := o.agents[m.ID]; a != nil && a.mute && time.Since(a.since) > known {
			o.breaks("a rule removes %s while %s is not heard", b.Machine, m.ID)
		}
	}
}

// through sees every call of a voter just before it is sent.
func (o *oracle) through(next http.RoundTripper) http.RoundTripper {
	return roundTrip(func(r *http.Request) (*http.Response, error) {
		if o.forget {
			r = r.Clone(r.Context())
			r.Header.Del("Cookie")
		}
		if id, ok := stopped(r); ok {
			o.mayStop(id)
		}
		return next.RoundTrip(r)
	})
}

// stopped returns the machine that a request stops or suspends.
func stopped(r *http.Request) (string, bool) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if n := len(parts); r.Method == http.MethodPost && n > 1 && (parts[n-1] == "stop" || parts[n-1] == "suspend") {
		return parts[n-2], true
	}
	return "", false
}

// mayStop holds that the machine is not the primary, not busy, and not the
// last that is ready.
func (o *oracle) mayStop(id string) {
	if o.raft.state().Service("n8n").Primary == id {
		o.breaks("the primary %s is stopped", id)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	a := o.agents[id]
	if a == nil {
		return
	}
	if a.busy && time.Since(a.since) > known {
		o.breaks("%s is stopped although it is busy", id)
	}
	if a.notReady || time.Since(a.since) < known {
		return // it never came up, or nobody can know yet that it did
	}
	for other, b := range o.agents {
		if other != id && (!b.notReady && !b.draining && !b.frozen || time.Since(b.since) < known) {
			return
		}
	}
	if time.Since(o.lost) < known {
		return
	}
	o.breaks("%s, the last ready machine, is stopped", id)
}

// settled holds the end of a run: the primary runs, nothing is left cordoned.
func (o *oracle) settled() {
	p, found := o.mem().Primary, false
	for _, m := range o.machines() {
		if m.State == "started" {
			found = found || m.ID == p
			if m.Cordoned {
				o.breaks("%s (%s) runs in the end and is cordoned", m.ID, m.Name)
			}
		}
	}
	if !found {
		o.breaks("the primary %s does not run in the end", p)
	}
}

// end stops watching and reads the audit log.
func (o *oracle) end(sum *tally) {
	close(o.stop)
	o.wg.Wait()
	o.checkLog(sum)
	if len(o.broken) > 0 {
		o.t.Errorf("%s\n%s", strings.Join(o.broken, "\n"), o.story())
	}
}

// checkLog reads the audit log: one create per operation, no write of a voter
// that does not lead, and nothing above the documented rate.
func (o *oracle) checkLog(sum *tally) {
	for _, over := range aboveRate(o.api.Requests()) {
		o.breaks("%s", over)
	}
	created := map[string]int{}
	for _, r := range o.api.Requests() {
		voter, ours := strings.CutPrefix(r.UserAgent, "flymesh-")
		if !ours {
			continue
		}
		if r.Method == http.MethodGet {
			continue
		}
		sum.writes++
		if !o.led(voter, r.At) {
			o.breaks("%s of %s by %s at %s, who does not lead", r.Action, r.Machine, voter, r.At.Format("15:04:05.000"))
		}
		if r.Action == "create" && r.Committed {
			if created[r.Name]++; created[r.Name] > 1 {
				o.breaks("%s was created %d times", r.Name, created[r.Name])
			}
		}
	}
}

// aboveRate returns the calls of the mesh, of all its machines together, that
// are above the documented rate.
func aboveRate(log []flytest.Request) (over []string) {
	limits, told := map[[2]string]*rate.Limiter{}, map[[2]string][]string{}
	for _, r := range log {
		if !strings.HasPrefix(r.UserAgent, "flymesh") {
			continue
		}
		of := r.Machine
		if of == "" || r.Action == "create" {
			of = r.App
		}
		key := [2]string{r.Action, of}
		l := limits[key]
		if l == nil {
			l = rate.NewLimiter(1, 3)
			if r.Action == "get" {
				l = rate.NewLimiter(5, 10)
			}
			limits[key] = l
		}
		if !l.AllowN(r.At, 1) {
			over = append(over, fmt.Sprintf("%s of %s at %s is above the documented rate, after %v", r.Action, of, r.At.Format("15:04:05.000"), told[key]))
		}
		told[key] = append(told[key], r.At.Format("15:04:05.000 ")+strings.TrimPrefix(r.UserAgent, "flymesh-"))
		told[key] = told[key][max(0, len(told[key])-12):]
	}
	return over
}

func (o *oracle) led(voter string, at time.Time) bool {
	o.om.Lock()
	defer o.om.Unlock()
	for _, t := range o.terms {
		if voter, _, _ := strings.Cut(voter, " "); t.voter == voter && !at.Before(t.from) && (t.to.IsZero() || !at.After(t.to)) {
			return true
		}
	}
	return false
}

// writes tells the calls that change something, and what was done to the mesh.
func (o *oracle) writes() string {
	o.om.Lock()
	lines := slices.Clone(o.notes)
	o.om.Unlock()
	for _, r := range o.api.Requests() {
		if r.Method != http.MethodGet && !strings.Contains(r.Action, "lease") {
			lines = append(lines, fmt.Sprintf("%s %s %s %s%s -> %d committed=%t %s %s", r.At.Format("15:04:05.000"), r.UserAgent, r.Action, r.Machine, r.Name, r.Status, r.Committed, r.Fault, r.Error))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}
