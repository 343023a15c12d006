package flyapi

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"flymesh/leader"
)

func TestClassify(t *testing.T) {
	body := func(text string) string { return fmt.Sprintf(`{"error":%q}`, text) }
	for _, c := range []struct {
		act    Action
		status int
		body   string
		want   leader.Fault
	}{
		// start, in the words of the API's users
		{ActStart, 412, body("failed_precondition: unable to start machine from current state: 'created'"), leader.TooEarly},
		{ActStart, 412, body("failed_precondition: unable to start machine from current state: 'stopping'"), leader.TooEarly},
		{ActStart, 412, body("failed_precondition: unable to start machine from current state: 'replacing'"), leader.Replacing},
		{ActStart, 412, body("failed_precondition: unable to start machine from current state: 'destroying'"), leader.Gone},
		{ActStart, 412, body("failed_precondition: machine getting replaced, refusing to start"), leader.Replacing},
		{ActStart, 412, body("machine still active, refusing to start"), leader.TooEarly},
		{ActStart, 409, body("aborted: machine still attempting to start"), leader.TooEarly},
		{ActStart, 409, body("aborted: machine update failed due to concurrent update"), leader.Leased},
		{ActStart, 409, body("aborted: machine ID d8d lease currently held by a@b.c, expires at 2026-01-01T00:00:00Z"), leader.Leased},
		{ActStart, 409, body("aborted: could not reserve resource for machine: insufficient memory available to fulfill request"), leader.HostFull},
		{ActStart, 409, body("aborted: could not reserve resource for machine: insufficient CPUs available to fulfill request"), leader.HostFull},
		{ActStart, 409, body("insufficient IPs"), leader.HostFull},
		{ActStart, 409, body("no capacity"), leader.HostFull},
		{ActStart, 409, body("governor policy blocked start"), leader.HostFull},
		{ActStart, 409, body("deploys to this host are temporarily disabled"), leader.HostFull},
		{ActStart, 412, `{"error":"insufficient resources to create new machine with existing volume","status":"volume_placement_capacity"}`, leader.HostFull},
		{ActStart, 503, body("unavailable: host of machine d8d is unreachable"), leader.HostFull},
		// create
		{ActCreate, 409, body(`already_exists: unique machine name violation, machine ID d8d already exists with name "x"`), leader.Unknown},
		{ActCreate, 409, body("aborted: something new"), leader.Retry},
		{ActCreate, 412, body("failed_precondition: volume vol_1 is already claimed by machine d8d"), leader.Invalid},
		{ActCreate, 422, `{"error":"could not find a candidate host","status":"insufficient_capacity"}`, leader.RegionFull},
		{ActCreate, 422, `{"error":"","status":"insufficient_capacity"}`, leader.RegionFull},
		{ActCreate, 422, body("your organization has reached its machine limit"), leader.Quota},
		{ActCreate, 422, body("please add a payment method"), leader.Quota},
		{ActCreate, 422, body("config.image is required"), leader.Invalid},
		{ActCreate, 403, body("you have reached the regional memory quota"), leader.Quota},
		{ActCreate, 400, body("no capacity"), leader.RegionFull},
		{ActCreate, 400, body("invalid character 'x' looking for beginning of value"), leader.Invalid},
		{ActCreate, 404, body("MANIFEST_UNKNOWN: manifest unknown"), leader.Retry},
		{ActCreate, 402, "", leader.Quota},
		// everywhere
		{ActDestroy, 412, body("failed_precondition: unable to destroy machine, not currently stopped"), leader.TooEarly},
		{ActLease, 409, body("aborted: machine ID d8d lease currently held by a@b.c"), leader.Leased},
		{ActStop, 404, body("machine not found"), leader.Gone},
		{ActList, 404, body("app not found"), leader.Gone},
		{ActStop, 404, "404 page not found", leader.Invalid},
		{ActList, 401, body("Authenticate: token validation error"), leader.Denied},
		{ActList, 403, body("not authorized to access this app"), leader.Denied},
		{ActCreate, 429, body("rate limit exceeded"), leader.Retry},
		{ActList, 429, "", leader.Retry},
		// answers that leave open what happened
		{ActCreate, 408, body("deadline_exceeded"), leader.Unknown},
		{ActStart, 408, body("deadline_exceeded"), leader.Unknown},
		{ActCreate, 500, body("internal"), leader.Unknown},
		{ActStart, 500, body("internal"), leader.Unknown},
		{ActCordon, 500, body("internal"), leader.Retry},
		{ActStop, 500, body("internal"), leader.Retry},
		{ActCreate, 502, "<html>bad gateway</html>", leader.Unknown},
		{ActStop, 502, "", leader.Unknown},
		{ActCreate, 503, "", leader.Unknown},
		{ActStop, 503, body("unavailable: host of machine d8d is unreachable"), leader.Retry},
		{ActCreate, 504, "", leader.Unknown},
		// reads change nothing
		{ActGet, 408, "", leader.Retry},
		{ActGet, 500, "", leader.Retry},
		{ActList, 502, "", leader.Retry},
		{ActList, 503, "", leader.Retry},
		{ActList, 504, "", leader.Retry},
		{ActGet, 503, body("unavailable: host of machine d8d is unreachable"), leader.Retry},
		{ActGet, 302, "", leader.Invalid},
	} {
		if got := Classify(c.act, c.status, c.body, nil); got != c.want {
			t.Errorf("%s %d %s: got %s, want %s", c.act, c.status, c.body, got, c.want)
		}
	}
	for _, c := range []struct {
		act  Action
		err  error
		want leader.Fault
	}{
		{ActCreate, errNotSent, leader.Retry},
		{ActCreate, &sendError{notSent: true}, leader.Retry},
		{ActCreate, &sendError{cause: context.DeadlineExceeded}, leader.Unknown},
		{ActStop, &sendError{cause: context.DeadlineExceeded}, leader.Unknown},
		{ActCreate, errors.New("decode answer: unexpected EOF"), leader.Unknown},
		{ActList, errors.New("decode answer: unexpected EOF"), leader.Retry},
		{ActGet, &sendError{cause: context.DeadlineExceeded}, leader.Retry},
	} {
		if got := Classify(c.act, 0, "", c.err); got != c.want {
			t.Errorf("%s without an answer (%v): got %s, want %s", c.act, c.err, got, c.want)
		}
	}
}
