package leader

import (
	"context"
	"time"

	"flymesh/leader/window"
	"flymesh/probes/report"
	"flymesh/raftstore/state"
)

// place gives every pinned service a primary and keeps it there. A primary
// moves only when its machine is gone for good, or has not run for PinGrace;
// that of a Redis as its Failover says.
func (l *Leader) place(ctx context.Context, t Term) {
	st := l.Store.State()
	for _, s := range l.Services {
		name := s.Policy.Name
		if n, _ := l.listed.of(s.App); !s.Policy.Pinned || n.err != nil || n.began.IsZero() {
			continue
		}
		ms := l.machines(s)
		mem := st.Service(name)
		keep, next, why := false, "", ""
		switch {
		case mem.Primary == "":
		case s.Failover.Managed:
			keep, next, why = l.keepsRedis(s, mem.Primary, ms)
		default:
			keep = l.keepsPlace(name, mem.Primary, ms)
		}
		if keep {
			l.mirror(ctx, s, mem.Primary, ms)
			continue
		}
		if o, ok := st.OpOf(name); ok && o.Kind == state.OpDown {
			continue // first let the removal end: the choice must not fall on its machine
		}
		if next == "" {
			next, why = l.primary(name, mem.Primary, ms)
		}
		if next == "" {
			continue
		}
		if _, err := l.propose(ctx, t, state.Command{Pin: &state.Pin{Service: name, Machine: next, Reason: why}}); err != nil {
			l.log.Warn("pin failed", "service", name, "machine", next, "error", err)
			continue
		}
		l.log.Info("primary chosen", "service", name, "machine", next, "reason", why)
		l.mirror(ctx, s, next, ms)
	}
}

func (l *Leader) keepsPlace(service, primary string, ms []Machine) bool {
	for _, m := range ms {
		if m.ID != primary || m.State == "destroyed" || m.State == "destroying" {
			continue
		}
		if m.State == "started" || !m.HostOK {
			delete(l.gone, service)
			return true
		}
		since, ok := l.gone[service]
		if !ok {
			since = time.Now()
			l.gone[service] = since
		}
		return time.Since(since) < l.PinGrace
	}
	delete(l.gone, service)
	return false
}

// primary chooses: the machine that already carries the mark, else the oldest
// ready one that the mesh did not create, else the oldest that runs.
func (l *Leader) primary(service, old string, ms []Machine) (id, why string) {
	type rank struct {
		marked, ready, routed, lasting bool
		created                        time.Time
	}
	better := func(a, b rank) bool {
		switch {
		case a.marked != b.marked:
			return a.marked
		case a.ready != b.ready:
			return a.ready
		case a.routed != b.routed:
			return a.routed
		case a.lasting != b.lasting:
			return a.lasting
		}
		return a.created.Before(b.created)
	}
	var best rank
	open := l.Store.State().Ops
	for _, m := range ms {
		// A mark of a removal that is over means nothing: a deploy copies it to
		// machines that it makes.
		removal, _ := markOf(m)
		if m.State != "started" || !m.HostOK || m.ID == old || open[removal] != nil {
			continue
		}
		// The same goes for the mark of the primary on a machine that a deploy
		// has left cordoned, unless all state is lost and it is all there is to go by.
		marked := m.Metadata[MetaPrimary] == service && (old == "" || !m.Cordoned)
		r := rank{marked, l.ready(m.ID), !m.Cordoned, m.Metadata[MetaOp] == "", m.Created}
		if id == "" || better(r, best) {
			id, best = m.ID, r
		}
	}
	switch {
	case id == "":
		return "", ""
	case best.marked:
		return id, "carries the mark of an earlier choice"
	case old == "":
		return id, "first choice: the oldest that is ready"
	}
	return id, "the old primary " + old + " is gone"
}

