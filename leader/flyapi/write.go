package flyapi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	fly "github.com/superfly/fly-go"

	"flymesh/leader"
)

// lookAfter bounds the look at a machine's lease after a call that timed out.
const lookAfter = 3 * time.Second

// Start starts a machine. That it runs or is starting already is success.
func (c *Client) Start(ctx context.Context, app, id string) error {
	err := c.machine(ctx, ActStart, app, id, func(ctx context.Context, a *appClient) error {
		_, err := a.fly.Start(ctx, app, id, "")
		return err
	})
	if err == nil || answered(err, 409, "still attempting to start") ||
		answered(err, 412, "current state: 'started'", "current state: 'starting'", "already started") {
		c.overlay.setState(app, id, "starting")
		return nil
	}
	return err
}

// Stop tells a machine to stop; the process has timeout to end, the machine's
// own kill timeout if it is zero. That it is stopped already is success. While
// somebody else holds the machine's lease the API lets the call wait: a call
// that ran into its deadline is Leased if a lease is found then, else Unknown,
// and the machine may still stop later in either case.
func (c *Client) Stop(ctx context.Context, app, id string, timeout time.Duration) error {
	err := c.machine(ctx, ActStop, app, id, func(ctx context.Context, a *appClient) error {
		return a.fly.Stop(ctx, app, fly.StopMachineInput{ID: id, Timeout: fly.Duration{Duration: timeout}}, "")
	})
	if err == nil || answered(err, 412, "current state: 'stopped'", "current state: 'stopping'", "already stopped") ||
		answered(err, 409, "already stopped") {
		c.overlay.setState(app, id, "stopping")
		return nil
	}
	return c.explain(ctx, app, id, err)
}

// Suspend suspends a machine. That it is suspended already is success.
func (c *Client) Suspend(ctx context.Context, app, id string) error {
	err := c.machine(ctx, ActSuspend, app, id, func(ctx context.Context, a *appClient) error {
		return a.fly.Suspend(ctx, app, id, "")
	})
	if err == nil || answered(err, 412, "current state: 'suspend") {
		c.overlay.setState(app, id, "stopping")
		return nil
	}
	return c.explain(ctx, app, id, err)
}

// Destroy destroys a machine that does not run. That there is none is success.
func (c *Client) Destroy(ctx context.Context, app, id string) error {
	err := c.machine(ctx, ActDestroy, app, id, func(ctx context.Context, a *appClient) error {
		return a.fly.Destroy(ctx, app, fly.RemoveMachineInput{ID: id}, "")
	})
	if err == nil || answered(err, 404, "machine") {
		c.overlay.forget(app, id)
		return nil
	}
	return c.explain(ctx, app, id, err)
}

// Cordon takes a machine out of Fly Proxy's routing.
func (c *Client) Cordon(ctx context.Context, app, id string) error {
	err := c.machine(ctx, ActCordon, app, id, func(ctx context.Context, a *appClient) error { return a.fly.Cordon(ctx, app, id, "") })
	if err == nil {
		c.overlay.setCordon(app, id, true)
	}
	return err
}

// Uncordon puts a machine back into Fly Proxy's routing.
func (c *Client) Uncordon(ctx context.Context, app, id string) error {
	err := c.machine(ctx, ActUncordon, app, id, func(ctx context.Context, a *appClient) error { return a.fly.Uncordon(ctx, app, id, "") })
	if err == nil {
		c.overlay.setCordon(app, id, false)
	}
	return err
}

// SetMetadata sets one metadata key of a machine; an empty value removes it.
// The machine's version does not change.
func (c *Client) SetMetadata(ctx context.Context, app, id, key, value string) error {
	act := ActSetMetadata
	if value == "" {
		act = ActDeleteMetadata
	}
	if !validName.MatchString(key) {
		return invalid(act, "%q is not a metadata key", key)
	}
	err := c.machine(ctx, act, app, id, func(ctx context.Context, a *appClient) error {
		if value == "" {
			return a.fly.DeleteMetadata(ctx, app, id, key)
		}
		return a.fly.SetMetadata(ctx, app, id, key, value)
	})
	if value == "" && answered(err, 404, "metadata", "key") {
		err = nil
	}
	if err == nil {
		c.overlay.setMeta(app, id, key, value)
	}
	return err
}

// machine is do for a call that needs a machine.
func (c *Client) machine(ctx context.Context, act Action, app, id string, f func(context.Context, *appClient) error) error {
	if id == "" {
		return invalid(act, "machine ID is empty")
	}
	return c.do(ctx, act, app, id, f)
}

// explain tells a call that got no answer in time from one that waits for
// somebody else's lease.
func (c *Client) explain(ctx context.Context, app, id string, err error) error {
	var ce *leader.CloudError
	if !errors.As(err, &ce) || ce.Fault != leader.Unknown || ce.Status != 0 || ctx.Err() != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, lookAfter)
	defer cancel()
	owner, held, ferr := c.findLease(ctx, app, id)
	if ferr != nil || !held {
		return err
	}
	return &leader.CloudError{Action: ce.Action, Fault: leader.Leased,
		Err: fmt.Errorf("%w; %s holds the machine's lease, and it may still happen when that ends", ce.Err, owner)}
}

// answered reports whether a call was answered with the status and a body that
// has one of the texts.
func answered(err error, status int, texts ...string) bool {
	var a *answerError
	if !errors.As(err, &a) || a.status != status {
		return false
	}
	body := strings.ToLower(a.body)
	for _, t := range texts {
		if strings.Contains(body, t) {
			return true
		}
	}
	return false
}

// invalid is the error of a call that is not sent because it makes no sense.
func invalid(act Action, format string, args ...any) error {
	return &leader.CloudError{Action: string(act), Fault: leader.Invalid, Err: fmt.Errorf(format, args...)}
}
