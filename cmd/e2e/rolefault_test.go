package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"flymesh/cmd/agentctl/emulator"
	"flymesh/leader/flyapi/flytest"
)

// roleFault is something that happens to the machine of the primary. Where the
// pin moves, another machine is to run it.
type roleFault struct {
	name  string
	moves bool
	do    func(r *roles, holder emulator.Machine)
}

const apart = 45 * time.Second // three leases

var roleFaults = []roleFault{
	{"the holder hears nothing for three leases", true, func(r *roles, holder emulator.Machine) {
		r.deafen(apart, holder)
	}},
	{"freeze the holder for three leases", true, func(r *roles, holder emulator.Machine) {
		r.freezeMachine(holder)
	}},
	{"freeze it, and it cannot be stopped", true, func(r *roles, holder emulator.Machine) {
		if err := r.Server().AddFaults(flytest.Fault{Action: "stop", Status: 503}); err != nil {
			r.t.Fatal(err)
		}
		runs := r.runs()
		r.freezeMachine(holder)
		if now := r.runs(); now != runs {
			r.t.Error("the lock of a frozen machine was granted again, though nothing proves that it is gone")
		}
		r.Server().ClearFaults()
	}},
	{"freeze runner and program alone", false, func(r *roles, holder emulator.Machine) {
		runner, _ := r.program(holder)
		thaw := freeze(children(runner)...)
		time.Sleep(apart)
		thaw()
	}},
	{"kill -9 of the supervisor", false, func(r *roles, holder emulator.Machine) {
		runs := r.runs()
		r.signal(r.procs(holder).supervisor, syscall.SIGKILL)
		time.Sleep(5 * time.Second)
		r.check()
		if now := r.runs(); now != runs {
			r.t.Error("another primary began beside an app that runs on")
		}
		if err := r.Server().Kill(holder.ID); err != nil {
			r.t.Fatal(err)
		}
	}},
	{"no leader for three leases", false, func(r *roles, holder emulator.Machine) {
		all := r.running()
		began := time.Now()
		r.deafen(apart, all...)
		ps := oracle(r.t, filepath.Join(r.dir, "primary"))
		if worked := time.Unix(0, ps[len(ps)-1].end).Sub(began); worked > 16*time.Second {
			r.t.Errorf("the primary worked for %s without a mesh; its lease is 15 s", worked)
		} else {
			r.t.Logf("the primary worked for %s without a mesh", worked.Round(100*time.Millisecond))
		}
		for _, x := range all {
			f := filepath.Join(r.dir, "machine-"+x.ID)
			if st, err := os.Stat(f); err != nil || time.Since(st.ModTime()) > 2*time.Second {
				r.t.Errorf("the replica of %s does not work on: %v", x.ID, err)
			}
		}
	}},
}

// deafen kills the mesh halves of machines as often as they come up.
func (r *roles) deafen(limit time.Duration, ms ...emulator.Machine) {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		for _, x := range ms {
			if pid := r.procs(x).mesh; pid > 1 {
				_ = syscall.Kill(pid, syscall.SIGKILL) // the supervisor may have been faster
			}
		}
	}
}

func (r *roles) freezeMachine(x emulator.Machine) {
	r.t.Helper()
	if err := r.Server().Freeze(x.ID); err != nil {
		r.t.Fatal(err)
	}
	time.Sleep(apart)
	_ = r.Server().Thaw(x.ID) // if it has not been stopped
}

// TestRoleFaults: whatever happens to the primary's machine, there are never two
// primaries, and at the end there is one.
func TestRoleFaults(t *testing.T) {
	long(t)
	r := newRoles(t)
	r.works("", 60*time.Second)
	for _, f := range roleFaults {
		t.Run(f.name, func(t *testing.T) {
			r.t = t
			holder := r.works("", 120*time.Second)
			runs, began, on := r.runs(), time.Now(), ""
			if f.moves {
				next := r.other(holder)
				on = next.ID
				moved := make(chan struct{})
				go func() { // while the fault is there
					defer close(moved)
					time.Sleep(time.Second)
					for end := time.Now().Add(apart); time.Now().Before(end); time.Sleep(time.Second) {
						if _, code := r.agentctl(next, "pin", "cache", next.ID); code == 0 {
							return
						}
					}
					t.Error("the pin could not be moved")
				}()
				defer func() { <-moved }()
			}
			f.do(r, holder)
			r.faults++
			now := r.newRun(runs, on, 150*time.Second)
			t.Logf("%s: %d more primaries, now on %s (was %s), after %.0f s", f.name, r.runs()-runs, now.ID, holder.ID, time.Since(began).Seconds())
		})
	}
	r.t = t
	all := oracle(t, filepath.Join(r.dir, "primary"))
	table.add(row{scenario: "roles", to: r.record().Epoch, note: fmt.Sprintf("%d faults, %d primaries, %d breaches", r.faults, len(all), len(broken(all)))})
}