// mirror keeps the primary's mark in Fly metadata, for people to see and for a
// leader of a new epoch to find.
func (l *Leader) mirror(ctx context.Context, s Service, primary string, ms []Machine) {
	if l.deploys.of(s) != "" {
		return // it is set right when the deploy is over
	}
	for _, m := range ms {
		want := ""
		if m.ID == primary {
			want = s.Policy.Name
		}
		if m.Metadata[MetaPrimary] == want {
			continue
		}
		if err := l.Cloud.SetMetadata(ctx, s.App, m.ID, MetaPrimary, want); err != nil {
			l.log.Debug("mark primary failed", "machine", m.ID, "error", err)
		}
	}
}

// giveBack looks for machines that were cordoned for a removal which is not
// open any more (its host did not answer when it was taken back, or the mesh
// lost its state in the middle of it) and gives them back.
func (l *Leader) giveBack(ctx context.Context, t Term) {
	open := l.Store.State().Ops
	for _, s := range l.Services {
		if n, _ := l.listed.of(s.App); n.err != nil || l.deploys.of(s) != "" {
			continue
		}
		for _, m := range l.machines(s) {
			op, sent := markOf(m)
			if op == "" || open[op] != nil || m.State != "started" || !m.HostOK {
				continue
			}
			if !outlived(sent) && !m.Cordoned && !l.draining(m.ID) {
				continue // it is back in service; a lost cordon may still come
			}
			if err := l.Store.Verify(ctx); err != nil {
				return
			}
			if err := l.takeBack(ctx, s.App, m.ID, m.Cordoned); err != nil {
				l.log.Warn("give machine back failed", "machine", m.ID, "error", err)
				continue
			}
			if outlived(sent) {
				if err := l.Cloud.SetMetadata(ctx, s.App, m.ID, MetaRemoval, ""); err != nil {
					l.log.Warn("take removal's mark off failed", "machine", m.ID, "error", err)
				}
			}
			if !m.Cordoned {
				continue
			}
			note := &state.Note{Kind: "uncordon", Service: s.Policy.Name, Machine: m.ID, Reason: "left over from removal " + op}
			if _, err := l.propose(ctx, t, state.Command{Note: note}); err != nil {
				l.log.Warn("note failed", "error", err)
			}
		}
	}
}

// admit lets loaded machines of gated services become ready: first the
// committed entry, then the word to the machine, again each round until it
// says that it is ready.
func (l *Leader) admit(ctx context.Context, t Term) {
	type waiting struct{ service, machine, boot string }
	var all []waiting
	admitted := l.Store.State().Admitted
	l.Reports.with(func(w *window.Window) {
		for _, id := range w.Machines() {
			r, age, ok := w.Latest(time.Now(), id)
			s, known := l.service(r.Service)
			if !ok || !known || !s.Gated || !w.Fresh(age) {
				continue
			}
			// Also one that admitted itself while there was no leader.
			if r.Readiness == report.Loaded || r.Readiness == report.Ready && admitted[id] != r.Boot {
				all = append(all, waiting{r.Service, id, r.Boot})
			}
		}
	})
	for _, m := range all {
		if admitted[m.machine] != m.boot {
			if err := l.Store.Verify(ctx); err != nil {
				return
			}
			if _, err := l.propose(ctx, t, state.Command{Admit: &state.Admit{Service: m.service, Machine: m.machine, Boot: m.boot}}); err != nil {
				l.log.Warn("admit failed", "machine", m.machine, "error", err)
				continue
			}
		}
		if err := l.Agents.Admit(ctx, m.machine, m.boot); err != nil {
			l.log.Warn("tell admission failed", "machine", m.machine, "error", err)
		}
	}
}

func (l *Leader) ready(machine string) bool { return l.says(machine, report.Ready) }

func (l *Leader) draining(machine string) bool { return l.says(machine, report.Draining) }

// says tells whether the machine's newest report, if it is fresh, says so.
func (l *Leader) says(machine string, what report.Readiness) (ok bool) {
	l.Reports.with(func(w *window.Window) {
		r, age, heard := w.Latest(time.Now(), machine)
		ok = heard && w.Fresh(age) && r.Readiness == what
	})
	return ok
}
