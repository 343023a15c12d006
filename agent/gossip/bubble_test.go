package gossip

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"flymesh/agent/gossip/memnet"
	"flymesh/probes/report"
)

// key makes a 32-byte key out of one byte.
func key(b byte) [][]byte { return [][]byte{bytes.Repeat([]byte{b}, 32)} }

// node is one agent in a bubble.
type node struct {
	*Gossip
	addr netip.AddrPort
	stop context.CancelFunc
	done chan error

	mu    sync.Mutex // guards heard
	heard []report.Report
}

func (n *node) reports() []report.Report {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.heard)
}

// mesh is a set of agents on one network in memory.
type mesh struct {
	t   *testing.T
	net *memnet.Network
	all []*node
}

func newMesh(t *testing.T) *mesh { return &mesh{t: t, net: memnet.New(time.Millisecond, 1)} }

func addrNo(i int) netip.AddrPort {
	return netip.MustParseAddrPort(fmt.Sprintf("[fdaa::%x]:7946", i+1))
}

// start runs agent i with the given boot; its seed is agent 0.
func (m *mesh) start(i int, boot string, role Role, change ...func(*Options)) *node {
	m.t.Helper()
	n := &node{addr: addrNo(i), done: make(chan error, 1)}
	o := Options{
		Meta: Meta{Machine: fmt.Sprintf("m%02d", i), Boot: boot, BootAt: time.Now(), Role: role, Service: "web"},
		Bind: n.addr.Addr().String(), Keys: func(time.Time) [][]byte { return key(1) }, Label: "test",
		Seeds:     func(context.Context) []string { return []string{addrNo(0).String()} },
		Transport: m.net.Transport(n.addr),
		OnReport: func(r report.Report) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.heard = append(n.heard, r)
		},
		Logger: slog.New(slog.DiscardHandler),
	}
	for _, f := range change {
		f(&o)
	}
	g, err := Open(o)
	if err != nil {
		m.t.Fatal(err)
	}
	n.Gossip = g
	ctx, cancel := context.WithCancel(m.t.Context())
	n.stop = cancel
	go func() { n.done <- g.Run(ctx) }()
	m.all = append(m.all, n)
	return n
}

// end stops everybody and lets memberlist's goroutines run out.
func (m *mesh) end() {
	for _, n := range m.all {
		n.stop()
	}
	for _, n := range m.all {
		if err := <-n.done; err != nil {
			m.t.Errorf("run: %v", err)
		}
	}
	time.Sleep(time.Minute)
}

// alive counts the living members that n lists.
func (n *node) alive() int {
	count := 0
	for _, m := range n.Members() {
		if m.Alive {
			count++
		}
	}
	return count
}

func (n *node) member(machine string) Member {
	for _, m := range n.Members() {
		if m.Machine == machine {
			return m
		}
	}
	return Member{}
}

// within waits in simulated time and returns how long it took.
func within(t *testing.T, limit time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	begin := time.Now()
	for !ok() {
		if time.Since(begin) > limit {
			t.Fatalf("%s: not within %v", what, limit)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(begin)
}

func allSee(ns []*node, want int) func() bool {
	return func() bool {
		return !slices.ContainsFunc(ns, func(n *node) bool { return n.alive() != want })
	}
}

func TestConverge(t *testing.T) {
	for _, size := range []int{3, 10} {
		for _, loss := range []float64{0, 0.05} {
			t.Run(fmt.Sprintf("%d nodes, loss %.0f %%", size, 100*loss), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := newMesh(t)
					m.net.SetLoss(loss)
					for i := range size {
						m.start(i, fmt.Sprintf("boot%d", i), Agent)
					}
					took := within(t, 10*time.Second, "all know all", allSee(m.all, size))
					t.Logf("all know all after %v", took)

					if err := m.all[1].Update(func(x *Meta) { x.Role, x.Epoch = Candidate, 3 }); err != nil {
						t.Fatal(err)
					}
					took = within(t, 5*time.Second, "news everywhere", func() bool {
						return !slices.ContainsFunc(m.all, func(n *node) bool { return n.member("m01").Epoch != 3 })
					})
					t.Logf("news everywhere after %v", took)
					m.end()
				})
			})
		}
	}
}

func TestReportsReachVotersOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		for i, role := range []Role{Leader, Voter, Nonvoter, Agent, Candidate, Agent} {
			m.start(i, "b", role)
		}
		within(t, 10*time.Second, "all know all", allSee(m.all, 6))
		for seq := range uint64(3) {
			for _, n := range m.all {
				if err := n.Report(report.Report{Machine: n.Self().Machine, Boot: "b", Seq: seq}, false); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(5 * time.Second)
		}
		for i, n := range m.all {
			want := 18 // of all six
			if !n.Self().Role.Hears() {
				want = 3 // its own
			}
			if got := len(n.reports()); got != want {
				t.Errorf("agent %d (%s) heard %d reports, want %d", i, n.Self().Role, got, want)
			}
		}
		m.end()
	})
}

func TestUrgentReportSurvivesLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		m.start(0, "b", Leader)
		m.start(1, "b", Agent)
		within(t, 10*time.Second, "join", allSee(m.all, 2))
		m.net.SetLoss(1)
		begin := time.Now()
		sender := m.all[1]
		if err := sender.Report(report.Report{Machine: "m01", Boot: "b", Seq: 1}, false); err != nil {
			t.Fatal(err)
		}
		if err := sender.Report(report.Report{Machine: "m01", Boot: "b", Seq: 2}, true); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("Report waited %v", took)
		}
		time.Sleep(time.Second)
		got := m.all[0].reports()
		if len(got) != 1 || got[0].Seq != 2 {
			t.Errorf("heard %+v, want the urgent one alone", got)
		}
		m.net.SetLoss(0)
		m.end()
	})
}

// A partition that lasts longer than memberlist remembers the dead heals only
// because of the re-join loop.
func TestPartitionHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		for i := range 6 {
			m.start(i, "b", Agent)
		}
		within(t, 10*time.Second, "all know all", allSee(m.all, 6))
		var a, b []netip.AddrPort
		for i := range 6 {
			if i < 3 {
				a = append(a, addrNo(i))
			} else {
				b = append(b, addrNo(i))
			}
		}
		m.net.Split(a, b)
		took := within(t, time.Minute, "halves see three", allSee(m.all, 3))
		t.Logf("split seen after %v", took)
		if dead := m.all[0].member("m05"); dead.Alive || dead.Left || dead.Since.IsZero() {
			t.Errorf("m05 is listed as %+v, want dead, not left", dead)
		}
		time.Sleep(5 * time.Minute)
		m.net.Heal()
		took = within(t, 30*time.Second, "all know all again", allSee(m.all, 6))
		t.Logf("healed after %v", took)
		m.end()
	})
}

// A one-way cut between two agents must not make either of them dead: the
// others probe for them.
func TestOneWayCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		for i := range 5 {
			m.start(i, "b", Agent)
		}
		within(t, 10*time.Second, "all know all", allSee(m.all, 5))
		m.net.Cut(addrNo(1), addrNo(2))
		for range 120 {
			time.Sleep(500 * time.Millisecond)
			if !allSee(m.all, 5)() {
				t.Fatal("an agent was taken for dead")
			}
		}
		m.end()
	})
}

func TestRestartAtSameAddress(t *testing.T) {
	for _, c := range []struct {
		name string
		off  time.Duration
	}{{"quicker than detection", 100 * time.Millisecond}, {"after detection", 30 * time.Second}, {"after it was forgotten", 3 * time.Minute}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMesh(t)
				for i := range 4 {
					m.start(i, "one", Agent)
				}
				within(t, 10*time.Second, "all know all", allSee(m.all, 4))
				time.Sleep(5 * time.Second)
				m.net.Kill(addrNo(3))
				old := m.all[3]
				time.Sleep(c.off)
				m.start(3, "two", Agent)
				took := within(t, 10*time.Second, "new boot known", func() bool {
					for _, n := range append(m.all[:3:3], m.all[4]) {
						if x := n.member("m03"); !x.Alive || x.Boot != "two" {
							return false
						}
					}
					return true
				})
				t.Logf("new boot known after %v", took)
				for range 60 { // and it stays so
					time.Sleep(time.Second)
					if x := m.all[0].member("m03"); !x.Alive || x.Boot != "two" {
						t.Fatalf("m03 became %+v", x)
					}
				}
				old.stop()
				m.end()
			})
		})
	}
}

// Stale news of an earlier boot must not displace the living one, yet a
// machine whose clock went back must not be shut out.
func TestOldBootHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		m.start(0, "b", Agent)
		m.start(1, "new", Agent)
		within(t, 10*time.Second, "join", allSee(m.all, 2))
		stale := m.all[1].Self()
		stale.Boot, stale.BootAt = "old", stale.BootAt.Add(-time.Hour)
		raw, err := stale.Encode()
		if err != nil {
			t.Fatal(err)
		}
		n := nodeOf("m01", addrNo(1))
		n.Meta = raw
		m.all[0].members.NotifyUpdate(n)
		if got := m.all[0].member("m01").Boot; got != "new" {
			t.Fatalf("boot is %q after stale news", got)
		}
		time.Sleep(believeHeld + 2*settleEvery)
		if got := m.all[0].member("m01").Boot; got != "old" {
			t.Errorf("boot is %q, want the one that nobody refuted", got)
		}
		m.end()
	})
}

func TestLeaveAndKill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		for i := range 5 {
			m.start(i, "b", Agent)
		}
		within(t, 10*time.Second, "all know all", allSee(m.all, 5))
		time.Sleep(5 * time.Second)
		begin := time.Now()
		m.all[4].stop()
		if err := <-m.all[4].done; err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 1200*time.Millisecond {
			t.Errorf("leaving took %v", took)
		}
		m.all[4].done <- nil
		within(t, 2*time.Second, "good-bye heard", allSee(m.all[:4], 4))
		for _, n := range m.all[:4] {
			if x := n.member("m04"); x.Alive || !x.Left {
				t.Errorf("m04 is %+v, want left", x)
			}
		}
		m.net.Kill(addrNo(3))
		took := within(t, 20*time.Second, "death found", allSee(m.all[:3], 3))
		t.Logf("death found after %v", took)
		if x := m.all[0].member("m03"); x.Left {
			t.Errorf("m03 counts as left after it vanished")
		}
		time.Sleep(rememberDead + time.Minute)
		if got := len(m.all[0].Members()); got != 3 {
			t.Errorf("%d members are listed after the dead are forgotten, want 3", got)
		}
		m.end()
	})
}
