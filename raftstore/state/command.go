package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Version is the command format that this build writes. Apply rejects newer ones.
const Version = 1

// Command is one entry of the log: a header stamped by the proposer and
// exactly one body.
type Command struct {
	V    int       `json:"v"`
	ID   string    `json:"id,omitempty"`   // request ID: a repeat gets the first one's result
	At   time.Time `json:"at"`             // proposer's wall clock, UTC
	Term uint64    `json:"term,omitempty"` // leader's term for commands that only a leader may give; 0: from a person
	By   string    `json:"by"`             // machine or person

	Elect   *Elect   `json:"elect,omitempty"`
	Begin   *Begin   `json:"begin,omitempty"`
	Advance *Advance `json:"advance,omitempty"`
	Finish  *Finish  `json:"finish,omitempty"`
	Pause   *Pause   `json:"pause,omitempty"`
	Resume  *Resume  `json:"resume,omitempty"`
	Scale   *Scale   `json:"scale,omitempty"`
	Settle  *Settle  `json:"settle,omitempty"`
	Pin     *Pin     `json:"pin,omitempty"`
	Admit   *Admit   `json:"admit,omitempty"`
	Revoke  *Revoke  `json:"revoke,omitempty"`
	Note    *Note    `json:"note,omitempty"`
	Wait    *Wait    `json:"wait,omitempty"`
	Meter   *Meter   `json:"meter,omitempty"`

	SetAlert  *SetAlert  `json:"set_alert,omitempty"`
	TellAlert *TellAlert `json:"tell_alert,omitempty"`
	TellSteps *TellSteps `json:"tell_steps,omitempty"`
	Silence   *Silence   `json:"silence,omitempty"`
	Grant     *Grant     `json:"grant,omitempty"`
	Free      *Free      `json:"free,omitempty"`
	Adopt     *Adopt     `json:"adopt,omitempty"`
	Rebuilt   *Rebuilt   `json:"rebuilt,omitempty"`

	Claim    *Claim    `json:"claim,omitempty"`
	Mark     *Mark     `json:"mark,omitempty"`
	Skip     *Skip     `json:"skip,omitempty"`
	PauseJob *PauseJob `json:"pause_job,omitempty"`
}

// Elect announces a new leader; a lower term than the newest is stale.
type Elect struct {
	Machine string `json:"machine"`
	Epoch   uint64 `json:"epoch"`
}

// Begin commits an operation's intent. Rejected while the service has an open one.
type Begin struct {
	Service string    `json:"service"`
	Kind    OpKind    `json:"kind"`
	Machine string    `json:"machine,omitempty"`
	From    int       `json:"from"`
	To      int       `json:"to"`
	Code    string    `json:"code"`
	Reason  string    `json:"reason"`
	Manual  bool      `json:"manual,omitempty"`
	Rule    bool      `json:"rule,omitempty"`    // a rule asked for it: it counts as a turn of direction
	Trigger *Addition `json:"trigger,omitempty"` // remembered against "no improvement"
}

// Advance moves an operation on. Rejected if the operation is not at step From.
type Advance struct {
	Op      string `json:"op"`
	From    Step   `json:"from"`
	To      Step   `json:"to"`
	Machine string `json:"machine,omitempty"` // sets it if not empty
	Name    string `json:"name,omitempty"`    // sets it if not empty
	Detail  string `json:"detail,omitempty"`
	Tries   int    `json:"tries,omitempty"`
	Region  string `json:"region,omitempty"` // sets it if not empty
	Avoid   *Avoid `json:"avoid,omitempty"`  // of the machine that the operation had
	Drop    bool   `json:"drop,omitempty"`   // the operation turns from the machine that it had
}

// Outcome is how an operation ended.
type Outcome string

// The outcomes.
const (
	Done      Outcome = "done"
	Failed    Outcome = "failed"
	Abandoned Outcome = "abandoned" // overtaken by the facts: nothing left to do
)

// Finish closes an operation.
type Finish struct {
	Op            string    `json:"op"`
	Outcome       Outcome   `json:"outcome"`
	Reason        string    `json:"reason"`
	To            int       `json:"to"` // machines that run now
	CooldownUntil time.Time `json:"cooldown_until,omitzero"`
	BreakerUntil  time.Time `json:"breaker_until,omitzero"`
	Avoid         *Avoid    `json:"avoid,omitempty"` // of the operation's machine
}

// Wait holds an operation until something outside, a deploy, is over; an empty
// reason lets it go on. The clock of its step then starts anew.
type Wait struct {
	Op     string `json:"op"`
	Reason string `json:"reason,omitempty"`
}

// Meter says how many machines of a service cost from now on.
type Meter struct {
	Service string `json:"service"`
	Running int    `json:"running"`
}

// Pause stops scaling of a service until a time.
type Pause struct {
	Service string    `json:"service"`
	Until   time.Time `json:"until"`
	Reason  string    `json:"reason"`
}

// Resume ends a pause.
type Resume struct {
	Service string `json:"service"`
}

// Scale records a size that a person asked for.
type Scale struct {
	Service string `json:"service"`
	Target  int    `json:"target"`
	Reason  string `json:"reason"`
}

// Settle forgets what is over: a reached (or impossible) manual size, the
// additions of a breach that has ended.
type Settle struct {
	Service   string `json:"service"`
	Manual    bool   `json:"manual,omitempty"`
	Additions bool   `json:"additions,omitempty"`
	Reason    string `json:"reason,omitempty"` // why a manual size was given up; empty: reached
}

// Pin makes a machine the service's primary.
type Pin struct {
	Service string `json:"service"`
	Machine string `json:"machine"`
	Reason  string `json:"reason"`
}

// Admit lets one boot of a gated service's machine be ready.
type Admit struct {
	Service string `json:"service"`
	Machine string `json:"machine"`
	Boot    string `json:"boot"`
}

// Revoke takes an admission back.
type Revoke struct {
	Service string `json:"service"`
	Machine string `json:"machine"`
	Reason  string `json:"reason"`
}

// Note adds an event and changes nothing else.
type Note struct {
	Kind    string `json:"kind"`
	Service string `json:"service,omitempty"`
	Machine string `json:"machine,omitempty"`
	Reason  string `json:"reason"`
}

// Encode returns the log form of a command.
func (c Command) Encode() ([]byte, error) {
	c.V = Version
	b, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode command: %w", err)
	}
	return b, nil
}

// Rejection says why a command changed nothing.
type Rejection string

// The rejections.
const (
	Stale    Rejection = "stale"     // from an older term, or the operation has moved on
	Conflict Rejection = "conflict"  // the service already has an open operation
	NoSuch   Rejection = "no_such"   // operation or service unknown
	BadEntry Rejection = "bad_entry" // cannot be decoded, or from a newer version
)

// ErrRejected is wrapped by the error of a Result with a Rejection.
var ErrRejected = errors.New("command rejected")

// Result is the answer of Apply.
type Result struct {
	Index     uint64    `json:"index"`
	Op        string    `json:"op,omitempty"`    // the operation begun or moved
	Token     string    `json:"token,omitempty"` // of the lock granted or freed
	Rejection Rejection `json:"rejection,omitempty"`
	Detail    string    `json:"detail,omitempty"`
}

// Err returns nil, or an error that wraps ErrRejected.
func (r Result) Err() error {
	if r.Rejection == "" {
		return nil
	}
	return fmt.Errorf("%w: %s: %s", ErrRejected, r.Rejection, r.Detail)
}
