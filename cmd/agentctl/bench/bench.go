// Package bench is `agentctl bench`: what an agent costs and how fast the mesh
// is, measured on real processes of this computer, beside the goals and the
// figures of its neighbours.
//
// Everything runs on the emulator of the Machines API without CPU quotas:
// supervisor, mesh half and a stand-in app per machine. Run owns all of it and
// ends it before it returns. A figure that cannot be taken here (for want of
// rights, say) is printed as such, never guessed.
package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"time"
)

// Common is what all parts share.
type Common struct {
	Agent string `type:"path" help:"the agent binary (default: the file agent beside this program)"`
	State string `type:"path" help:"directory for logs and files, kept at the end (default: a temporary one, removed)"`
	JSON  bool   `help:"print the figures as JSON"`
}

// IdleOptions is the command line of `bench idle`.
type IdleOptions struct {
	Common
	For    time.Duration `default:"60s" help:"how long to measure"`
	Settle time.Duration `default:"20s" help:"how long to wait before, once every agent is ready"`
	Agents int           `default:"4" help:"agents: three voters, the rest plain"`
	Redis  string        `help:"host:port of a Redis for the probe (default: one is started)"`
}

// FailoverOptions is the command line of `bench failover`.
type FailoverOptions struct {
	Common
	Profile   string `default:"default" enum:"fast,default,wide" help:"raft timeouts (${enum})"`
	Kills     int    `default:"30" help:"how often the leader is killed"`
	Silences  int    `default:"10" help:"how often it is stopped instead, so that its connections stay"`
	Transfers int    `default:"10" help:"how often the leader is ended in order"`
	Proposals int    `default:"400" help:"commits that are timed, over the leader's socket and over another's"`
	Restarts  int    `default:"1" help:"how often all machines are restarted at once"`

	Busy time.Duration `default:"30s" help:"how long to burn all cores beside the mesh"`
}

// AllOptions is the command line of plain `bench`.
type AllOptions struct {
	Common
	For   time.Duration `default:"60s" help:"how long to measure an idle mesh"`
	Kills int           `default:"8" help:"how often the leader is killed"`
}

// RunIdle measures an idle mesh.
func RunIdle(ctx context.Context, o IdleOptions, stdout, stderr io.Writer) error {
	c, err := open(o.Common, stdout, stderr)
	if err != nil {
		return err
	}
	r, err := c.idle(ctx, o)
	if err != nil {
		return err
	}
	return c.done(r)
}

// RunFailover measures changes of the leader.
func RunFailover(ctx context.Context, o FailoverOptions, stdout, stderr io.Writer) error {
	c, err := open(o.Common, stdout, stderr)
	if err != nil {
		return err
	}
	r, err := c.failover(ctx, o)
	if err != nil {
		return err
	}
	return c.done(r)
}

// RunAll measures an idle mesh and then a few changes of its leader.
func RunAll(ctx context.Context, o AllOptions, stdout, stderr io.Writer) error {
	c, err := open(o.Common, stdout, stderr)
	if err != nil {
		return err
	}
	idle, err := c.idle(ctx, IdleOptions{Common: o.Common, For: o.For, Settle: 20 * time.Second, Agents: 4})
	if err != nil {
		return err
	}
	fail, err := c.failover(ctx, FailoverOptions{Common: o.Common, Profile: "default", Kills: o.Kills, Silences: o.Kills / 2, Transfers: 5, Proposals: 200, Restarts: 1})
	if err != nil {
		return err
	}
	return c.done(append(idle, fail...))
}

// Figure is one measured value beside what it should be.
type Figure struct {
	Part  string `json:"part"`
	What  string `json:"what"`
	Value string `json:"value"`
	Goal  string `json:"goal,omitempty"`  // empty: none was set
	Held  *bool  `json:"held,omitempty"`  // nil: no goal, or not measured
	Floor string `json:"floor,omitempty"` // of a bare library or a neighbour, for comparison
}

// course is one run of the command.
type course struct {
	Common
	out      io.Writer // figures
	progress io.Writer
	began    time.Time
}

func open(o Common, stdout, stderr io.Writer) (*course, error) {
	path, err := agentBinary(o.Agent)
	if err != nil {
		return nil, err
	}
	o.Agent = path
	c := &course{Common: o, out: stdout, progress: stdout, began: time.Now()}
	if o.JSON {
		c.progress = stderr
	}
	c.say("%s, %d cores, %s", machineName(), runtime.NumCPU(), loadNow())
	return c, nil
}

// say prints one line of progress.
func (c *course) say(format string, args ...any) {
	fmt.Fprintf(c.progress, "%6.1fs  %s\n", time.Since(c.began).Seconds(), fmt.Sprintf(format, args...))
}

// done prints the figures.
func (c *course) done(fs []Figure) error {
	if c.JSON {
		if err := json.NewEncoder(c.out).Encode(fs); err != nil {
			return fmt.Errorf("print figures: %w", err)
		}
		return nil
	}
	return printFigures(c.out, fs)
}
