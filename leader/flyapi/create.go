package flyapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"time"

	fly "github.com/superfly/fly-go"

	"flymesh/leader"
)

// burstEnv marks, in a created machine's environment, one that is not part of
// the baseline: its agent stands for no vote.
const burstEnv = "FLYMESH_BURST"

// nameLooks is how often the machine that has the name is looked for when the
// API does not say which it is; its listing may be behind its name check.
const (
	nameLooks = 3
	namePause = 1500 * time.Millisecond
)

// takenBy finds the machine's ID in the text of a name conflict.
var takenBy = regexp.MustCompile(`machine ID ([0-9A-Za-z]+) already exists`)

// Create creates a machine with the template's config. The name makes it safe
// to repeat: the machine that has it already is returned if it was made for
// the same operation.
func (c *Client) Create(ctx context.Context, r leader.CreateRequest) (leader.Machine, error) {
	if !validName.MatchString(r.Name) {
		return leader.Machine{}, invalid(ActCreate, "%q is not a machine name", r.Name)
	}
	tpl, err := c.get(ctx, r.App, r.Template)
	if err != nil {
		return leader.Machine{}, fmt.Errorf("read template of new machine: %w", err)
	}
	if tpl.Config == nil || !hostOK(tpl) {
		// What an unreachable host leaves of a config is not fit to copy.
		return leader.Machine{}, &leader.CloudError{Action: string(ActCreate), Fault: leader.Retry,
			Err: fmt.Errorf("config of template %s cannot be read: its host is %s", r.Template, tpl.HostStatus)}
	}
	cfg, err := copyConfig(tpl.Config, r.Op)
	if err != nil {
		return leader.Machine{}, invalid(ActCreate, "copy config of template %s: %w", r.Template, err)
	}
	in := fly.LaunchMachineInput{Name: r.Name, Region: r.Region, Config: cfg}
	if in.Region == "" {
		in.Region = tpl.Region
	}
	var made *fly.Machine
	err = c.do(ctx, ActCreate, r.App, "", func(ctx context.Context, a *appClient) (err error) {
		if made, err = a.fly.Launch(ctx, r.App, in); err == nil && made.ID == "" {
			err = errors.New("answer names no machine")
		}
		return err
	})
	if answered(err, 409, "already_exists", "unique machine name") {
		return c.adopt(ctx, r, err)
	}
	if err != nil {
		return leader.Machine{}, err
	}
	m := toMachine(r.App, wireMachine{Machine: *made})
	c.overlay.create(m)
	return m, nil
}

// adopt returns the machine that has the request's name.
func (c *Client) adopt(ctx context.Context, r leader.CreateRequest, conflict error) (leader.Machine, error) {
	ctx, cancel := context.WithTimeout(ctx, ActCreate.deadline())
	defer cancel()
	m, err := c.named(ctx, r, conflict)
	if err != nil {
		return leader.Machine{}, err
	}
	if cfg := m.GetConfig(); cfg != nil && hostOK(m) && cfg.Metadata[leader.MetaOp] != r.Op {
		return leader.Machine{}, invalid(ActCreate, "name %s belongs to machine %s, which operation %s did not make", r.Name, m.ID, r.Op)
	}
	out := toMachine(r.App, wireMachine{Machine: *m})
	c.overlay.create(out)
	return c.overlay.apply(out), nil
}

// named looks the machine up by the ID in the conflict's text, else by name.
// If it cannot be found yet, the error stays Unknown.
func (c *Client) named(ctx context.Context, r leader.CreateRequest, conflict error) (*fly.Machine, error) {
	var a *answerError
	if errors.As(conflict, &a) {
		if id := takenBy.FindStringSubmatch(a.body); id != nil {
			if m, err := c.get(ctx, r.App, id[1]); err == nil && m.Name == r.Name {
				return m, nil
			}
		}
	}
	for n := 1; ; n++ {
		m, err := c.findName(ctx, r.App, r.Name)
		if err == nil && m != nil {
			// The listing may lack what only the machine's own host knows.
			if full, err := c.get(ctx, r.App, m.ID); err == nil {
				return full, nil
			}
			return m, nil
		}
		if n == nameLooks || !sleep(ctx, namePause) {
			return nil, conflict
		}
	}
}

// copyConfig returns a deep copy of a template's config without what belongs
// to that one machine: volumes, standby duty, schedule, self-destruction and
// every metadata key that is not named here.
func copyConfig(tpl *fly.MachineConfig, op string) (*fly.MachineConfig, error) {
	b, err := json.Marshal(tpl)
	if err != nil {
		return nil, fmt.Errorf("encode config: %w", err)
	}
	cfg := new(fly.MachineConfig)
	if err := json.Unmarshal(b, cfg); err != nil {
		return nil, fmt.Errorf("decode config: %w", err)
	}
	cfg.Mounts, cfg.Standbys, cfg.Schedule, cfg.AutoDestroy = nil, nil, "", false
	group := tpl.ProcessGroup()
	if group == "" {
		group = fly.MachineProcessGroupApp
	}
	cfg.Metadata = map[string]string{
		fly.MachineConfigMetadataKeyFlyPlatformVersion: fly.MachineFlyPlatformVersion2,
		fly.MachineConfigMetadataKeyFlyProcessGroup:    group,
		leader.MetaOp: op,
	}
	for _, k := range []string{fly.MachineConfigMetadataKeyFlyReleaseId, fly.MachineConfigMetadataKeyFlyReleaseVersion} {
		if v := tpl.Metadata[k]; v != "" {
			cfg.Metadata[k] = v
		}
	}
	env := maps.Clone(tpl.Env)
	if env == nil {
		env = map[string]string{}
	}
	env[burstEnv] = "1"
	cfg.Env = env
	return cfg, nil
}
