package gossip

import (
	"cmp"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Member is one machine as gossip knows it.
type Member struct {
	Meta
	Alive bool
	Since time.Time // when it became so (this boot alive, or not), by this agent's clock
	Left  bool      // not alive, and said good-bye before
}

// entry is one machine in the table.
type entry struct {
	Member
	addr netip.AddrPort
	held *held // nil: nothing is held back
}

// held is a boot that claims to be older than the one in the table. Mostly it
// is old news that still travels: the living boot refutes it within a second.
// If nobody does, the machine's clock went back between two boots.
type held struct {
	meta Meta
	addr netip.AddrPort
	at   time.Time
}

// believeHeld is how long an older boot waits to be refuted. A boot that is
// gone is found dead within this time.
const believeHeld = 10 * time.Second

// members is the table behind Members. memberlist's own Members returns
// pointers into live state, so the table keeps copies, made in the event
// callbacks under a lock of its own. memberlist holds its node lock during the
// callbacks: nothing in here may call it.
type members struct {
	log     *slog.Logger
	metrics *metrics
	changed func()

	mu    sync.Mutex
	self  entry
	raw   []byte            // encoded Meta of self
	table map[string]*entry // by machine, without self
}

func newMembers(self Meta, raw []byte, log *slog.Logger, m *metrics, changed func()) *members {
	return &members{
		log: log, metrics: m, changed: changed, raw: raw, table: map[string]*entry{},
		self: entry{Member: Member{Meta: self, Alive: true, Since: time.Now()}},
	}
}

// The memberlist callbacks.
var _ memberlist.EventDelegate = (*members)(nil)

// NotifyJoin implements memberlist.EventDelegate.
func (t *members) NotifyJoin(n *memberlist.Node) { t.heard(n) }

// NotifyUpdate implements memberlist.EventDelegate. A machine that restarts
// quicker than it is missed shows up here, with a new boot.
func (t *members) NotifyUpdate(n *memberlist.Node) { t.heard(n) }

// heard takes in that a member is alive with the given Meta.
func (t *members) heard(n *memberlist.Node) {
	now := time.Now()
	addr := addrOf(n)
	t.mu.Lock()
	defer t.mu.Unlock()
	if n.Name == t.self.Machine {
		t.self.addr = addr
		return
	}
	meta, err := DecodeMeta(n.Meta)
	if err == nil && meta.Machine != n.Name {
		err = errors.New("decode meta: machine is not the member's name")
	}
	if err != nil {
		t.metrics.dropped.WithLabelValues("meta").Inc()
		t.log.Warn("member ignored", "member", n.Name, "address", addr.String(), "error", err)
		return
	}
	e := t.table[n.Name]
	if e == nil {
		e = &entry{}
		t.table[n.Name] = e
	}
	if e.Boot != meta.Boot && meta.BootAt.Before(e.BootAt) {
		e.held = &held{meta, addr, now}
		t.metrics.dropped.WithLabelValues("old_boot").Inc()
		return
	}
	t.accept(e, meta, addr, now)
}

// accept makes meta the truth of an entry. The caller holds mu.
func (t *members) accept(e *entry, meta Meta, addr netip.AddrPort, now time.Time) {
	if !e.Alive || e.Boot != meta.Boot {
		e.Since = now
	}
	e.Member = Member{Meta: meta, Alive: true, Since: e.Since}
	e.addr, e.held = addr, nil
	t.metrics.alive.Set(float64(t.countAlive()))
	t.changed()
}

// NotifyLeave implements memberlist.EventDelegate: the member is dead or left.
func (t *members) NotifyLeave(n *memberlist.Node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.table[n.Name]
	if e == nil {
		return
	}
	e.held = nil
	if !e.Alive {
		return
	}
	e.Alive, e.Left, e.Since = false, e.Leaving, time.Now()
	t.metrics.alive.Set(float64(t.countAlive()))
	t.changed()
}

// settle believes what was held back long enough, and forgets who died long
// ago.
func (t *members) settle(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, e := range t.table {
		if e.held != nil && now.Sub(e.held.at) > believeHeld {
			t.log.Warn("machine's clock went back between two boots", "machine", name)
			t.accept(e, e.held.meta, e.held.addr, now)
		}
		if !e.Alive && now.Sub(e.Since) > rememberDead {
			delete(t.table, name)
			t.changed()
		}
	}
}

// all returns copies, self included, in order of machine.
func (t *members) all(now time.Time) []Member {
	t.mu.Lock()
	defer t.mu.Unlock()
	ms := make([]Member, 0, len(t.table)+1)
	ms = append(ms, t.self.Member)
	for _, e := range t.table {
		if e.Alive || now.Sub(e.Since) <= rememberDead {
			ms = append(ms, e.Member)
		}
	}
	slices.SortFunc(ms, func(a, b Member) int { return cmp.Compare(a.Machine, b.Machine) })
	return ms
}

func (t *members) selfMeta() Meta {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.self.Meta
}

// selfRaw returns the own Meta as it is sent.
func (t *members) selfRaw() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.raw
}

func (t *members) selfAddr() netip.AddrPort {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.self.addr
}

// setSelf changes the own Meta, or nothing if the result is not valid.
func (t *members) setSelf(change func(*Meta)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.self.Meta
	change(&m)
	if m.Machine != t.self.Machine || m.Boot != t.self.Boot {
		return errors.New("machine and boot cannot change")
	}
	raw, err := m.Encode()
	if err != nil {
		return err
	}
	if m != t.self.Meta {
		t.self.Meta, t.raw = m, raw
		t.changed()
	}
	return nil
}

// hearers returns the living members, without self, whose role hears reports.
func (t *members) hearers() []*memberlist.Node {
	t.mu.Lock()
	defer t.mu.Unlock()
	var ns []*memberlist.Node
	for _, name := range slices.Sorted(maps.Keys(t.table)) {
		if e := t.table[name]; e.Alive && e.Role.Hears() {
			ns = append(ns, nodeOf(name, e.addr))
		}
	}
	return ns
}

// living returns the addresses of all living members, self included.
func (t *members) living() map[netip.AddrPort]bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	as := map[netip.AddrPort]bool{t.self.addr: true}
	for _, e := range t.table {
		if e.Alive {
			as[e.addr] = true
		}
	}
	return as
}

// missing returns the last addresses of the members that died.
func (t *members) missing() []netip.AddrPort {
	t.mu.Lock()
	defer t.mu.Unlock()
	var as []netip.AddrPort
	for _, name := range slices.Sorted(maps.Keys(t.table)) {
		if e := t.table[name]; !e.Alive && !e.Left {
			as = append(as, e.addr)
		}
	}
	return as
}

// countAlive counts the living, self included. The caller holds mu.
func (t *members) countAlive() int {
	n := 1
	for _, e := range t.table {
		if e.Alive {
			n++
		}
	}
	return n
}

// alone says that no other member is alive.
func (g *Gossip) alone() bool { return len(g.members.living()) < 2 }

func addrOf(n *memberlist.Node) netip.AddrPort {
	ip, _ := netip.AddrFromSlice(n.Addr)
	return netip.AddrPortFrom(ip.Unmap(), n.Port)
}

// nodeOf returns a destination for a message. It claims no protocol version,
// so that memberlist leaves out its checksum: the encryption authenticates.
func nodeOf(name string, a netip.AddrPort) *memberlist.Node {
	return &memberlist.Node{Name: name, Addr: net.IP(a.Addr().AsSlice()), Port: a.Port()}
}
