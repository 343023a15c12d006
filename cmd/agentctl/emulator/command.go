package emulator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"text/tabwriter"
	"time"

	"flymesh/cmd/agentctl/demoapp"
)

// Run is `agentctl emulator`: it starts an Emulator, says how to reach all of
// it, and stays until ctx ends.
func Run(ctx context.Context, o Options, stdout, stderr io.Writer) error {
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	e, err := Start(ctx, o, log)
	if err != nil {
		return err
	}
	if err := e.started(ctx, 30*time.Second); err != nil {
		return errors.Join(err, e.Close())
	}
	e.print(stdout)
	<-ctx.Done()
	fmt.Fprintln(stdout, "ending every machine")
	return e.Close()
}

// started waits until the API calls every machine started. Whether its agent
// and app are ready is for the mesh to say.
func (e *Emulator) started(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for _, m := range e.Machines() {
		if err := e.server.Await(ctx, m.ID, "started"); err != nil {
			return fmt.Errorf("start emulator: %w (its log is %s)", err, m.Log)
		}
	}
	return nil
}

func (e *Emulator) print(out io.Writer) {
	self, err := os.Executable()
	if err != nil {
		self = "agentctl"
	}
	fmt.Fprintf(out, "Machines API   %s    (FLY_FLAPS_BASE_URL of every machine)\n", e.URL())
	fmt.Fprintf(out, "control        %s/_emulator/    requests, machines, usage, routes, faults\n", e.URL())
	fmt.Fprintf(out, "state          %s    (logs/ has a log per machine)\n", e.dir)
	fmt.Fprintf(out, "cpu            %s\n", e.Accounting())
	fmt.Fprintf(out, "redis          %s\n", demoapp.RedisServer())
	if os.Getenv("FLYMESH_SECRET") == "" {
		fmt.Fprintf(out, "secret         in %s, readable by you alone\n", e.SecretFile())
	} else {
		fmt.Fprintf(out, "secret         FLYMESH_SECRET of this command's environment\n")
	}
	fmt.Fprintln(out)
	t := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "SERVICE\tAPP\tPROXY\tCORES PER MACHINE\tMACHINES")
	for _, s := range e.cfg.Services {
		fmt.Fprintf(t, "%s\t%s\t%s\t%.2f\t%d, up to %d\n", s.Name, s.App, e.Proxy(s.Name), e.Cores(s.Name), s.Policy.Baseline, s.Policy.Max)
	}
	_ = t.Flush() // out is a terminal or a file; a failed line is not worth an error
	fmt.Fprintln(out)
	t = tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "MACHINE\tSERVICE\tAPP AT\tSOCKET OF ITS AGENT")
	for _, m := range e.Machines() {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", m.ID, m.Service, m.Addr, m.Socket)
	}
	_ = t.Flush()
	if ms := e.Machines(); len(ms) > 0 {
		fmt.Fprintf(out, "\nAsk any agent about the whole mesh:\n    %s status --socket %s\n", self, ms[0].Socket)
	}
	fmt.Fprintln(out, "Ctrl-C ends every machine.")
}
