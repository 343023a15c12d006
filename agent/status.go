package agent

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"flymesh/agent/api"
	"flymesh/agent/gossip"
	"flymesh/leader"
	"flymesh/leader/decide"
	"flymesh/leader/window"
	"flymesh/probes/report"
)

// leaderStatus tells the whole mesh from the leader's newest round.
func (a *agent) leaderStatus(v leader.View) api.Status {
	st := a.store.Status()
	s := api.Status{
		Mesh: a.cfg.Mesh.Name, Epoch: v.Epoch, Term: v.Term, Leader: &api.LeaderRef{Machine: a.self.ID},
		Quorum: a.quorum(), From: a.self.ID, At: v.At.UTC(), Warnings: []string{},
	}
	members := a.members()
	verdicts := map[string]decide.Verdict{}
	for _, d := range v.Verdicts {
		verdicts[d.Service] = d
	}
	now := time.Now()
	for _, svc := range a.cfg.Services {
		s.Services = append(s.Services, a.serviceStatus(svc.Name, svc.Policy, v.Input, verdicts[svc.Name], now))
		switch f := v.Input.Facts[svc.Name]; {
		case f.APIError != "":
			s.Warnings = append(s.Warnings, svc.Name+": "+f.APIError)
		case f.Owner != "":
			s.Warnings = append(s.Warnings, svc.Name+": "+f.Owner)
		case f.Deploy != "":
			s.Warnings = append(s.Warnings, svc.Name+": a deploy is in progress: "+f.Deploy)
		case f.Breaker != "":
			s.Warnings = append(s.Warnings, svc.Name+": the circuit breaker is open: "+f.Breaker)
		}
		if p := verdicts[svc.Name].Page; p != "" {
			s.Warnings = append(s.Warnings, svc.Name+": "+p)
		}
	}
	for _, m := range v.Input.Machines {
		ms := a.machineStatus(m.ID, m.Service, members[m.ID], now)
		ms.State, ms.Pinned = &m.State, m.Pinned
		if m.Leader {
			ms.Role = "leader"
		} else if m.Voter {
			ms.Role = "voter"
		}
		if m.State == "started" && !m.Heard {
			s.Warnings = append(s.Warnings, silent(m))
		}
		s.Machines = append(s.Machines, ms)
	}
	for _, id := range deadVoters(st.Voters) {
		s.Warnings = append(s.Warnings, fmt.Sprintf("voter %s is not alive", id))
	}
	s.Warnings = append(s.Warnings, configWarnings(s.Machines)...)
	s.Warnings = append(s.Warnings, a.health.problems()...)
	return s
}

func silent(m decide.Machine) string {
	if m.ReportAge == 0 {
		return fmt.Sprintf("machine %s (%s) is started, but its agent was never heard", m.ID, m.Service)
	}
	return fmt.Sprintf("machine %s (%s) is started, but its agent was not heard for %s", m.ID, m.Service, m.ReportAge.Round(time.Second))
}

// configWarnings names the config hashes that differ.
func configWarnings(ms []api.MachineStatus) []string {
	by := map[string][]string{}
	for _, m := range ms {
		if m.ConfigHash != nil && m.ReportAgeMS != nil {
			by[*m.ConfigHash] = append(by[*m.ConfigHash], m.ID)
		}
	}
	if len(by) < 2 {
		return nil
	}
	var out []string
	for h, ids := range by {
		out = append(out, fmt.Sprintf("config %s is on %d machines (%s): mesh.toml differs between machines", h, len(ids), ids[0]))
	}
	slices.Sort(out)
	return out
}

func (a *agent) serviceStatus(name string, p decide.Service, in decide.Input, v decide.Verdict, now time.Time) api.ServiceStatus {
	mem := in.Services[name]
	s := api.ServiceStatus{
		Name: name, Mode: string(cmp.Or(mem.Mode, p.Mode)), Baseline: p.Baseline, Max: p.Max,
	}
	ready, unknown := 0, 0
	for _, c := range v.Counted {
		switch c.As {
		case "ready":
			ready++
		case "unknown":
			unknown++
		}
	}
	started := 0
	for _, m := range in.Machines {
		if m.Service == name && m.State == "started" {
			started++
		}
	}
	if in.Facts[name].APIError == "" {
		s.Started = &started
	}
	s.Ready, s.Unknown = &ready, &unknown
	if h := in.History[name]; len(h) > 0 {
		fill(&s, h[len(h)-1])
	}
	if mem.CooldownUntil.After(now) {
		s.CooldownUntil = &mem.CooldownUntil
	}
	if mem.PausedUntil.After(now) {
		s.PausedUntil = &mem.PausedUntil
	}
	s.Verdict, s.Reason = &v.Verdict, &v.Reason.Text
	return s
}

