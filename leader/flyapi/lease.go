package flyapi

import (
	"context"
	"fmt"
	"net/http"
	"time"

	fly "github.com/superfly/fly-go"

	"flymesh/leader"
)

// lease takes the API lease of a machine and returns its nonce. It is an own
// request, sent once: fly-go's AcquireLease repeats every error for a minute.
func (c *Client) lease(ctx context.Context, app, id string, ttl time.Duration, why string) (nonce string, err error) {
	secs := int(ttl.Round(time.Second).Seconds())
	if secs < 1 {
		return "", invalid(ActLease, "lease of %s is too short", ttl)
	}
	var out fly.MachineLease
	err = c.machine(ctx, ActLease, app, id, func(ctx context.Context, a *appClient) error {
		in := map[string]any{"ttl": secs, "description": why}
		// The documentation has the ttl in the body, the stock client in the query.
		path := fmt.Sprintf("/apps/%s/machines/%s/lease?ttl=%d", app, id, secs)
		return a.raw(ctx, http.MethodPost, path, "", in, &out)
	})
	if err != nil {
		return "", err
	}
	if out.Data == nil || out.Data.Nonce == "" {
		return "", &leader.CloudError{Action: string(ActLease), Fault: leader.Unknown, Err: fmt.Errorf("answer %q has no lease", out.Status)}
	}
	return out.Data.Nonce, nil
}

// releaseLease gives a lease back. That it is over already is success.
func (c *Client) releaseLease(ctx context.Context, app, id, nonce string) error {
	err := c.machine(ctx, ActReleaseLease, app, id, func(ctx context.Context, a *appClient) error {
		return a.raw(ctx, http.MethodDelete, "/apps/"+app+"/machines/"+id+"/lease", nonce, nil, nil)
	})
	if answered(err, http.StatusNotFound, "lease") {
		return nil
	}
	return err
}

// findLease tells who holds the lease of a machine.
func (c *Client) findLease(ctx context.Context, app, id string) (owner string, held bool, err error) {
	var out *fly.MachineLease
	err = c.machine(ctx, ActFindLease, app, id, func(ctx context.Context, a *appClient) (err error) {
		out, err = a.fly.FindLease(ctx, app, id)
		return err
	})
	switch {
	case leader.FaultOf(err) == leader.Gone:
		return "", false, nil
	case err != nil:
		return "", false, err
	case out.Data == nil:
		return "", false, nil
	}
	owner = out.Data.Owner
	if owner == "" {
		owner = "somebody"
	}
	return owner, true, nil
}
