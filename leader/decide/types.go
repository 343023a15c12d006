// Package decide is the scaling policy: Plan(Input) -> Result. PURE, total and
// deterministic: it always answers, at worst "hold, because ...", and gives a
// reason for everything it does and does not do. For each service it takes at
// most one step per round.
//
// The leader gathers an Input each round and carries out the Result; nothing in
// here reads a clock, calls out or remembers anything between calls.
package decide

import (
	"time"

	"flymesh/leader/window"
	"flymesh/probes/report"
)

// Mode says how far the policy may go for one service.
type Mode string

// The modes of a service.
const (
	Auto   Mode = "auto"    // decides and acts
	UpOnly Mode = "up-only" // never removes a machine
	Shadow Mode = "shadow"  // decides, tells, does not act
	Off    Mode = "off"     // does not decide
)

// Metric is a measurement that a rule can name.
type Metric string

// The metrics of a rule and their base units.
const (
	CPU       Metric = "cpu"        // ratio of what the machines may use (80 % is 0.8)
	Memory    Metric = "memory"     // ratio
	P95       Metric = "p95"        // seconds
	Queue     Metric = "queue"      // requests or jobs
	ErrorRate Metric = "error_rate" // ratio of requests
)

// Rule is `metric op value for duration`, e.g. "cpu > 80% for 3m".
type Rule struct {
	Metric Metric
	Op     string  // ">" or "<"
	Value  float64 // in the metric's base unit
	For    time.Duration
	Text   string // as written
}

// String returns the rule as it was written.
func (r Rule) String() string { return r.Text }

// Service is the policy of one service.
type Service struct {
	Name        string
	Baseline    int // machines at rest; scale-down stops here
	Max         int // the cap: started, starting, created and unknown ones count
	Up          []Rule
	Down        []Rule // all must hold
	Cooldown    time.Duration
	Mode        Mode
	Pinned      bool          // has a primary that is never removed
	MinSamples  int           // requests under which a p95 is unknown
	ReadyGrace  time.Duration // a started machine may take this long to be heard and ready before it counts as unknown
	NoGainAfter int           // additions without improvement after which adding stops (0: never)
	BudgetHours float64       // machine-hours of one UTC day after which the rules add nothing more (0: no limit)
	FlapPerHour int           // reversals between up and down in any hour, at most (0: no limit)
}

// Policy is the part of mesh.toml that scaling needs.
type Policy struct {
	ReportEvery time.Duration
	Services    []Service
}

// Longest returns the longest duration that any rule may have to hold, near a
// budget too: a history must cover more.
func (p Policy) Longest() time.Duration {
	var d time.Duration
	for _, s := range p.Services {
		for _, r := range s.Up {
			d = max(d, r.For)
			if s.BudgetHours > 0 {
				d = max(d, tight*r.For)
			}
		}
		for _, r := range s.Down {
			d = max(d, r.For)
			if s.FlapPerHour > 0 {
				d = max(d, tight*r.For)
			}
		}
	}
	return d
}

// Machine is one machine of a service as the leader knows it: the API's word
// joined with the mesh's.
type Machine struct {
	ID        string
	Service   string
	State     string // the API's: started, stopped, created, starting, stopping, ...
	HostOK    bool   // false: the API cannot reach the machine's host
	Created   time.Time
	Started   time.Time // when it was last seen to start; zero: unknown
	Cordoned  bool
	Pinned    bool // the service's primary
	Locked    bool // holds a job lock or runs a job
	Leader    bool // the mesh leader runs here
	Voter     bool
	Heard     bool          // a fresh report exists
	ReportAge time.Duration // since the newest report; meaningless if none was ever heard
	Readiness report.Readiness
	Busy      bool
	InFlight  report.Value
	Avoid     string // non-empty: not to be chosen for now, and why
}

// Op is an operation that is under way.
type Op struct {
	ID      string
	Service string
	Kind    string // up | down
	Machine string // empty until known
	Step    string
	Detail  string // what it waits for, or what its newest call said
}

// ServiceState is what the replicated state remembers of one service.
type ServiceState struct {
	Mode          Mode // override by a person; empty: the policy's
	PausedUntil   time.Time
	PauseReason   string
	CooldownUntil time.Time
	// Manual is a step asked for by a person that is not reached yet; nil: none.
	Manual *Manual
	// Additions since the breach began, and the metric's value when each was
	// decided (oldest first): the basis of "no improvement".
	Additions []Addition
}

// Manual is a size that a person asked for.
type Manual struct {
	Target int
	Reason string
	By     string
}

// Addition is one past scale-up of the running breach.
type Addition struct {
	At     time.Time `json:"at"`
	Metric Metric    `json:"metric"`
	Value  float64   `json:"value"` // the breaching metric when the addition was decided
}

// Facts about the mesh and the platform that guards need for one service.
type Facts struct {
	APIError string // non-empty: the last listing failed; the machine list is old
	Deploy   string // non-empty: a deploy is in progress, and how we know
	Owner    string // non-empty: another autoscaler owns this service (Fly Proxy autostop/autostart), and how we know
	Breaker  string // non-empty: the circuit breaker is open, and why

	Hours      float64   // machine-hours of this UTC day so far
	Turns      int       // reversals between up and down in the last hour
	TurnsUntil time.Time // when the oldest of them is an hour old
	Turned     string    // direction of the newest step that a rule asked for: up, down or empty
	// ShortSince is since when, in every listing that this leader made, fewer
	// machines than the baseline may run; zero: they do not, or it has not
	// looked before.
	ShortSince time.Time
}

