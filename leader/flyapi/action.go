package flyapi

import "time"

// Action is one kind of call. The set is closed: it is a metric label and,
// with a machine or app, what the API's rate limit counts.
type Action string

// The actions.
const (
	ActList           Action = "list"
	ActGet            Action = "get"
	ActCreate         Action = "create"
	ActStart          Action = "start"
	ActStop           Action = "stop"
	ActSuspend        Action = "suspend"
	ActDestroy        Action = "destroy"
	ActCordon         Action = "cordon"
	ActUncordon       Action = "uncordon"
	ActSetMetadata    Action = "set_metadata"
	ActDeleteMetadata Action = "delete_metadata"
	ActLease          Action = "lease"
	ActReleaseLease   Action = "release_lease"
	ActFindLease      Action = "find_lease"
)

// reads reports whether a call changes nothing, so that a lost answer means
// that nothing happened and the call may be repeated.
func (a Action) reads() bool {
	switch a {
	case ActList, ActGet, ActFindLease:
		return true
	}
	return false
}

// deadline bounds one call of the action, its wait for the rate limiter and
// the repeats of a read included. Create waits for a host to be found, stop,
// suspend and destroy block while somebody else holds the machine's lease.
func (a Action) deadline() time.Duration {
	switch a {
	case ActCreate:
		return 60 * time.Second
	case ActStart, ActStop, ActSuspend, ActDestroy:
		return 30 * time.Second
	case ActList:
		return 15 * time.Second
	}
	return 10 * time.Second
}
