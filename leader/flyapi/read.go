package flyapi

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"

	fly "github.com/superfly/fly-go"

	"flymesh/leader"
)

// List returns every machine of the app that is not destroyed, by ID. What
// this client did a moment ago is in it: see overlay.
func (c *Client) List(ctx context.Context, app string) ([]leader.Machine, error) {
	wire, err := c.list(ctx, app)
	if err != nil {
		return nil, err
	}
	out := make([]leader.Machine, 0, len(wire))
	listed := map[string]bool{}
	for _, w := range wire {
		listed[w.ID] = true
		if w.State == fly.MachineStateDestroyed {
			c.overlay.forget(app, w.ID)
			continue
		}
		out = append(out, c.overlay.apply(toMachine(app, w)))
	}
	for _, m := range c.overlay.missing(app, listed) {
		switch got, err := c.Get(ctx, app, m.machine.ID); {
		case err == nil && got.State != fly.MachineStateDestroyed:
			out = append(out, got)
		case err == nil || leader.FaultOf(err) == leader.Gone:
			c.overlay.forget(app, m.machine.ID)
		default: // it cannot be asked for now: better one too many
			out = append(out, c.overlay.apply(m.machine))
		}
	}
	slices.SortFunc(out, func(a, b leader.Machine) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

// Get returns one machine. A machine that this client created a moment ago and
// that the API does not find yet is returned as it was created.
func (c *Client) Get(ctx context.Context, app, id string) (leader.Machine, error) {
	w, err := c.get(ctx, app, id)
	if err != nil {
		if m, ok := c.overlay.justCreated(app, id); ok && leader.FaultOf(err) == leader.Gone {
			return c.overlay.apply(m), nil
		}
		return leader.Machine{}, err
	}
	return c.overlay.apply(toMachine(app, wireMachine{Machine: *w})), nil
}

// list asks for all machines of an app with their leases, past the overlay.
// The answer is of after the call, but may be shared: not to be changed.
func (c *Client) list(ctx context.Context, app string) ([]wireMachine, error) {
	return c.flights.share(ctx, app, func(sent func()) ([]wireMachine, error) {
		var out []wireMachine
		err := c.do(ctx, ActList, app, "", func(ctx context.Context, a *appClient) error {
			sent()
			out = nil
			return a.raw(ctx, http.MethodGet, "/apps/"+app+"/machines?"+url.Values{"include_leases": {"true"}}.Encode(), "", nil, &out)
		})
		if err != nil {
			return nil, err
		}
		out = slices.DeleteFunc(out, func(w wireMachine) bool { return w.ID == "" })
		for _, a := range c.arbiters {
			if a.app == app {
				a.took(out)
			}
		}
		return out, nil
	})
}

// get asks for one machine past the overlay.
func (c *Client) get(ctx context.Context, app, id string) (*fly.Machine, error) {
	var out *fly.Machine
	err := c.machine(ctx, ActGet, app, id, func(ctx context.Context, a *appClient) (err error) {
		out, err = a.fly.Get(ctx, app, id)
		return err
	})
	return out, err
}

// findName looks for a machine by name in the API's own words.
func (c *Client) findName(ctx context.Context, app, name string) (*fly.Machine, error) {
	wire, err := c.list(ctx, app)
	if err != nil {
		return nil, err
	}
	for _, w := range wire {
		if w.Name == name && w.State != fly.MachineStateDestroyed {
			return &w.Machine, nil
		}
	}
	return nil, nil
}
