package demo

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"flymesh/cmd/agentctl/demoapp"
	"flymesh/leader/flyapi/flytest"
)

// Summary is what the demo showed. Its JSON form is `agentctl demo --json`.
type Summary struct {
	OK             bool             `json:"ok"`
	Seed           uint64           `json:"seed"`
	Seconds        float64          `json:"seconds"`
	Cores          int              `json:"cores"`
	Accounting     string           `json:"cpu_accounting"`
	Redis          string           `json:"redis"` // which one it was
	Durations      []Shortened      `json:"durations"`
	Scalings       []Scaling        `json:"scalings"`
	Leader         Killing          `json:"leader_killed"`
	Services       []ServiceSummary `json:"services"`
	MachineSeconds MachineSeconds   `json:"machine_seconds"`
	History        []Past           `json:"history"`
	Checks         []Check          `json:"checks"`
}

// Scaling is one machine more or less.
type Scaling struct {
	At      float64 `json:"at"` // seconds since the start
	Service string  `json:"service"`
	Kind    string  `json:"kind"` // up | down
	Machine string  `json:"machine"`
	From    int     `json:"from"`
	To      int     `json:"to"`
	Took    float64 `json:"took_seconds"`
	Reason  string  `json:"reason"`
	By      string  `json:"by"`
}

// ServiceSummary is what the clients of a loaded service saw.
type ServiceSummary struct {
	Name     string         `json:"name"`
	Requests int            `json:"requests"`
	Failed   int            `json:"failed"`
	Outcomes map[string]int `json:"outcomes"`
	Peak     float64        `json:"p95_peak_ms"`  // of the worst 4 seconds before it recovered
	After    float64        `json:"p95_after_ms"` // of the 4 seconds in which it had recovered
	Most     int            `json:"most_machines"`
}

// MachineSeconds is the cost of n8n and embeddings.
type MachineSeconds struct {
	Spent float64 `json:"spent"`
	AtCap float64 `json:"always_at_cap"` // what three machines each all the time would have cost
}

// Check is one promise.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

func (s *story) summary(failed error, began time.Time) Summary {
	now := time.Now()
	sum := Summary{
		Seed: s.o.Seed, Seconds: now.Sub(began).Seconds(), Cores: runtime.NumCPU(), Accounting: s.em.Accounting(), Redis: demoapp.RedisServer(),
		Durations: fastPace.shortened(), Scalings: s.scalings(), Leader: s.killing, History: s.past,
	}
	usage := s.em.Usage()
	for _, b := range s.loads {
		u := usage[s.em.App(b.service)]
		sum.Services = append(sum.Services, s.seen(b, u, now))
		sum.MachineSeconds.Spent += u.MachineSeconds
		sum.MachineSeconds.AtCap += 3 * now.Sub(s.em.Began()).Seconds()
	}
	sum.Checks = s.checks(sum, failed)
	sum.OK = !slices.ContainsFunc(sum.Checks, func(c Check) bool { return !c.OK })
	return sum
}

func (s *story) scalings() []Scaling {
	list := []Scaling{}
	events := s.follow.all()
	for _, e := range events {
		if e.Kind != "up" && e.Kind != "down" {
			continue
		}
		x := Scaling{At: e.At.Sub(s.began).Seconds(), Service: e.Service, Kind: e.Kind, Machine: e.Machine,
			From: e.From, To: e.To, Reason: e.Reason, By: s.follow.name(e.By)}
		for _, d := range events {
			if d.Op == e.Op && d.Kind == e.Kind+"_done" {
				x.Took, x.Machine = d.At.Sub(e.At).Seconds(), d.Machine
			}
		}
		list = append(list, x)
	}
	return list
}

