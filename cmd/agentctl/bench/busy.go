package bench

import (
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"flymesh/cmd/agentctl/emulator"
)

// busy burns every core twice over beside the mesh, as an app under full load
// does, and counts how often the leader changes: the mesh halves have a low
// priority, and a heartbeat that comes too late costs the leadership.
func (c *course) busy(ctx context.Context, m *mesh, o FailoverOptions, s *sheet) error {
	if o.Busy <= 0 {
		return nil
	}
	before, err := m.status(ctx)
	if err != nil {
		return err
	}
	spinners := 2 * runtime.NumCPU()
	for range spinners {
		cmd := exec.Command("sh", "-c", "while :; do :; done")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("burn a core: %w", err)
		}
		defer func() {
			_ = cmd.Process.Kill() // it cannot have ended
			_ = cmd.Wait()         // by that signal
		}()
	}
	var x emulator.Machine
	for _, x = range m.Machines() {
		if x.ID == before.Leader.Machine {
			break
		}
	}
	changes, failed := 0, 0
	var commits times
	last := before
	for end := time.Now().Add(o.Busy); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(200 * time.Millisecond) {
		if now, err := m.status(ctx); err == nil && (now.Term != last.Term || now.Epoch != last.Epoch) {
			changes++
			c.say("the leader changed from %s to %s", last.Leader.Machine, now.Leader.Machine)
			last = now
		}
		began := time.Now()
		if propose(ctx, x) != nil {
			failed++
			continue
		}
		commits = append(commits, time.Since(began))
	}
	what := fmt.Sprintf("%d processes burn %d cores for %s: ", spinners, runtime.NumCPU(), o.Busy)
	s.below(what+"changes of the leader", float64(changes), 1, count, "")
	s.add(what+"commit over the unix socket", commits.spread(millis), "")
	s.below(what+"commits that failed", float64(failed), 1, count, "")
	return ctx.Err()
}