func fill(s *api.ServiceStatus, n window.Sample) {
	s.CPU, s.ErrorRate, s.Queue = n.CPU.Value, n.ErrorRate.Value, n.Queue.Value
	if n.P95.Value.OK {
		s.P95 = report.Of(n.P95.Value.X * 1000)
	}
	if n.Heard > 0 {
		s.P95Samples = report.Of(n.P95Count)
	}
}

// machineStatus joins what the mesh knows of one machine.
func (a *agent) machineStatus(id, service string, m gossip.Member, now time.Time) api.MachineStatus {
	ms := api.MachineStatus{ID: id, Service: service, Region: m.Region, Role: "agent"}
	if m.Machine != "" {
		ms.Version, ms.ConfigHash = &m.Version, &m.Config
		if m.Role == gossip.Leader || m.Role == gossip.Voter || m.Role == gossip.Nonvoter {
			ms.Role = string(m.Role)
		}
	}
	r, age, fresh, ok := a.reports.Latest(now, id)
	if !ok {
		return ms
	}
	ms.ReportAgeMS = ptr(age.Milliseconds())
	ms.Region = cmp.Or(ms.Region, r.Region)
	ms.Version, ms.ConfigHash = &r.Version, &r.Config
	if !fresh {
		return ms // what it said is too old to be shown as if it were true
	}
	ms.Ready, ms.Readiness = ptr(r.Readiness == report.Ready), ptr(r.Readiness.String())
	ms.CPU, ms.Memory, ms.Queue, ms.AppRole = r.CPU, r.Memory, r.Queue, r.AppRole.String()
	ms.Replication = r.Replication
	return ms
}

// LocalStatus is what this machine knows by itself: the members of the gossip
// and whatever reports it has.
func (a *agent) LocalStatus() api.Status {
	now := time.Now()
	s := api.Status{
		Mesh: a.cfg.Mesh.Name, Epoch: a.gossip.Self().Epoch, Quorum: a.quorum(),
		From: a.self.ID, At: now.UTC(), Warnings: []string{a.leaderless()},
	}
	s.Term = a.store.Status().Term
	for _, svc := range a.cfg.Services {
		s.Services = append(s.Services, api.ServiceStatus{
			Name: svc.Name, Mode: string(svc.Policy.Mode), Baseline: svc.Policy.Baseline, Max: svc.Policy.Max,
		})
	}
	for id, m := range a.members() {
		if m.Alive {
			s.Machines = append(s.Machines, a.machineStatus(id, m.Service, m, now))
		} else {
			s.Warnings = append(s.Warnings, fmt.Sprintf("machine %s (%s) is not heard for %s", id, m.Service, now.Sub(m.Since).Round(time.Second)))
		}
	}
	slices.SortFunc(s.Machines, func(x, y api.MachineStatus) int {
		return cmp.Or(cmp.Compare(x.Service, y.Service), cmp.Compare(x.ID, y.ID))
	})
	slices.Sort(s.Warnings[1:])
	s.Warnings = append(s.Warnings, a.health.problems()...)
	return s
}

// leaderless says in one sentence that nobody leads.
func (a *agent) leaderless() string {
	st := a.store.Status()
	if st.NoLeaderSince.IsZero() {
		return "the leader does not answer"
	}
	text := fmt.Sprintf("no leader for %s: nothing is scaled until one is elected", time.Since(st.NoLeaderSince).Round(100*time.Millisecond))
	if st.Reason != "" {
		text += " (" + st.Reason + ")"
	}
	return text
}

// members returns the newest incarnation of every known machine.
func (a *agent) members() map[string]gossip.Member {
	out := map[string]gossip.Member{}
	for _, m := range a.gossip.Members() {
		if old, ok := out[m.Machine]; ok && (old.Alive && !m.Alive || old.Alive == m.Alive && old.BootAt.After(m.BootAt)) {
			continue
		}
		out[m.Machine] = m
	}
	return out
}

func ptr[T any](v T) *T { return &v }
