package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"flymesh/agent/api"
	"flymesh/leader/flyapi/flytest"
)

// Goals for an agent.
const (
	goalRSS    = 30 << 20
	goalCPU    = 0.005 // of a core
	goalWire   = 1000  // bytes/s of mesh traffic, sent, at 50 agents
	goalBinary = 30e6  // bytes
)

// What the neighbours use on such a machine: three nodes on loopback, 60 s.
const (
	besideAgent    = "serf + node_exporter: 37 MiB"
	besideSerf     = "serf 0.20-0.23 %"
	besideLeader   = "bare raft + memberlist, same settings: 1.0 %"
	besideFollower = "bare raft + memberlist, same settings: 0.34 %"
)

// shortLived is the role of connections whose dialling agent was not found:
// they were over before it was looked for. They count in the mean.
const shortLived = "diallers of short connections"

// sample is one agent at one moment.
type sample struct {
	mesh, supervisor usage
}

// cost is what one agent used over the measured time.
type cost struct {
	machine, role string
	mesh, super   memory
	cpu, superCPU float64 // of a core
	switches      float64 // per second, mesh half
	wire          traffic
}

// idle measures a mesh at rest.
func (c *course) idle(ctx context.Context, o IdleOptions) ([]Figure, error) {
	if o.Agents < 3 {
		return nil, errors.New("bench idle: at least 3 agents, who vote")
	}
	c.say("idle: starting %d agents", o.Agents)
	m, err := c.start(ctx, "default", 3, o.Agents-3, o.Redis)
	if err != nil {
		return nil, err
	}
	costs, calls, note, err := c.watch(ctx, m, o)
	if closed := m.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return nil, err
	}
	s := &sheet{part: fmt.Sprintf("idle mesh of %d agents: 3 voters, %d plain; %s after %s of rest", o.Agents, o.Agents-3, o.For, o.Settle)}
	s.cost(costs)
	s.traffic(costs, note, o)
	s.calls(calls, o.For)
	if err := s.binary(c.Agent); err != nil {
		return nil, err
	}
	return s.list, nil
}

// watch settles and measures.
func (c *course) watch(ctx context.Context, m *mesh, o IdleOptions) (costs []cost, calls []flytest.Request, note string, err error) {
	c.say("settling for %s", o.Settle)
	if err := sleep(ctx, o.Settle); err != nil {
		return nil, nil, "", err
	}
	supervisors, halves := m.halves()
	if len(halves) != o.Agents {
		return nil, nil, "", fmt.Errorf("measure idle mesh: %d of %d mesh halves run", len(halves), o.Agents)
	}
	st, err := m.status(ctx)
	if err != nil {
		return nil, nil, "", err
	}
	w, err := m.listen()
	if err != nil {
		note = "not counted: " + err.Error()
	}
	c.say("measuring for %s; %s", o.For, loadNow())
	before, err := read(supervisors, halves)
	if err != nil {
		return nil, nil, "", err
	}
	asked := len(m.Requests())
	if w != nil {
		w.measure(o.For, halves)
	} else if err := sleep(ctx, o.For); err != nil {
		return nil, nil, "", err
	}
	calls = m.Requests()[asked:]
	after, err := read(supervisors, halves)
	if err != nil {
		return nil, nil, "", err
	}
	if w != nil {
		dropped, err := w.close()
		if err != nil {
			return nil, nil, "", err
		}
		note = fmt.Sprintf("every IPv4 packet on lo, headers and acknowledgements included; %d dropped", dropped)
		costs = append(costs, cost{role: shortLived, wire: w.unknown})
	}
	roles := rolesOf(st)
	for id := range supervisors {
		a, b := before[id], after[id]
		x := cost{machine: id, role: cmp.Or(roles[id], "plain")}
		d := b.mesh.at.Sub(a.mesh.at).Seconds()
		x.cpu = (b.mesh.cpu - a.mesh.cpu).Seconds() / d
		x.superCPU = (b.supervisor.cpu - a.supervisor.cpu).Seconds() / d
		x.switches = float64(b.mesh.switches-a.mesh.switches) / d
		if x.mesh, err = memoryOf(halves[id].pid); err != nil {
			return nil, nil, "", err
		}
		if x.super, err = memoryOf(supervisors[id]); err != nil {
			return nil, nil, "", err
		}
		if w != nil && w.by[id] != nil {
			x.wire = *w.by[id]
		}
		costs = append(costs, x)
	}
	return costs, calls, note, nil
}

