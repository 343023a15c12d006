package leader

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"flymesh/leader/decide"
	"flymesh/probes/report"
)

// Failover says when the primary of a Redis moves.
type Failover struct {
	Managed bool          // its primary holds the service's lock while it takes writes
	Auto    bool          // it moves by itself
	After   time.Duration // Auto: the primary was not well for this long
}

// Promotion is a change of the machine whose Redis takes writes.
type Promotion struct {
	From, To string
	Planned  bool          // From works: it hands over, and nothing is lost
	Known    bool          // where From stood is known
	Lacks    uint64        // bytes that To lacks of what From last reported
	Age      time.Duration // of that report
}

// Text says what will be lost.
func (p Promotion) Text() string {
	switch {
	case p.Planned:
		return fmt.Sprintf("%s hands over to %s once that has every write: none is lost", p.From, p.To)
	case !p.Known:
		return fmt.Sprintf("%s takes over from %s when that is proven gone; what %s took last is not known, so neither is what is lost", p.To, p.From, p.From)
	case p.Lacks == 0:
		return fmt.Sprintf("%s takes over from %s when that is proven gone; it has all that %s last reported (%s ago), and what came after is lost", p.To, p.From, p.From, p.Age.Round(time.Second))
	}
	return fmt.Sprintf("%s takes over from %s when that is proven gone; it lacks %d bytes of what %s last reported (%s ago), and what came after", p.To, p.From, p.Lacks, p.From, p.Age.Round(time.Second))
}

// copied is where a primary stood when it was last heard.
type copied struct {
	machine string
	at      time.Time
	report.Replication
}

// heardRedis returns what a machine's agent last said of its Redis.
func (l *Leader) heardRedis(machine string) (r *report.Replication, age time.Duration, fresh bool) {
	rep, age, fresh, ok := l.Reports.Latest(time.Now(), machine)
	if !ok {
		return nil, 0, false
	}
	return rep.Replication, age, fresh
}

// lastOf returns where the primary of a service stood when it was last heard.
func (l *Leader) lastOf(service, machine string) (copied, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.primaries == nil {
		l.primaries = map[string]copied{}
	}
	if r, age, _ := l.heardRedis(machine); r != nil && !r.Replica {
		l.primaries[service] = copied{machine, time.Now().Add(-age), *r}
	}
	c := l.primaries[service]
	return c, c.machine == machine && machine != ""
}

// candidate chooses among machines that run the one that has most of the last
// primary's history.
func (l *Leader) candidate(last copied, running []string) (id string, at report.Replication) {
	for _, m := range running {
		r, _, fresh := l.heardRedis(m)
		if m == last.machine || !fresh || r == nil || !r.Replica || last.History == 0 || r.History != last.History {
			continue
		}
		if id == "" || r.Offset > at.Offset {
			id, at = m, *r
		}
	}
	return id, at
}

func promotion(last copied, to string, at report.Replication) Promotion {
	p := Promotion{From: last.machine, To: to, Known: true, Age: time.Since(last.at)}
	if last.Offset > at.Offset {
		p.Lacks = last.Offset - at.Offset
	}
	return p
}

// keepsRedis is keepsPlace for a Redis whose primary the mesh keeps: manual, it
// stays until a person moves it; auto, until it took no writes for long enough
// and there is a candidate that has its data.
func (l *Leader) keepsRedis(s Service, primary string, ms []Machine) (keep bool, next, why string) {
	name := s.Policy.Name
	last, known := l.lastOf(name, primary)
	if !s.Failover.Auto || l.deploys.of(s) != "" {
		return true, "", ""
	}
	i := slices.IndexFunc(ms, func(m Machine) bool { return m.ID == primary })
	r, _, fresh := l.heardRedis(primary)
	if i >= 0 && ms[i].State == "started" && fresh && r != nil && !r.Replica {
		delete(l.gone, name)
		return true, "", ""
	}
	since, ok := l.gone[name]
	if !ok {
		since = time.Now()
		l.gone[name] = since
	}
	if i >= 0 && time.Since(since) < s.Failover.After || !known {
		return true, "", ""
	}
	var running []string
	for _, m := range ms {
		if m.State == "started" && m.HostOK {
			running = append(running, m.ID)
		}
	}
	next, at := l.candidate(last, running)
	if next == "" {
		return true, "", ""
	}
	return false, next, promotion(last, next, at).Text()
}

// Promotion says what it means to make a machine (empty: the best one) the
// primary of a Redis, or why that would do harm. With force a machine whose
// data are not known to be the primary's is taken, too.
func (l *Leader) Promotion(service, machine string, force bool) (Promotion, error) {
	v, ok := l.View()
	if !ok {
		return Promotion{}, ErrNotLeading
	}
	from := l.Store.State().Service(service).Primary
	if from == "" {
		return Promotion{}, errors.New("no primary is chosen yet; agentctl status shows it as pinned")
	}
	var running []string
	for _, m := range v.Input.Machines {
		if m.Service == service && m.State == "started" && m.HostOK && m.ID != from {
			running = append(running, m.ID)
		}
	}
	if machine != "" {
		if machine == from {
			return Promotion{}, fmt.Errorf("machine %s is the primary already", from)
		}
		if !slices.Contains(running, machine) {
			return Promotion{}, fmt.Errorf("machine %s is not a started machine of the service beside its primary; there are %q", machine, running)
		}
		running = []string{machine}
	}
	last, known := l.lastOf(service, from)
	now, _, fresh := l.heardRedis(from)
	works := fresh && now != nil && !now.Replica && started(v.Input.Machines, from)
	to, at := l.candidate(last, running)
	switch {
	case to == "" && len(running) == 0:
		return Promotion{}, fmt.Errorf("no other machine of the service runs: start one, and it copies %s", from)
	case works && (to == "" || !at.Linked):
		return Promotion{}, fmt.Errorf("%s works, and %s has not its data or no link to it: see agentctl status, and wait for the link", from, cmp.Or(machine, running[0]))
	case works:
		p := promotion(last, to, at)
		p.Planned = true
		return p, nil
	case to != "":
		return promotion(last, to, at), nil
	case !force && !known:
		return Promotion{}, fmt.Errorf("what %s had is not known any more, so it is not known whether %s has its data; --force takes it all the same", from, running[0])
	case !force:
		return Promotion{}, fmt.Errorf("%s has not copied what %s had (another history): its writes would be lost; --force takes it all the same", running[0], from)
	case len(running) > 1:
		return Promotion{}, fmt.Errorf("name the machine: there are %q", running)
	}
	return Promotion{From: from, To: running[0]}, nil
}

func started(ms []decide.Machine, id string) bool {
	return slices.ContainsFunc(ms, func(m decide.Machine) bool { return m.ID == id && m.State == "started" })
}
