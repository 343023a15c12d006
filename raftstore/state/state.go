// Package state is the replicated state machine: services, operations,
// pauses, cooldowns, admissions and events. PURE: the proposer stamps time and
// term into each Command, Apply reads no clock, and the same log gives the
// same bytes. Apply never fails silently: what does not fit gets a Result with
// a Rejection and changes nothing.
package state

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"
)

// MaxEvents bounds the history of events; the oldest go first.
const MaxEvents = 1000

// maxSeen bounds the request IDs that are remembered against repeats.
const maxSeen = 1024

// State is all that the mesh agrees on. Copies made by Clone share nothing.
type State struct {
	Index    uint64              `json:"index"` // last applied log index
	Epoch    uint64              `json:"epoch"` // of the cluster, announced with each election
	Term     uint64              `json:"term"`  // newest term that a leader announced
	Leader   string              `json:"leader"`
	Services map[string]*Service `json:"services"`
	Ops      map[string]*Op      `json:"ops"`      // open ones by ID
	Admitted map[string]string   `json:"admitted"` // machine -> boot ID that may be ready
	Avoid    map[string]Avoid    `json:"avoid"`    // machines not to be chosen for a while
	Touched  []Touch             `json:"touched"`  // machines of operations that ended of late, oldest first
	Events   []Event             `json:"events"`   // oldest first
	Seen     []Seen              `json:"seen"`     // newest requests, oldest first

	Alerts   map[string]Alert    `json:"alerts,omitempty"`   // those that are not at rest, by Alert.Key
	Silences map[string]Silenced `json:"silences,omitempty"` // by rule or key
	Told     map[string]uint64   `json:"told,omitempty"`     // by receiver: index of the event up to which it knows of scaling steps

	Locks   map[string]*Lock `json:"locks,omitempty"` // those that are held
	Jobs    map[string]*Job  `json:"jobs,omitempty"`
	Rebuilt uint64           `json:"rebuilt,omitempty"` // newest epoch in which expiry locks are granted
	Proven  uint64           `json:"proven,omitempty"`  // newest epoch in which all locks are granted
}

// Service is what is remembered of one service.
type Service struct {
	Mode          string     `json:"mode,omitempty"` // override by a person
	PausedUntil   time.Time  `json:"paused_until,omitzero"`
	PauseReason   string     `json:"pause_reason,omitempty"`
	PausedBy      string     `json:"paused_by,omitempty"`
	CooldownUntil time.Time  `json:"cooldown_until,omitzero"`
	Manual        *Manual    `json:"manual,omitempty"`
	Additions     []Addition `json:"additions,omitempty"`
	Primary       string     `json:"primary,omitempty"` // machine ID of the pinned primary
	PrimarySince  time.Time  `json:"primary_since,omitzero"`
	Failures      int        `json:"failures,omitempty"`     // operations failed in a row
	BreakerUntil  time.Time  `json:"breaker_until,omitzero"` // no new operation before
	BreakerReason string     `json:"breaker_reason,omitempty"`
	Budget        Budget     `json:"budget,omitzero"`
}

// Manual is a size that a person asked for and that is not reached yet.
type Manual struct {
	Target int       `json:"target"`
	Reason string    `json:"reason"`
	By     string    `json:"by"`
	At     time.Time `json:"at"`
}

// Addition is one scale-up of the running breach.
type Addition struct {
	At     time.Time `json:"at"`
	Metric string    `json:"metric"`
	Value  float64   `json:"value"`
}

// Avoid marks a machine that is not to be chosen until a time.
type Avoid struct {
	Until  time.Time `json:"until"`
	Reason string    `json:"reason"`
}

// Touch is a machine whose operation has ended. For some time a listing may
// still show what was before it.
type Touch struct {
	Service string    `json:"service"`
	Machine string    `json:"machine"`
	At      time.Time `json:"at"`
}

// touchedFor is how long a Touch is kept; listings lag by seconds.
const touchedFor = 2 * time.Minute

// Seen is the outcome of one request ID.
type Seen struct {
	ID     string `json:"id"`
	Result Result `json:"result"`
}

// OpKind is what an operation is for.
type OpKind string

// The kinds of operation.
const (
	OpUp   OpKind = "up"
	OpDown OpKind = "down"
)

// Step is where an operation stands. A step is committed before the call that
// it names is made.
type Step string

// The steps. up: intent -> starting | creating -> booting -> warming -> done.
// down: intent -> cordon -> drain -> stopping -> done.
const (
	StepIntent   Step = "intent"   // committed, no machine chosen yet
	StepStarting Step = "starting" // the start call for Machine may have been made
	StepCreating Step = "creating" // the create call for Name may have been made
	StepBooting  Step = "booting"  // the machine exists; waiting for started and its agent
	StepWarming  Step = "warming"  // its agent is heard; waiting for ready
	StepCordon   Step = "cordon"
	StepDrain    Step = "drain"
	StepStopping Step = "stopping" // the stop call may have been made
	StepUndo     Step = "undo"     // giving up: an up stops its machine, a down uncordons it
)

