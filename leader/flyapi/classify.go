package flyapi

import (
	"errors"
	"net/http"
	"slices"
	"strings"

	"flymesh/leader"
)

// rule maps an answer to a fault. The first that matches wins.
type rule struct {
	status  int      // 0: any
	actions []Action // nil: any
	text    []string // any of them in the lower-cased body; nil: any body
	fault   leader.Fault
}

// rules are the answers whose body says what they mean. The texts are those
// that the API's users report; a new wording falls to the status alone.
var rules = []rule{
	// A manifest is not found for a moment after its image was pushed.
	{text: []string{"manifest_unknown", "manifest unknown"}, fault: leader.Retry},

	{status: 400, text: []string{"no capacity"}, fault: leader.RegionFull},
	{status: 403, text: []string{"quota"}, fault: leader.Quota},
	{status: 404, text: []string{"page not found"}, fault: leader.Invalid}, // no such route

	// The name is taken: an earlier create worked. Who has it must be looked up.
	{status: 409, text: []string{"already_exists", "unique machine name"}, fault: leader.Unknown},
	{status: 409, text: []string{"lease currently held"}, fault: leader.Leased},
	{status: 409, text: []string{"concurrent update"}, fault: leader.Leased},
	{status: 409, text: []string{"still attempting to start"}, fault: leader.TooEarly},
	{status: 409, text: []string{"could not reserve resource", "insufficient memory", "insufficient cpus", "insufficient ips",
		"no capacity", "governor policy", "deploys to this host are temporarily disabled"}, fault: leader.HostFull},
	{status: 409, actions: []Action{ActCreate}, fault: leader.Retry},

	{status: 412, text: []string{"getting replaced", "current state: 'replacing'"}, fault: leader.Replacing},
	{status: 412, text: []string{"current state: 'destroy"}, fault: leader.Gone},
	{status: 412, text: []string{"volume_placement_capacity", "insufficient resources"}, fault: leader.HostFull},
	{status: 412, text: []string{"volume"}, fault: leader.Invalid}, // claimed by or bound to another machine

	{status: 422, text: []string{"insufficient_capacity", "could not find a candidate host"}, fault: leader.RegionFull},
	{status: 422, text: []string{"limit", "payment", "quota", "billing"}, fault: leader.Quota},

	// The host does not answer: the API passed nothing on. Start elsewhere.
	{status: 503, actions: []Action{ActStart}, text: []string{"unreachable"}, fault: leader.HostFull},
	{status: 503, text: []string{"unreachable"}, fault: leader.Retry},
}

// Classify says what a failed call means: of an answer by its status and body,
// of a request without an answer (status 0) by its error. What is not known to
// have done nothing is Unknown for a write; for a read it is Retry. A 500 is
// taken for "nothing happened" only where doing it twice does no harm.
func Classify(a Action, status int, body string, err error) leader.Fault {
	body = strings.ToLower(body)
	if status != 0 {
		for _, r := range rules {
			if (r.status == 0 || r.status == status) && (r.actions == nil || slices.Contains(r.actions, a)) &&
				(r.text == nil || slices.ContainsFunc(r.text, func(t string) bool { return strings.Contains(body, t) })) {
				return r.fault
			}
		}
	}
	switch {
	case status == 0 && errors.Is(err, errNotSent):
		return leader.Retry
	case status == http.StatusTooManyRequests:
		return leader.Retry
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return leader.Denied
	case status == http.StatusPaymentRequired:
		return leader.Quota
	case status == http.StatusNotFound || status == http.StatusGone:
		return leader.Gone
	case status == http.StatusConflict || status == http.StatusPreconditionFailed:
		return leader.TooEarly
	case status == http.StatusInternalServerError && a != ActCreate && a != ActStart:
		return leader.Retry
	case status != http.StatusRequestTimeout && status >= 300 && status <= 499:
		return leader.Invalid
	case a.reads():
		return leader.Retry
	}
	return leader.Unknown
}
