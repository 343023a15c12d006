package flytest

import (
	"cmp"
	"net/http"
	"time"

	fly "github.com/superfly/fly-go"
)

// add makes a machine in a state from which it goes nowhere yet; with mu held.
func (f *fleet) add(a *app, state, name, region string, c *fly.MachineConfig) (*machine, error) {
	for _, m := range a.machines {
		if name != "" && m.name == name && m.state != fly.MachineStateDestroyed {
			return nil, failf(http.StatusConflict,
				"already_exists: unique machine name violation, machine ID %s already exists with name %q", m.id, name)
		}
	}
	now := time.Now()
	m := &machine{app: a.name, group: groupOf(c), since: now, turn: make(chan struct{}, 1)}
	m.id = f.ids.machineID()
	m.name = cmp.Or(name, f.ids.name())
	m.region, m.config, m.host = region, c, fly.HostStatusOk
	m.instanceID = f.ids.ulid(now)
	m.privateIP = f.launcher.Address(m.id)
	m.created = now
	a.machines[m.id] = m
	f.enter(m, state, "launch", "user", nil)
	return m, nil
}

// sequence starts what happens to a machine from now on: it supersedes the
// sequence before. step runs with mu not held and asks held to go on. With mu held.
func (f *fleet) sequence(m *machine, step func(gen int)) {
	m.gen++
	gen := m.gen
	f.spawn(func() { step(gen) })
}

// held runs fn with mu held if gen still is the machine's sequence.
func (f *fleet) held(m *machine, gen int, fn func()) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m.gen != gen || f.ctx.Err() != nil {
		return false
	}
	fn()
	return true
}

// launch takes a created machine on; with mu held.
func (f *fleet) launch(m *machine, start bool) {
	f.sequence(m, func(gen int) {
		if !f.sleep(f.timing.Create) {
			return
		}
		if !start {
			f.held(m, gen, func() { f.enter(m, fly.MachineStateStopped, "launch", "flyd", nil) })
			return
		}
		if f.held(m, gen, func() { f.enter(m, stateStarting, "start", "flyd", nil) }) {
			f.boot(m, gen)
		}
	})
}

// boot carries a machine from starting to started.
func (f *fleet) boot(m *machine, gen int) {
	if !f.sleep(f.timing.Start) {
		return
	}
	m.turn <- struct{}{}
	defer func() { <-m.turn }()
	var b Boot
	if !f.held(m, gen, func() {
		if m.moving {
			m.moving, m.privateIP = false, f.launcher.Address(m.id)
		}
		m.checks = nil
		b = f.bootOf(m)
	}) {
		return
	}
	inst, err := f.launcher.Start(f.ctx, b)
	if err != nil {
		f.log.Warn("machine does not boot", "app", b.App, "machine", b.ID, "error", err)
		f.held(m, gen, func() {
			f.enter(m, fly.MachineStateStopped, "exit", "flyd", &fly.MachineExitEvent{ExitCode: 127, GuestExitCode: 127, ExitedAt: time.Now()})
		})
		return
	}
	ok := f.held(m, gen, func() {
		m.inst = inst
		f.enter(m, fly.MachineStateStarted, "start", "flyd", nil)
		f.spawn(func() { f.watch(m, inst) })
	})
	if !ok {
		inst.Kill()
	}
}

func (f *fleet) bootOf(m *machine) Boot {
	return Boot{
		ID: m.id, App: m.app, Group: m.group, Name: m.name, Region: m.region,
		InstanceID: m.instanceID, PrivateIP: m.privateIP, Env: f.env(m.app, m.view), Config: m.config, API: f.self(m),
	}
}

