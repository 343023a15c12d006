package flytest

import (
	"net/http"
	"time"

	fly "github.com/superfly/fly-go"
)

// The actions check that the machine is in a state for them, change it, and
// start what follows. Each is called with mu held.

func (f *fleet) start(m *machine) error {
	switch m.state {
	case fly.MachineStateStopped, fly.MachineStateSuspended, "failed":
	case stateStarting, stateRestarting:
		return abortedf("machine still attempting to start")
	case stateReplacing:
		return preconditionf("machine getting replaced, refusing to start")
	default:
		return preconditionf("unable to start machine from current state: '%s'", m.state)
	}
	if time.Now().Before(m.settled) {
		return failf(http.StatusPreconditionFailed, "machine still active, refusing to start")
	}
	m.restarts = 0
	frozen := m.inst
	f.enter(m, stateStarting, "start", "user", nil)
	f.sequence(m, func(gen int) {
		if frozen == nil {
			f.boot(m, gen)
			return
		}
		if !f.sleep(f.timing.Resume) {
			return
		}
		if err := frozen.Thaw(); err != nil {
			f.log.Warn("machine is not thawed", "machine", m.id, "error", err)
		}
		f.held(m, gen, func() {
			f.enter(m, fly.MachineStateStarted, "start", "flyd", nil)
			f.spawn(func() { f.watch(m, frozen) })
		})
	})
	return nil
}

func (f *fleet) stopMachine(m *machine, signal string, timeout time.Duration) error {
	switch m.state {
	case fly.MachineStateStopped, stateStopping:
		return nil
	case fly.MachineStateStarted, stateStarting, stateRestarting, stateSuspending, fly.MachineStateSuspended:
	default:
		return preconditionf("unable to stop machine from current state: '%s'", m.state)
	}
	if m.state == fly.MachineStateSuspended {
		timeout = time.Nanosecond // the snapshot is discarded, nothing is asked
	}
	f.enter(m, stateStopping, "stop", "user", nil)
	f.sequence(m, func(gen int) {
		if !f.sleep(f.timing.Stop) {
			return
		}
		e := f.halt(m, signal, timeout, false)
		f.held(m, gen, func() {
			m.settled = time.Now().Add(f.timing.Settle)
			f.enter(m, fly.MachineStateStopped, "exit", "flyd", exitEvent(e, true))
		})
	})
	return nil
}

func (f *fleet) suspend(m *machine) error {
	switch m.state {
	case fly.MachineStateSuspended, stateSuspending:
		return nil
	case fly.MachineStateStarted:
	default:
		return preconditionf("unable to suspend machine from current state: '%s'", m.state)
	}
	inst := m.inst
	f.enter(m, stateSuspending, "suspend", "user", nil)
	f.sequence(m, func(gen int) {
		if !f.sleep(f.timing.Suspend) {
			return
		}
		if err := inst.Freeze(); err != nil {
			f.log.Warn("machine is not frozen", "machine", m.id, "error", err)
		}
		f.held(m, gen, func() { f.enter(m, fly.MachineStateSuspended, "suspend", "flyd", nil) })
	})
	return nil
}

func (f *fleet) restart(m *machine, signal string, timeout time.Duration) error {
	if m.state != fly.MachineStateStarted {
		return preconditionf("unable to restart machine from current state: '%s'", m.state)
	}
	m.restarts = 0
	f.enter(m, stateRestarting, "restart", "user", nil)
	f.sequence(m, func(gen int) {
		e := f.halt(m, signal, timeout, true)
		x := exitEvent(e, true)
		x.Restarting = true
		if f.held(m, gen, func() {
			f.enter(m, stateRestarting, "exit", "flyd", x)
			f.enter(m, stateStarting, "start", "flyd", nil)
		}) {
			f.boot(m, gen)
		}
	})
	return nil
}

func (f *fleet) update(m *machine, c *fly.MachineConfig, name, region string, skipLaunch bool) error {
	switch m.state {
	case stateReplacing, fly.MachineStateCreated, stateStarting, stateStopping, stateRestarting, stateSuspending:
		return abortedf("machine update failed due to concurrent update")
	case fly.MachineStateDestroying, fly.MachineStateDestroyed:
		return preconditionf("unable to update machine from current state: '%s'", m.state)
	}
	for k, v := range m.config.Metadata {
		if _, ok := c.Metadata[k]; !ok {
			c = withMetadata(c, k, v)
		}
	}
	run := m.state == fly.MachineStateStarted && !skipLaunch
	var timeout time.Duration
	if m.state == fly.MachineStateSuspended {
		timeout = time.Nanosecond // the snapshot is discarded
	}
	m.config, m.group, m.instanceID = c, groupOf(c), f.ids.ulid(time.Now())
	if name != "" {
		m.name = name
	}
	if region != "" {
		m.region = region
	}
	m.restarts = 0
	f.enter(m, stateReplacing, "update", "user", nil)
	f.sequence(m, func(gen int) {
		if !f.sleep(f.timing.Update) {
			return
		}
		f.halt(m, "", timeout, false)
		if !run {
			f.held(m, gen, func() { f.enter(m, fly.MachineStateStopped, "update", "flyd", nil) })
			return
		}
		if f.held(m, gen, func() { f.enter(m, stateStarting, "start", "flyd", nil) }) {
			f.boot(m, gen)
		}
	})
	return nil
}

func (f *fleet) destroyMachine(m *machine, kill bool) error {
	switch m.state {
	case fly.MachineStateDestroying, fly.MachineStateDestroyed:
		return nil
	case fly.MachineStateStopped, fly.MachineStateSuspended, "failed":
	default:
		if !kill {
			return preconditionf("unable to destroy machine, not currently stopped")
		}
	}
	f.destroy(m)
	return nil
}

func (f *fleet) destroy(m *machine) {
	inst := m.inst
	f.enter(m, fly.MachineStateDestroying, "destroy", "user", nil)
	f.sequence(m, func(gen int) {
		if inst != nil {
			inst.Kill()
		}
		if !f.sleep(f.timing.Destroy) {
			return
		}
		f.held(m, gen, func() {
			m.inst, m.lease = nil, nil
			f.enter(m, fly.MachineStateDestroyed, "destroy", "flyd", nil)
		})
		if err := f.launcher.Remove(m.id); err != nil {
			f.log.Warn("machine is not removed", "machine", m.id, "error", err)
		}
	})
}