func read(supervisors map[string]int, halves map[string]process) (map[string]sample, error) {
	out := map[string]sample{}
	for id, pid := range supervisors {
		var s sample
		var err error
		if s.supervisor, err = usageOf(pid); err != nil {
			return nil, err
		}
		if s.mesh, err = usageOf(halves[id].pid); err != nil {
			return nil, err
		}
		out[id] = s
	}
	return out, nil
}

func rolesOf(s api.Status) map[string]string {
	out := map[string]string{}
	for _, x := range s.Machines {
		switch x.Role {
		case "leader":
			out[x.ID] = "leader"
		case "voter":
			out[x.ID] = "follower"
		}
	}
	return out
}

// listen opens the packet counter for this mesh.
func (m *mesh) listen() (*wire, error) {
	agents := map[netip.Addr]string{}
	for _, x := range m.Machines() {
		ip, err := netip.ParseAddr(x.PrivateIP)
		if err != nil {
			return nil, fmt.Errorf("read address of machine: %w", err)
		}
		agents[ip] = x.ID
	}
	u, err := url.Parse(m.URL())
	if err != nil {
		return nil, fmt.Errorf("read address of the API: %w", err)
	}
	at, err := netip.ParseAddrPort(u.Host)
	if err != nil {
		return nil, fmt.Errorf("read address of the API: %w", err)
	}
	return listenWire(agents, map[uint16]protocol{7946: gossipTCP, 7947: meshTLS}, at)
}

// cost prints memory and CPU by role.
func (s *sheet) cost(all []cost) {
	for _, role := range []string{"leader", "follower", "plain"} {
		var n float64
		var mesh, super memory
		var cpu, superCPU, switches float64
		for _, x := range all {
			if x.role != role {
				continue
			}
			n++
			mesh, super = plus(mesh, x.mesh), plus(super, x.super)
			cpu, superCPU, switches = cpu+x.cpu, superCPU+x.superCPU, switches+x.switches
		}
		if n == 0 {
			continue
		}
		if n > 1 {
			role = fmt.Sprintf("%s (mean of %.0f)", role, n)
		}
		// Both halves are one program: the pages of its file are there once.
		s.below(role+": resident memory, both halves, file pages once", (mesh.rss+super.own)/n, goalRSS, mib, besideAgent)
		s.add(role+": mesh half", fmt.Sprintf("RSS %s, PSS %s, private %s", mib(mesh.rss/n), mib(mesh.pss/n), mib(mesh.private/n)), "serf RSS 17.2-17.6, bare raft + memberlist 15.4 MiB")
		s.add(role+": supervisor", fmt.Sprintf("RSS %s, PSS %s, private %s", mib(super.rss/n), mib(super.pss/n), mib(super.private/n)), "")
		s.below(role+": CPU of a core, both halves", (cpu+superCPU)/n, goalCPU, percent, map[string]string{"l": besideLeader, "f": besideFollower, "p": besideSerf}[role[:1]])
		s.add(role+": supervisor's part of it", percent(superCPU/n), "")
		s.add(role+": context switches of the mesh half", fmt.Sprintf("%.0f /s", switches/n), map[string]string{"l": "292", "f": "104", "p": "serf 70-74"}[role[:1]]+" /s")
	}
}

func plus(a, b memory) memory {
	return memory{rss: a.rss + b.rss, pss: a.pss + b.pss, private: a.private + b.private, own: a.own + b.own}
}

