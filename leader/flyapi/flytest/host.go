package flytest

import (
	"fmt"
	"net/http"
	"time"

	fly "github.com/superfly/fly-go"
)

// SetHost sets the host status of a machine. While it is not ok, its config
// is incomplete and operations on it answer 503.
func (s *Server) SetHost(id string, status fly.HostStatus) error {
	return s.onMachine("set host", id, func(m *machine) { m.host = status })
}

// Migrate moves a machine to another host at its next boot: the same ID, a new
// private address.
func (s *Server) Migrate(id string) error {
	return s.onMachine("migrate", id, func(m *machine) { m.moving = true })
}

// FailHost ends everything on a machine as its host fails with it. The API
// goes on to call it what it was, with host status unreachable.
func (s *Server) FailHost(id string) error {
	var inst Instance
	err := s.onMachine("fail host", id, func(m *machine) {
		m.host, inst = fly.HostStatusUnreachable, m.inst
		m.gen++ // what was under way is over
		m.inst = nil
	})
	if inst != nil {
		inst.Kill()
	}
	return err
}

// RestoreHost brings the host of a machine back. What ran on it boots again,
// with the release that it had.
func (s *Server) RestoreHost(id string) error {
	f := s.fleet
	return s.onMachine("restore host", id, func(m *machine) {
		if m.host == fly.HostStatusOk {
			return
		}
		m.host = fly.HostStatusOk
		if m.inst != nil { // its host was only out of reach
			return
		}
		switch m.state {
		case fly.MachineStateStarted, stateStarting, stateRestarting:
			f.enter(m, stateStarting, "start", "flyd", nil)
			f.sequence(m, func(gen int) {
				f.wipe(m, false)
				f.boot(m, gen)
			})
		case fly.MachineStateStopped, fly.MachineStateDestroyed:
		default: // whatever it was on its way to, it is down
			f.enter(m, fly.MachineStateStopped, "exit", "flyd", nil)
		}
	})
}

// Hide keeps a machine out of every listing for a time, as an index that has
// lost it does. By its ID it is found.
func (s *Server) Hide(id string, d time.Duration) error {
	return s.onMachine("hide", id, func(m *machine) { m.hidden = time.Now().Add(d) })
}

// Discard drops the snapshot of a suspended machine, as the platform may at any
// time. The API goes on to call it suspended; its next start is a boot.
func (s *Server) Discard(id string) error {
	var inst Instance
	err := s.onMachine("discard snapshot", id, func(m *machine) {
		if m.state == fly.MachineStateSuspended {
			inst, m.inst = m.inst, nil
		}
	})
	switch {
	case err != nil:
		return err
	case inst == nil:
		return fmt.Errorf("discard snapshot of machine %s: %w", id, failf(http.StatusConflict, "machine has no snapshot"))
	}
	inst.Kill()
	return nil
}

func (s *Server) onMachine(verb, id string, fn func(*machine)) error {
	f := s.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.byID(id)
	if m == nil {
		return fmt.Errorf("%s of machine %s: %w", verb, id, notFound("machine not found"))
	}
	fn(m)
	f.changedMachine(m)
	return nil
}
