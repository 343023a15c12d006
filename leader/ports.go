package leader

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Machine is one Fly Machine as the Machines API tells it, reduced to what
// the leader uses.
type Machine struct {
	ID         string
	Name       string
	App        string
	Group      string // process group: metadata fly_process_group, "app" if absent
	Region     string
	State      string // created, started, stopped, suspended, starting, stopping, destroying, ...
	InstanceID string // changes with each update
	PrivateIP  string
	Created    time.Time
	Started    time.Time // newest start event; zero if none is listed
	Release    string    // metadata fly_release_version
	Metadata   map[string]string
	HostOK     bool // host_status is ok
	Cordoned   bool
	Mounts     bool   // has a volume: cannot be copied
	Standby    bool   // stands by for another machine
	Special    bool   // release command, console or test machine: never ours
	Autostop   bool   // Fly Proxy may stop it
	Autostart  bool   // Fly Proxy may start it
	LeaseOwner string // who holds its lease, if the listing says so
}

// CreateRequest asks for one machine that copies a template's config.
type CreateRequest struct {
	App      string
	Name     string // deterministic per operation: the API's idempotency key
	Template string // ID of a healthy machine of the group, whose config is copied
	Region   string // empty: the template's
	Op       string // operation ID, kept in metadata flymesh_op
}

// Cloud is the Machines API as the leader needs it. Every method has its own
// deadline inside, is rate limited, and fails with a *CloudError. Create and
// Start are sent at most once: a lost answer is Unknown, never a retry. A call
// that changes something asks the context's check (see WithCheck) when nothing
// is left to wait for, and is not sent if that fails.
type Cloud interface {
	// List returns every machine of the app that is not destroyed, read-your-writes.
	List(ctx context.Context, app string) ([]Machine, error)
	Get(ctx context.Context, app, id string) (Machine, error)
	// Create returns the new machine, or the one that already has the name.
	Create(ctx context.Context, r CreateRequest) (Machine, error)
	Start(ctx context.Context, app, id string) error
	Stop(ctx context.Context, app, id string, timeout time.Duration) error
	// Suspend fails with Invalid where the platform cannot suspend the machine.
	Suspend(ctx context.Context, app, id string) error
	Cordon(ctx context.Context, app, id string) error
	Uncordon(ctx context.Context, app, id string) error
	SetMetadata(ctx context.Context, app, id, key, value string) error
}

type checkKey struct{}

// WithCheck returns a context for calls that change something: the Cloud asks
// check right before it sends one, after every wait of its own.
func WithCheck(ctx context.Context, check func(context.Context) error) context.Context {
	return context.WithValue(ctx, checkKey{}, check)
}

// Check asks the check of WithCheck; without one nothing stands in the way.
func Check(ctx context.Context) error {
	if check, ok := ctx.Value(checkKey{}).(func(context.Context) error); ok {
		return check(ctx)
	}
	return nil
}

// Fault classifies a failed call: what it means and so what to do.
type Fault string

// The faults. The set is closed; metrics use it as a label.
const (
	Unknown    Fault = "unknown"     // the outcome is not known: look it up, never repeat blindly
	Retry      Fault = "retry"       // nothing happened; the same call may work later (429, 500, 503, API down)
	TooEarly   Fault = "too_early"   // the machine is not in a state for it yet: retry after it settles
	Leased     Fault = "leased"      // somebody else, usually a deploy, holds the machine
	Replacing  Fault = "replacing"   // a deploy is replacing it
	HostFull   Fault = "host_full"   // this machine cannot start where it is: create elsewhere
	RegionFull Fault = "region_full" // no host in the region
	Quota      Fault = "quota"       // account limit: stop trying, tell a person
	Gone       Fault = "gone"        // no such machine or app
	Denied     Fault = "denied"      // token missing or refused
	Invalid    Fault = "invalid"     // the request is wrong: a defect of ours
)

// CloudError is a classified failure of a Machines API call.
type CloudError struct {
	Action string // list, get, create, start, stop, ...
	Fault  Fault
	Status int // HTTP status; 0 if no answer came
	Err    error
}

// Error says "action: fault: cause".
func (e *CloudError) Error() string {
	return fmt.Sprintf("%s machine: %s: %v", e.Action, e.Fault, e.Err)
}

// Unwrap returns the cause.
func (e *CloudError) Unwrap() error { return e.Err }

// FaultOf returns the fault of an error from Cloud, Unknown for any other error.
func FaultOf(err error) Fault {
	var ce *CloudError
	if errors.As(err, &ce) {
		return ce.Fault
	}
	return Unknown
}

// faultOf is FaultOf with "" for no error, so that a switch can tell success.
func faultOf(err error) Fault {
	if err == nil {
		return ""
	}
	return FaultOf(err)
}

// DrainResult is an agent's answer to a drain.
type DrainResult struct {
	Done     bool   // nothing is in flight and nothing is busy
	InFlight int    // requests still running
	Busy     string // what keeps it busy, if anything
}

// Agents reaches the agent of one machine over the mesh API.
type Agents interface {
	// Drain asks the agent to answer 503 on /health and waits until nothing is
	// in flight or the deadline passes.
	Drain(ctx context.Context, machine string, deadline time.Duration) (DrainResult, error)
	// Undrain takes a drain back.
	Undrain(ctx context.Context, machine string) error
	// Admit tells a gated agent that the leader has committed its admission.
	Admit(ctx context.Context, machine, boot string) error
	// Revoke tells it that the leader has taken that admission back.
	Revoke(ctx context.Context, machine, boot string) error
}
