// Package simulate is `agentctl simulate`: it replays what a service went
// through, as `agentctl history --csv` wrote it, on the policy of a mesh.toml,
// and says what that policy would have done, why, and what it would have cost.
//
// The policy, the samples that it reads and the state that it remembers are
// those of a leader; the fleet is made up: the measured CPU is spread over the
// machines that run in the replay, all else is as it was measured. A row is
// one sample, so decisions are as fine as the rows.
package simulate

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"flymesh/agent/config"
)

// Options is the command line.
type Options struct {
	Trace  string        `arg:"" help:"what agentctl history SERVICE --csv wrote; - reads standard input"`
	Config string        `default:"mesh.toml" type:"path" placeholder:"mesh.toml" help:"the policy to try"`
	Ready  time.Duration `default:"1m" placeholder:"1m" help:"how long an added machine takes to be ready"`
	JSON   bool          `help:"print JSON"`
}

// Run replays and prints.
func Run(o Options, stdin io.Reader, stdout io.Writer) error {
	c, err := config.Load(o.Config)
	if err != nil {
		return err
	}
	in := stdin
	if o.Trace != "-" {
		f, err := os.Open(o.Trace)
		if err != nil {
			return fmt.Errorf("read trace: %w", err)
		}
		defer f.Close()
		in = f
	}
	traces, err := read(in)
	if err != nil {
		return fmt.Errorf("read trace %s: %w", o.Trace, err)
	}
	var all []Outcome
	for _, t := range traces {
		s, ok := c.Service(t.service)
		if !ok {
			var names []string
			for _, s := range c.Services {
				names = append(names, s.Name)
			}
			return fmt.Errorf("read trace %s: column service: %q is not in %s, which has %s", o.Trace, t.service, o.Config, strings.Join(names, ", "))
		}
		x, err := run(s.Policy, t, max(0, o.Ready))
		if err != nil {
			return err
		}
		all = append(all, x)
	}
	if o.JSON {
		e := json.NewEncoder(stdout)
		e.SetEscapeHTML(false) // reasons hold > and <
		e.SetIndent("", "  ")
		return e.Encode(all)
	}
	for _, x := range all {
		if err := x.print(stdout, o.Ready); err != nil {
			return err
		}
	}
	return nil
}

func (x Outcome) print(w io.Writer, ready time.Duration) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "AT\tVERDICT\tMACHINES\tREASON\n")
	for _, d := range x.Decisions {
		size := fmt.Sprint(d.To)
		if d.From != d.To {
			size = fmt.Sprintf("%d to %d", d.From, d.To)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s: %s\n", d.At.UTC().Format(time.RFC3339), d.Verdict, size, d.Code, d.Reason)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(w, "\n%s, %d rows of %s from %s to %s\n", x.Service, x.Rows, time.Duration(x.StepMS)*time.Millisecond,
		x.From.UTC().Format(time.RFC3339), x.To.UTC().Format(time.RFC3339))
	t = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range []struct {
		what string
		Cost
	}{{"replayed", x.Replayed}, {"recorded", x.Recorded}} {
		fmt.Fprintf(t, "  %s\t%d up, %d down\t%.0f machine-seconds\t%.1f machine-hours\n", c.what, c.Ups, c.Downs, c.MachineSeconds, c.MachineSeconds/3600)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "The measured CPU is spread over the machines of the replay; latency, errors, queue and memory are as measured. "+
		"An added machine is ready after %s.\n", ready)
	return err
}
