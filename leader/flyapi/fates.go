package flyapi

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	fly "github.com/superfly/fly-go"

	"flymesh/raftstore/epoch"
)

// bootMargin is by how much a start must be later than a recorded boot to be
// another one. The start event is stamped by the platform, the boot by the
// machine: two clocks. A machine's clock is the host's at boot and may lag
// some seconds after it was resumed.
const bootMargin = 2 * time.Second

// Fates says, by machine ID, what has become of recorded voters. A fate that
// proves death (Stopped, Destroyed, Rebooted) is given only on evidence that a
// lagging read or a clock that is wrong by less than bootMargin cannot fake:
//
//   - Destroyed: the API does not know the machine, and neither does the
//     listing of its app;
//   - Stopped: its host answers, and something has happened to it since the
//     recorded boot;
//   - Rebooted: it runs, an end of the machine (exit, stop, restart, update)
//     is listed after the recorded boot, and after that end a start that is
//     later than the boot by more than bootMargin.
//
// What cannot be looked up is Unknown. Of two voters on one machine the fate
// that proves less is told. The error is not nil only if nothing could be
// looked up.
func (a *Arbiter) Fates(ctx context.Context, voters []epoch.Voter) (map[string]epoch.Fate, error) {
	fates := make([]epoch.Fate, len(voters))
	errs := make([]error, len(voters))
	var wg sync.WaitGroup
	for i, v := range voters {
		wg.Go(func() { fates[i], errs[i] = a.fate(ctx, v) })
	}
	wg.Wait()
	out := map[string]epoch.Fate{}
	var failed int
	var first error
	for i, v := range voters {
		if errs[i] != nil {
			a.log.Debug("fate of voter not readable", "machine", v.Machine, "error", errs[i])
			failed++
			if first == nil {
				first = errs[i]
			}
		}
		if old, ok := out[v.Machine]; !ok || old.Dead() {
			out[v.Machine] = fates[i]
		}
	}
	if failed > 0 && failed == len(voters) {
		return out, fmt.Errorf("read fates of %d voters: %w", len(voters), first)
	}
	return out, nil
}

// fate looks one voter up.
func (a *Arbiter) fate(ctx context.Context, v epoch.Voter) (epoch.Fate, error) {
	m, err := a.client.get(ctx, v.App, v.Machine)
	if err == nil {
		return fateOf(m, v.BootAt), nil
	}
	// "app not found" proves nothing: a token or a name may be wrong.
	if !answered(err, 404, "machine not found", "machine_not_found") {
		return epoch.Unknown, err
	}
	wire, err := a.client.list(ctx, v.App)
	if err != nil {
		return epoch.Unknown, err
	}
	for _, w := range wire {
		if w.ID == v.Machine {
			if w.State == fly.MachineStateDestroyed {
				return epoch.Destroyed, nil
			}
			return epoch.Unknown, nil
		}
	}
	return epoch.Destroyed, nil
}

// fateOf judges a machine that the API knows.
func fateOf(m *fly.Machine, bootAt time.Time) epoch.Fate {
	if m.State == fly.MachineStateDestroyed {
		return epoch.Destroyed
	}
	if !hostOK(m) {
		return epoch.Unknown // the state is what was last heard of the host
	}
	events := newestFirst(m.Events)
	switch m.State {
	case fly.MachineStateStopped, "failed":
		if len(events) > 0 && !events[0].Time().After(bootAt) {
			return epoch.Unknown // told of a time before the recorded boot
		}
		return epoch.Stopped
	case fly.MachineStateSuspended:
		return epoch.Suspended
	case fly.MachineStateStarted:
		return fateOfStarted(events, bootAt)
	}
	return epoch.Unknown
}

// fateOfStarted judges a running machine by its events, newest first: the
// starts of the newest boot, and below them how the run before it ended.
func fateOfStarted(events []*fly.MachineEvent, bootAt time.Time) epoch.Fate {
	i := 0
	for i < len(events) && events[i].Type != "start" {
		i++ // checks and other news of the run
	}
	if i == len(events) {
		return epoch.Unknown
	}
	var began time.Time
	for i < len(events) && events[i].Type == "start" {
		began = events[i].Time()
		i++
	}
	if !began.After(bootAt.Add(bootMargin)) {
		return epoch.Running
	}
	for ; i < len(events); i++ {
		e := events[i]
		switch what := e.Type + " " + e.Status; {
		case !e.Time().After(bootAt):
			// Nothing ended it since: the boot was stamped by a clock that lags.
			return epoch.Running
		case strings.Contains(what, "suspend") || strings.Contains(what, "resume"):
			return epoch.Unknown // it may have come back with its memory
		case e.Type == "exit" || e.Type == "stop" || e.Type == "restart" || e.Type == "update":
			return epoch.Rebooted
		}
	}
	return epoch.Unknown
}