// Input is all that a plan depends on.
type Input struct {
	Now      time.Time
	Term     uint64
	Quorum   bool // the leader can commit
	Policy   Policy
	Machines []Machine
	Ops      []Op
	Services map[string]ServiceState
	Facts    map[string]Facts
	History  map[string][]window.Sample // per service, oldest first, one per report interval
}

// Verdict codes.
const (
	Hold = "hold"
	Up   = "up"
	Down = "down"
)

// Code names why a verdict is what it is. The set is closed; metrics use it as
// a label.
type Code string

// The reason codes. Guards come in this order.
const (
	CodeOff           Code = "off"
	CodePaused        Code = "paused"
	CodeNoQuorum      Code = "no_quorum"
	CodeAPIDown       Code = "api_down"
	CodeOwner         Code = "owner"
	CodeDeploy        Code = "deploy_in_progress"
	CodeDataMissing   Code = "data_missing"
	CodeOpInFlight    Code = "operation_in_flight"
	CodeBreaker       Code = "breaker"
	CodeCooldown      Code = "cooldown"
	CodeNoImprovement Code = "no_improvement"
	CodeCap           Code = "cap"
	CodeBudget        Code = "budget"
	CodeMode          Code = "mode" // up-only forbids removal, shadow forbids acting
	CodeBaseline      Code = "baseline"
	CodePinned        Code = "pinned"
	CodeLastReady     Code = "last_ready"
	CodeProjected     Code = "projected_overload"
	CodeNoVictim      Code = "no_victim" // every candidate is pinned, locked, busy or the leader

	CodeRuleUp        Code = "rule_up"        // an up rule holds
	CodeRuleDown      Code = "rule_down"      // all down rules hold
	CodeManual        Code = "manual"         // a person asked
	CodeBelowBaseline Code = "below_baseline" // fewer machines than baseline are known to run
	CodeSteady        Code = "steady"         // no rule holds
)

// Reason is a code with the sentence that a person reads.
type Reason struct {
	Code Code   `json:"code"`
	Text string `json:"text"`
}

// RuleEval is one rule held against the history.
type RuleEval struct {
	Rule     string       `json:"rule"`
	For      string       `json:"for"` // up | down
	Holds    bool         `json:"holds"`
	Value    report.Value `json:"value"`    // newest observed value, base unit
	Best     report.Value `json:"best"`     // newest value if all that is missing were idle
	Worst    report.Value `json:"worst"`    // newest value if all that is missing were overloaded; null: unbounded
	Since    *time.Time   `json:"since"`    // since when every sample agrees; null: the newest does not
	Coverage float64      `json:"coverage"` // share of the span's expected samples that are there
	Missing  []string     `json:"missing"`  // machines whose data is missing from the newest sample
}

// GuardEval is one guard.
type GuardEval struct {
	Code   Code   `json:"code"`
	Blocks bool   `json:"blocks"`
	Detail string `json:"detail"`
}

// Counted says how one machine counts against the cap.
type Counted struct {
	Machine string `json:"machine"`
	As      string `json:"as"` // ready | starting | unknown | stopping | draining | stopped
	Why     string `json:"why"`
}

// Action is one step to be taken.
type Action struct {
	Kind    string    `json:"kind"`              // up | down
	Machine string    `json:"machine,omitempty"` // victim of a down
	From    int       `json:"from"`              // machines that run now
	To      int       `json:"to"`
	Manual  bool      `json:"manual,omitempty"`
	Dry     bool      `json:"dry,omitempty"`     // shadow: tell, do not act
	Trigger *Addition `json:"trigger,omitempty"` // the breach that an up answers, if a rule asked
}

// Verdict is the plan for one service. Its JSON form is `agentctl why --json`.
type Verdict struct {
	Service string      `json:"service"`
	At      time.Time   `json:"at"`
	Verdict string      `json:"verdict"` // hold | up | down
	Reason  Reason      `json:"reason"`
	Rules   []RuleEval  `json:"rules"`
	Guards  []GuardEval `json:"guards"`
	Counted []Counted   `json:"counted"`
	Action  *Action     `json:"action,omitempty"`
	// Recovered says that no up rule holds any more: the additions of the
	// breach may be forgotten.
	Recovered bool `json:"recovered"`
	// Page is non-empty when a person should be called, and says why.
	Page string `json:"page,omitempty"`
	// ManualReached says that the size a person asked for is reached and may
	// be forgotten; ManualImpossible says why it can never be.
	ManualReached    bool   `json:"manual_reached,omitempty"`
	ManualImpossible string `json:"manual_impossible,omitempty"`
}

// Tally counts the machines of a verdict: those that count against the cap, of
// these the ready ones and those whose fate is unknown.
func (v Verdict) Tally() (counted, ready, unknown int) {
	for _, c := range v.Counted {
		switch c.As {
		case asStopped:
			continue
		case asReady:
			ready++
		case asUnknown:
			unknown++
		}
		counted++
	}
	return counted, ready, unknown
}

// Result is one round's decisions, one verdict a service in the policy's order.
type Result struct {
	Verdicts []Verdict
}