// Op is one open operation. Its ID is "<epoch>-<term>-<index>" of the entry
// that began it: terms and indexes start anew with each epoch.
type Op struct {
	ID      string    `json:"id"`
	Service string    `json:"service"`
	Kind    OpKind    `json:"kind"`
	Step    Step      `json:"step"`
	Machine string    `json:"machine,omitempty"`
	Name    string    `json:"name,omitempty"` // of a machine to be created: flymesh-<service>-<op>
	From    int       `json:"from"`
	To      int       `json:"to"`
	Code    string    `json:"code"`   // reason code of the decision
	Reason  string    `json:"reason"` // the sentence
	By      string    `json:"by"`     // leader machine, or the person
	Manual  bool      `json:"manual,omitempty"`
	Began   time.Time `json:"began"`
	StepAt  time.Time `json:"step_at"`
	Tries   int       `json:"tries"`             // calls made in this step
	Detail  string    `json:"detail,omitempty"`  // newest remark: the last error, what it waits for
	Crossed int       `json:"crossed,omitempty"` // leader changes that it survived
	Region  string    `json:"region,omitempty"`  // where its machine is to be created; empty: where the template is
	Rule    bool      `json:"rule,omitempty"`    // a rule asked for it
	Waits   string    `json:"waits,omitempty"`   // what it waits for before it goes on; empty: nothing
	Waited  int       `json:"waited,omitempty"`  // how often it had to
}

// Event is one line of `agentctl events`.
type Event struct {
	Index   uint64    `json:"index"`
	At      time.Time `json:"at"`
	Kind    string    `json:"kind"`
	Service string    `json:"service"`
	Op      string    `json:"op"`
	Machine string    `json:"machine"`
	From    int       `json:"from"`
	To      int       `json:"to"`
	Reason  string    `json:"reason"`
	By      string    `json:"by"`
}

// New returns the empty state.
func New() *State {
	return &State{
		Services: map[string]*Service{}, Ops: map[string]*Op{},
		Admitted: map[string]string{}, Avoid: map[string]Avoid{}, Locks: map[string]*Lock{},
	}
}

// Clone returns a deep copy.
func (s *State) Clone() *State {
	c := *s
	c.Services = make(map[string]*Service, len(s.Services))
	for k, v := range s.Services {
		w := *v
		if v.Manual != nil {
			m := *v.Manual
			w.Manual = &m
		}
		w.Additions = slices.Clone(v.Additions)
		w.Budget.Reversals = slices.Clone(v.Budget.Reversals)
		c.Services[k] = &w
	}
	c.Ops = make(map[string]*Op, len(s.Ops))
	for k, v := range s.Ops {
		w := *v
		c.Ops[k] = &w
	}
	c.Admitted = maps.Clone(s.Admitted)
	c.Avoid = maps.Clone(s.Avoid)
	if s.Jobs != nil {
		c.Jobs = make(map[string]*Job, len(s.Jobs))
		for k, v := range s.Jobs {
			w := v.clone()
			c.Jobs[k] = &w
		}
	}
	c.Locks = make(map[string]*Lock, len(s.Locks))
	for k, v := range s.Locks {
		w := *v
		c.Locks[k] = &w
	}
	c.Touched = slices.Clone(s.Touched)
	c.Events = slices.Clone(s.Events)
	c.Seen = slices.Clone(s.Seen)
	c.Alerts, c.Silences = s.cloneAlerts()
	c.Told = maps.Clone(s.Told)
	return &c
}

// Snapshot returns the state as JSON; equal states give equal bytes.
func (s *State) Snapshot() ([]byte, error) { return json.Marshal(s) }

// Restore replaces nothing: it returns the state of a snapshot, or an error
// and no state.
func Restore(b []byte) (*State, error) {
	s := &State{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("restore state: %w", err)
	}
	if s.Services == nil || s.Ops == nil || s.Admitted == nil || s.Avoid == nil {
		return nil, fmt.Errorf("restore state: snapshot lacks a table")
	}
	if s.Locks == nil {
		s.Locks = map[string]*Lock{}
	}
	return s, nil
}

// Service returns the named service's memory, the zero one if none is kept yet.
func (s *State) Service(name string) Service {
	if v := s.Services[name]; v != nil {
		return *v
	}
	return Service{}
}

// OpOf returns the open operation of a service.
func (s *State) OpOf(service string) (Op, bool) {
	for _, id := range slices.Sorted(maps.Keys(s.Ops)) {
		if o := s.Ops[id]; o.Service == service {
			return *o, true
		}
	}
	return Op{}, false
}