func (s *story) seen(b *bearing, u flytest.Usage, now time.Time) ServiceSummary {
	all := b.load.Between(s.began, now)
	x := ServiceSummary{Name: b.service, Requests: all.Count, Failed: all.Failed, Outcomes: all.Outcomes}
	for _, n := range u.Peak {
		x.Most += n
	}
	end := b.settled
	if end.IsZero() {
		end = now
	} else {
		x.After = millis(b.load.Between(end.Add(-4*time.Second), end).P95)
	}
	if !b.loaded.IsZero() {
		for from := b.loaded; from.Before(end); from = from.Add(time.Second) {
			x.Peak = max(x.Peak, millis(b.load.Between(from, from.Add(4*time.Second)).P95))
		}
	}
	return x
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// checks holds what happened against what the demo promises.
func (s *story) checks(sum Summary, failed error) []Check {
	var list []Check
	add := func(name string, ok bool, format string, args ...any) {
		list = append(list, Check{name, ok, fmt.Sprintf(format, args...)})
	}
	seen := func(name, key string) {
		detail, ok := s.passed[key]
		if !ok {
			detail = errUnfinished.Error()
			if failed != nil {
				detail = failed.Error()
			}
		}
		add(name, ok, "%s", detail)
	}
	seen("baseline of four apps, three voters, one leader", "baseline")
	for _, b := range sum.Services {
		add(b.Name+" gets +1, +1 under load", s.steps(b.Name, "up", 1, 2, 3), "%s", s.path(b.Name, "up"))
	}
	for _, b := range sum.Services {
		add(b.Name+" never has more than 3 machines", b.Most == 3, "at most %d, counting those that start and stop", b.Most)
	}
	seen("a fourth machine is wanted, and the cap forbids it", "cap")
	for _, b := range sum.Services {
		target := map[string]float64{"n8n": 1500, "embeddings": 800}[b.Name]
		add(b.Name+" p95 recovers under the same load", b.After > 0 && b.After < target && b.Peak > 1.5*b.After,
			"%.0f ms at its worst, %.0f ms with three machines, target %.0f ms", b.Peak, b.After, target)
	}
	k := s.killing
	killed := k.Successor != "" && k.Successor != k.Machine || k.TermAfter > k.TermBefore
	detail := "never killed"
	if s.killed != nil {
		detail = s.killed.Error()
	} else if k.PID != 0 {
		detail = fmt.Sprintf("%s followed %s after %.1fs", s.follow.name(k.Successor), s.follow.name(k.Machine), k.WithoutLeader)
	}
	add("the leader is killed -9 and another one leads", killed && s.killed == nil && k.WithoutLeader < 10, "%s", detail)
	add("the app beside the killed agent goes on serving", k.AppRequests > 0 && k.AppFailed == 0,
		"%d of %d requests failed", k.AppFailed, k.AppRequests)
	add("the killed agent comes back", k.Back, "it was started again and is heard: %t", k.Back)
	add("cooldowns go on under the next leader", k.Cooldowns > 0 && k.CooldownsKept == k.Cooldowns,
		"%d ran, %d end at the same moment as before", k.Cooldowns, k.CooldownsKept)
	for _, b := range sum.Services {
		add(b.Name+" gets -1, -1 when the load is gone", s.steps(b.Name, "down", 3, 2, 1), "%s", s.path(b.Name, "down"))
	}
	add("the pinned machine of n8n is untouched", s.pinned != "" && s.untouched() == "", "%s", or(s.untouched(), "same process from begin to end, no request to stop or cordon it"))
	if len(sum.History) == 0 {
		add("the history tells what happened", false, "%v", errors.Join(errUnfinished, failed))
	}
	for _, p := range sum.History {
		add("the history of "+p.Service+" tells what happened", p.agrees(), "requests %.0f (its clients %.0f), failed %.0f (%.0f), p95 at its worst %.0f ms (%.0f ms), %d of 4 steps as in the API's log",
			p.Requests.History, p.Requests.Clients, p.Failed.History, p.Failed.Clients, p.P95.History, p.P95.Clients, len(p.Steps))
	}
	add("all within two minutes", sum.Seconds <= limit.Seconds(), "%.0f s", sum.Seconds)
	return list
}

// steps says whether the service went exactly through these sizes, with each
// step decided by a rule and carried out.
func (s *story) steps(service, kind string, sizes ...int) bool {
	begun, done := s.eventsOf(service, kind), s.eventsOf(service, kind+"_done")
	if len(begun) != len(sizes)-1 || len(done) != len(begun) {
		return false
	}
	for i, e := range begun {
		if e.From != sizes[i] || e.To != sizes[i+1] || done[i].To != sizes[i+1] {
			return false
		}
	}
	return true
}

func (s *story) path(service, kind string) string {
	var parts []string
	for _, e := range s.eventsOf(service, kind, kind+"_done", kind+"_failed", kind+"_abandoned") {
		if e.Kind == kind {
			parts = append(parts, fmt.Sprintf("%d -> %d", e.From, e.To))
		} else {
			parts = append(parts, strings.TrimPrefix(e.Kind, kind+"_"))
		}
	}
	return or(strings.Join(parts, ", "), "none")
}

// untouched says what was done to the pinned machine; empty: nothing.
func (s *story) untouched() string {
	for _, r := range s.em.Requests() {
		if r.Machine != s.pinned {
			continue
		}
		switch r.Action {
		case "stop", "suspend", "restart", "destroy", "cordon", "update", "signal":
			return "the API was asked to " + r.Action + " it"
		}
	}
	m, ok := s.em.Machine(s.pinned)
	if !ok || m.State != "started" || m.PID != s.pinnedPID {
		return "it was started again"
	}
	return ""
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func (sum Summary) print(out *console) {
	out.title("Summary")
	for _, x := range sum.Scalings {
		out.text("  %5.1fs  %-10s %d -> %d  in %.1fs  %s", x.At, x.Service, x.From, x.To, x.Took, x.Reason)
	}
	out.text("")
	for _, b := range sum.Services {
		out.text("  %-10s %d requests, %d failed%s; p95 %.0f ms at its worst, %.0f ms with three machines",
			b.Name, b.Requests, b.Failed, outcomes(b.Outcomes), b.Peak, b.After)
	}
	m := sum.MachineSeconds
	out.text("  %.1fs without a leader", sum.Leader.WithoutLeader)
	if m.AtCap > 0 {
		out.text("  %.0f machine-seconds of n8n and embeddings; always at the cap would be %.0f (%.0f %% saved)", m.Spent, m.AtCap, 100*(1-m.Spent/m.AtCap))
	}
	out.text("\n  The mesh's own history, beside what its clients counted and what the Machines API was asked:\n")
	for _, p := range sum.History {
		p.print(out)
	}
	for _, c := range sum.Checks {
		mark := "ok    "
		if !c.OK {
			mark = "FAILED"
		}
		out.text("  %s  %-52s %s", mark, c.Name, c.Detail)
	}
	if sum.OK {
		out.text("\nAll of it happened, in %.0f seconds.", sum.Seconds)
	} else {
		out.text("\nNot all of it happened.")
	}
}

func outcomes(by map[string]int) string {
	var parts []string
	for outcome, n := range by {
		if !strings.HasPrefix(outcome, "2") {
			parts = append(parts, fmt.Sprintf("%s: %d", outcome, n))
		}
	}
	slices.Sort(parts)
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, ", ") + ")"
}
