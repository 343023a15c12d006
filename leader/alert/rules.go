package alert

import (
	"fmt"
	"time"

	"flymesh/leader/burn"
	"flymesh/leader/decide"
)

// The rules that are not about a metric.
const (
	NoDataRule      = "no_data"          // no machine of a service is heard
	CapRule         = "cap_reached"      // a rule asks for more machines than the cap allows
	BudgetRule      = "budget_near"      // the day's machine time is nearly used
	OperationRule   = "operation_failed" // the newest step of a service failed
	ImprovementRule = "no_improvement"   // additions do not help: the cause is downstream
	QuorumRule      = "quorum_edge"      // one more voter lost, and nobody can lead
	ConfigRule      = "config_differs"   // machines run with different mesh.toml
	FenceRule       = "fence_blocked"    // a wanted lock is not free, because its holder cannot be proven gone
	EvictionRule    = "redis_full"       // a Redis evicts keys or refuses writes
	JobRule         = "job_failed_"      // and the job's name: its newest run failed, was lost or was missed
	NoLeaderRule    = "no_leader"        // told by each agent that sees it, under one key
)

// Metrics turns a service's text rules into alert rules. Their names are made
// of metric and severity: p95_page, and p95_page_2 for a second one.
func Metrics(service, severity string, rules []decide.Rule) []Rule {
	var out []Rule
	seen := map[string]int{}
	for _, w := range rules {
		name := fmt.Sprintf("%s_%s", w.Metric, severity)
		if seen[name]++; seen[name] > 1 {
			name = fmt.Sprintf("%s_%d", name, seen[name])
		}
		out = append(out, Rule{Name: name, Service: service, Severity: severity, When: w, For: w.For, Summary: w.Text})
	}
	return out
}

// Burns returns the rules of a goal: error_rate_burn_1h and so on. The slow one
// is nothing to get up for.
func Burns(g burn.Goal) []Rule {
	var out []Rule
	for _, r := range burn.Rules(g) {
		severity := Page
		if r.Factor <= 1 {
			severity = Warn
		}
		name := fmt.Sprintf("%s_burn_%s", r.Target, burn.Span(r.Long))
		out = append(out, Rule{Name: name, Service: g.Service, Severity: severity, Burn: &r, Summary: r.String()})
	}
	return out
}

// OfService returns what the mesh itself says of one service.
func OfService(service string) []Rule {
	return []Rule{
		{Name: NoDataRule, Service: service, Severity: Page, For: 2 * time.Minute, Summary: "no machine of the service is heard"},
		{Name: CapRule, Service: service, Severity: Page, For: 2 * time.Minute, Summary: "the cap is reached and a rule still asks for more"},
		{Name: BudgetRule, Service: service, Severity: Warn, Summary: "the day's budget of machine time is nearly used"},
		{Name: OperationRule, Service: service, Severity: Warn, Summary: "the newest scaling step failed"},
		{Name: ImprovementRule, Service: service, Severity: Page, Summary: "more machines do not help: the cause is downstream"},
	}
}

// OfRedis returns what the mesh says of a service that is watched by a probe of
// Redis.
func OfRedis(service string) Rule {
	return Rule{Name: EvictionRule, Service: service, Severity: Warn, For: time.Minute, Summary: "Redis is full: it evicts keys or refuses writes"}
}

// OfJob returns what the mesh says of one job, under the service that runs it.
func OfJob(job, service string) Rule {
	return Rule{Name: JobRule + job, Service: service, Severity: Warn, Summary: "the newest run of the job failed, was lost or was missed"}
}

// NoLeader is what agents tell people themselves, and a leader the end of.
func NoLeader() Rule {
	return Rule{Name: NoLeaderRule, Severity: Page, Summary: "nobody leads the mesh"}
}

// OfMesh returns what the mesh says of itself.
func OfMesh() []Rule {
	return []Rule{
		{Name: QuorumRule, Severity: Page, For: time.Minute, Summary: "one more voter lost, and nobody can lead"},
		{Name: FenceRule, Severity: Page, For: 10 * time.Second, Summary: "a lock is wanted, and its silent holder cannot be proven gone"},
		{Name: ConfigRule, Severity: Warn, For: 15 * time.Minute, Summary: "machines run with different mesh.toml"},
	}
}
