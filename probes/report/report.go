// Package report holds what one machine says about itself: the Report, its
// latency Sketch and their wire form of at most MaxSize bytes.
//
// PURE: values in, values out. A measurement that could not be made is absent
// (Value.OK is false), never zero.
package report

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// MaxSize is the largest encoded report in bytes, so that one report with
// encryption and all headers around it fits the smallest IPv6 MTU, 1280, and
// is never split.
const MaxSize = 1168

// Value is a measurement that may be absent. The zero Value is absent.
type Value struct {
	X  float64 // in base units: ratio, seconds, count
	OK bool    // false: unknown; X then has no meaning
}

// Of returns a known value.
func Of(x float64) Value { return Value{X: x, OK: true} }

// MarshalJSON writes the number, or null for an absent value.
func (v Value) MarshalJSON() ([]byte, error) {
	if !v.OK {
		return []byte("null"), nil
	}
	return json.Marshal(v.X)
}

// UnmarshalJSON reads a number or null.
func (v *Value) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		*v = Value{}
		return nil
	}
	v.OK = true
	return json.Unmarshal(b, &v.X)
}

// Readiness is the state of the app beside the agent. /health answers 200 in
// Ready alone.
type Readiness uint8

// The readiness states, in the order in which a machine passes them.
const (
	Booting  Readiness = iota // the app is not up yet, or a probe fails
	Warming                   // the app answers, warm-up is under way
	Loaded                    // warm; a gated service waits for the leader's admission
	Ready                     // takes traffic
	Draining                  // finishes what it has, takes nothing new
)

var readinessNames = [...]string{"booting", "warming", "loaded", "ready", "draining"}

// String returns the lower-case name that /health, status and logs use.
func (r Readiness) String() string {
	if int(r) < len(readinessNames) {
		return readinessNames[r]
	}
	return "unknown"
}

// AppRole is which of its two programs a role-aware command runs.
type AppRole uint8

// The roles of an app.
const (
	NoRole    AppRole = iota // it is no role-aware command
	Replica                  // one of any number
	Primary                  // the only one of its service
	Switching                // between the two: nothing runs, or what runs is ending
)

var appRoleNames = [...]string{"", "replica", "primary", "switching"}

// String returns the lower-case name that status and logs use; "" for NoRole.
func (r AppRole) String() string {
	if int(r) < len(appRoleNames) {
		return appRoleNames[r]
	}
	return "unknown"
}

// MarshalText writes the name.
func (r AppRole) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads a name.
func (r *AppRole) UnmarshalText(b []byte) error {
	i := slices.Index(appRoleNames[:], string(b))
	if i < 0 {
		return fmt.Errorf("app role %q is none of %q", b, appRoleNames[1:])
	}
	*r = AppRole(i)
	return nil
}

// QueueScope says what a queue depth counts.
type QueueScope uint8

// The scopes of a queue depth.
const (
	QueueMachine QueueScope = iota // waiting on this machine; a service's depth is the mean over its machines
	QueueService                   // one queue for the whole service, seen from here; a service's depth is the newest reading
)

// Report is one machine's view of itself at one moment. Counts and the sketch
// cover the last minute (or the time since boot, where that is shorter).
type Report struct {
	Machine string // Fly machine ID
	Boot    string // boot ID of the agent, 32 hex digits
	Seq     uint64 // grows by one with every report of one boot
	Epoch   uint64 // highest mesh epoch the agent knows
	Service string // name in mesh.toml
	Region  string
	Version string // of the agent
	Config  string // first 8 hex digits of the hash of mesh.toml

	Uptime time.Duration // of the agent

	CPU    Value // pressure: max(used/allowed, steal), 1 = all that the machine may use
	Steal  Value // ratio
	Memory Value // used/limit, ratio

	Queue      Value // waiting requests or jobs
	QueueScope QueueScope
	InFlight   Value // requests being worked on

	Requests Value   // requests finished in the last minute
	Errors   Value   // of these, 5xx and timeouts
	Latency  *Sketch // durations of the last minute's requests, seconds; nil: unknown

	Replication *Replication // of the Redis on this machine; nil: there is none, or it does not say

	AppRole   AppRole // what a role-aware command runs
	Readiness Readiness
	Reason    string // why it is not ready, or which probe fails; short
	Busy      bool   // runs a job or holds a lock: not to be stopped
	Leaving   bool   // the last report before an orderly end
	Evicting  bool   // its Redis is full: it evicts keys or refuses writes

	// Cried is when this machine told people that nobody leads, in whole seconds;
	// zero: it has not. The leader that hears of it tells them that it is over.
	Cried time.Time
}

// Replication is where one Redis stands in its history of writes.
type Replication struct {
	Replica bool   `json:"replica"` // a copy that takes no writes; false: a primary
	Linked  bool   `json:"linked"`  // replica: it hears its primary; primary: a replica hears it
	History uint32 `json:"history"` // first half of the replication ID: the same on two means that one copies the other
	Offset  uint64 `json:"offset"`  // bytes of that history it has

	LagBytes   Value `json:"lag_bytes"`   // primary: of the linked replica that is furthest behind
	LagSeconds Value `json:"lag_seconds"` // since the two heard each other
}
