package decide

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// victim is the machine that a removal would take, or why there is none. The
// three reasons exclude each other.
type victim struct {
	machine   *Machine
	why       string
	pinned    string
	lastReady string
	none      string
}

// choose picks the machine to remove. The primary, the last ready machine, the
// holder of a lock, a busy machine and the mesh's leader are never taken, nor
// is one that is not heard. Of the others: one that is no voter first, then one
// that is not ready, then the newest, then the one with the least in flight
// (unknown counts as most), then by ID.
func (r *round) choose() victim {
	f := &r.fleet
	var can []*Machine
	for i, m := range f.mine {
		if c := f.list[i]; c.As == asReady || c.As == asStarting {
			if m := &f.machines[m]; m.State == "started" && m.Heard && m.HostOK {
				can = append(can, m)
			}
		}
	}
	if len(can) == 0 {
		return victim{none: "no machine is started and heard"}
	}
	if r.service.Pinned && f.pinned == 0 {
		return victim{pinned: "which machine is the primary is not known, so none may go"}
	}
	can = slices.DeleteFunc(can, func(m *Machine) bool { return m.Pinned })
	if len(can) == 0 {
		return victim{pinned: "only the primary could go, and it never does"}
	}
	last := ""
	can = slices.DeleteFunc(can, func(m *Machine) bool {
		only := f.serving == 0 || f.serving == 1 && ready(m)
		if only {
			last = m.ID
		}
		return only
	})
	if len(can) == 0 {
		if f.serving == 0 {
			return victim{lastReady: "no machine is ready, so every one may be the next that is"}
		}
		return victim{lastReady: last + " is the last ready machine"}
	}
	var kept []string
	can = slices.DeleteFunc(can, func(m *Machine) bool {
		if why := exempt(m); why != "" {
			kept = append(kept, m.ID+" "+why)
			return true
		}
		return false
	})
	if len(can) == 0 {
		return victim{none: "no machine can go: " + strings.Join(kept, ", ")}
	}
	m := slices.MinFunc(can, compareVictims)
	return victim{machine: m, why: because(m)}
}

// ready says whether the machine takes traffic.
func ready(m *Machine) bool {
	return classify(m, time.Time{}, 0, nil).As == asReady && !m.Cordoned
}

// exempt says why a machine is never removed, besides being the primary.
func exempt(m *Machine) string {
	switch {
	case m.Locked:
		return "holds a lock or runs a job"
	case m.Busy:
		return "is busy"
	case m.Leader:
		return "leads the mesh"
	case m.Avoid != "":
		return "is " + m.Avoid
	}
	return ""
}

func compareVictims(a, b *Machine) int {
	return cmp.Or(
		compareBool(a.Voter, b.Voter),
		compareBool(ready(a), ready(b)),
		b.Created.Compare(a.Created),
		compareBool(!a.InFlight.OK, !b.InFlight.OK),
		cmp.Compare(a.InFlight.X, b.InFlight.X),
		cmp.Compare(a.ID, b.ID),
	)
}

// compareBool puts false before true.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// because says in a few words why m is the victim.
func because(m *Machine) string {
	why := "newest non-voter"
	if m.Voter {
		why = "newest, only voters may go"
	}
	if !ready(m) {
		why += ", not ready"
	}
	return why
}

// projected puts the load of the machines that are ready onto those that would
// be left. CPU and a queue per machine are held against the lines of the up
// rules; over the span of each rule the mean is taken, so that one quiet sample
// does not let a machine go. A person's wish is not projected.
func (r *round) projected() (bool, string) {
	if r.want.code == CodeManual {
		return false, "a person asked, so nothing is projected"
	}
	n := r.fleet.serving
	left := n
	if r.out.machine == nil || ready(r.out.machine) {
		left--
	}
	if left <= 0 {
		return false, "no ready machine would be left, see last_ready"
	}
	detail := ""
	for i := range r.ups {
		u := r.ups[i].rule
		if u.Op != ">" || u.Metric != CPU && (u.Metric != Queue || r.total()) {
			continue
		}
		mean, ok := r.mean(u)
		if !ok {
			return true, fmt.Sprintf("%s is unknown, so what would be left for %d ready is too", u.Metric, left)
		}
		then := mean * float64(n) / float64(left)
		text := fmt.Sprintf("%s %s on %d ready would be %s on %d, the line is %s", u.Metric,
			u.Metric.format(mean), n, u.Metric.format(then), left, u.Metric.format(u.Value))
		if !r.ups[i].newest.Value.OK {
			text = "at worst " + text
		}
		if !(then <= u.Value) {
			return true, text
		}
		if detail != "" {
			detail += "; "
		}
		detail += text
	}
	return false, or(detail, "no up rule on what can be projected")
}

// total says whether the service has one queue, whose depth does not depend on
// how many machines there are.
func (r *round) total() bool {
	return len(r.samples) > 0 && r.samples[len(r.samples)-1].QueueTotal
}

// mean is the mean of the metric at worst over the rule's span.
func (r *round) mean(u *Rule) (float64, bool) {
	sum, n := 0.0, 0
	for i := len(r.samples) - 1; i >= 0; i-- {
		s := &r.samples[i]
		if n > 0 && r.in.Now.Sub(s.At) >= u.For {
			break
		}
		sum += u.Metric.of(s).Worst
		n++
	}
	return sum / float64(n), n > 0 && finite(sum)
}