// v6 is what IPv6 adds to each packet's headers.
const v6 = 20

// traffic prints bytes per second by role and protocol, one agent's, and the
// mean of all.
func (s *sheet) traffic(all []cost, note string, o IdleOptions) {
	s.add("traffic", note, "")
	var total volume
	for _, role := range []string{"leader", "follower", "plain", shortLived} {
		var n float64
		sent, received := map[protocol]volume{}, map[protocol]volume{}
		for _, x := range all {
			if x.role == role && x.wire.sent != nil {
				n++
				sum(sent, x.wire.sent)
				sum(received, x.wire.received)
			}
		}
		if role == shortLived {
			n = min(n, 1) * float64(o.Agents) // any of them
			role = "any, as the dialler of a short connection"
		}
		if n == 0 {
			continue
		}
		n *= o.For.Seconds()
		var mesh volume
		for _, p := range []protocol{gossipUDP, gossipTCP, meshTLS, machinesAPI} {
			if sent[p].packets+received[p].packets == 0 {
				continue
			}
			s.add(fmt.Sprintf("%s: %s", role, p), fmt.Sprintf("%s sent, %s received, %.1f packets/s",
				rate(sent[p].bytes/n), rate(received[p].bytes/n), (sent[p].packets+received[p].packets)/n), "")
			if p != machinesAPI {
				mesh.bytes, mesh.packets = mesh.bytes+sent[p].bytes, mesh.packets+sent[p].packets
			}
		}
		total.bytes, total.packets = total.bytes+mesh.bytes, total.packets+mesh.packets
		s.add(role+": mesh traffic sent", fmt.Sprintf("%s, with IPv6 headers %s", rate(mesh.bytes/n), rate((mesh.bytes+v6*mesh.packets)/n)), "")
	}
	if total.packets == 0 {
		return
	}
	n := o.For.Seconds() * float64(o.Agents)
	what := fmt.Sprintf("mean of all %d agents: mesh traffic sent", o.Agents)
	if o.Agents >= 50 {
		s.below(what, total.bytes/n, goalWire, rate, "memberlist alone 151 B/s of payload")
	} else {
		s.add(what, rate(total.bytes/n), "memberlist alone 151 B/s of payload")
	}
	s.add("the same with IPv6 headers", rate((total.bytes+v6*total.packets)/n), "")
}

func sum(to, from map[protocol]volume) {
	for p, v := range from {
		t := to[p]
		t.bytes, t.packets = t.bytes+v.bytes, t.packets+v.packets
		to[p] = t
	}
}

// calls prints what the mesh asked the Machines API.
func (s *sheet) calls(all []flytest.Request, d time.Duration) {
	by := map[string]int{}
	for _, r := range all {
		by[r.Action]++
	}
	var parts []string
	for _, a := range slices.Sorted(maps.Keys(by)) {
		parts = append(parts, fmt.Sprintf("%s %.0f", a, float64(by[a])/d.Minutes()))
	}
	s.add("calls of the Machines API by the whole mesh", fmt.Sprintf("%.0f /min (%s)", float64(len(all))/d.Minutes(), strings.Join(parts, ", ")), "")
}

// binary prints the size of a stripped binary.
func (s *sheet) binary(agent string) error {
	fi, err := os.Stat(agent)
	if err != nil {
		return fmt.Errorf("measure binary: %w", err)
	}
	s.below("binary, as built", float64(fi.Size()), goalBinary, func(x float64) string { return fmt.Sprintf("%.1f MB", x/1e6) }, "serf 16.2, node_exporter 19.2 MB")
	var runs times
	for range 20 {
		began := time.Now()
		if err := exec.Command(agent, "version").Run(); err != nil {
			return fmt.Errorf("run agent binary: %w", err)
		}
		runs = append(runs, time.Since(began))
	}
	s.add("start and end of the program (agent version)", runs.spread(millis), "")
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