// watch sees an instance end by itself and applies the restart policy.
func (f *fleet) watch(m *machine, inst Instance) {
	select {
	case <-inst.Done():
	case <-f.ctx.Done():
		return
	}
	// While its host is out of reach nobody hears that it has ended.
	mine := false
	if err := f.await(f.ctx, func() (bool, time.Time, error) {
		mine = m.inst == inst && (m.state == fly.MachineStateStarted || m.state == fly.MachineStateSuspended)
		return !mine || m.host == fly.HostStatusOk, time.Time{}, nil
	}); err != nil || !mine {
		return
	}
	f.wipe(m, false)
	f.mu.Lock()
	defer f.mu.Unlock()
	if m.inst != inst || (m.state != fly.MachineStateStarted && m.state != fly.MachineStateSuspended) {
		return
	}
	m.inst = nil
	again := f.restarts(m, inst.Exit())
	e := exitEvent(inst.Exit(), false)
	e.Restarting = again
	m.settled = time.Now().Add(f.timing.Settle)
	f.enter(m, fly.MachineStateStopped, "exit", "flyd", e)
	switch {
	case again:
		m.restarts++
		f.sequence(m, func(gen int) {
			if f.sleep(f.timing.Restart) && f.held(m, gen, func() { f.enter(m, stateStarting, "restart", "flyd", nil) }) {
				f.boot(m, gen)
			}
		})
	case m.config.AutoDestroy:
		f.destroy(m)
	}
}

func (f *fleet) restarts(m *machine, e Exit) bool {
	r := m.config.Restart
	if r == nil {
		return false
	}
	switch r.Policy {
	case fly.MachineRestartPolicyAlways:
		return true
	case fly.MachineRestartPolicyOnFailure:
		return e.Failed() && m.restarts < cmp.Or(r.MaxRetries, 10)
	}
	return false
}

func exitEvent(e Exit, requested bool) *fly.MachineExitEvent {
	x := &fly.MachineExitEvent{ExitCode: e.Code, GuestExitCode: e.Code, GuestSignal: -1, Signal: -1, RequestedStop: requested, ExitedAt: time.Now().UTC()}
	if e.Signal != 0 {
		x.GuestSignal, x.Signal = e.Signal, e.Signal
		x.ExitCode, x.GuestExitCode = 128+e.Signal, 0
	}
	return x
}

// halt ends the machine's instance, if it has one, and wipes its root
// filesystem. The machine is in a transient state.
func (f *fleet) halt(m *machine, signal string, timeout time.Duration, restart bool) Exit {
	m.turn <- struct{}{}
	defer func() { <-m.turn }()
	f.mu.Lock()
	inst := m.inst
	if signal == "" {
		signal = "SIGINT"
		if sc := m.config.StopConfig; sc != nil && sc.Signal != nil && *sc.Signal != "" {
			signal = *sc.Signal
		}
	}
	if timeout <= 0 {
		timeout = 5 * time.Second
		if sc := m.config.StopConfig; sc != nil && sc.Timeout != nil && sc.Timeout.Duration > 0 {
			timeout = sc.Timeout.Duration
		}
	}
	f.mu.Unlock()
	var e Exit
	if inst != nil {
		inst.Stop(signal, timeout)
		e = inst.Exit()
	}
	f.wipe(m, restart)
	f.mu.Lock()
	if m.inst == inst {
		m.inst = nil
	}
	f.mu.Unlock()
	return e
}

// wipe empties the root filesystem, unless the config keeps it.
func (f *fleet) wipe(m *machine, restart bool) {
	f.mu.Lock()
	keep := fly.MachinePersistRootfsNever
	//lint:ignore SA1019 configs made before rootfs.persist say it there
	if g := m.config.Guest; g != nil && g.PersistRootfs != "" {
		keep = g.PersistRootfs //lint:ignore SA1019 as above
	}
	if r := m.config.Rootfs; r != nil && r.Persist != "" {
		keep = r.Persist
	}
	f.mu.Unlock()
	if keep == fly.MachinePersistRootfsAlways || (restart && keep == fly.MachinePersistRootfsRestart) {
		return
	}
	if err := f.launcher.Wipe(m.id); err != nil {
		f.log.Warn("root filesystem is not wiped", "machine", m.id, "error", err)
	}
}
