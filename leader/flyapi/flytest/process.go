package flytest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"

	fly "github.com/superfly/fly-go"
)

// processRun is one run of a process machine.
type processRun struct {
	l       *Processes
	id      string
	group   *cgroup // nil: none
	details Details // fixed once started
	cmd     *exec.Cmd

	closeAPI func() // nil: it is not served

	ended chan struct{} // closed when the main process has ended
	exit  Exit          // written before ended is closed
	done  chan struct{} // closed when nothing runs any more
	wake  chan struct{} // asks to look again at what still runs
	clean sync.Once
}

func (r *processRun) start(argv, env []string) error {
	log, err := os.OpenFile(r.details.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	r.cmd = exec.Command(argv[0], argv[1:]...)
	r.cmd.Env, r.cmd.Dir = env, r.details.Rootfs
	r.cmd.Stdout, r.cmd.Stderr = log, log
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt at the terminal is for the emulator alone
	if err := r.cmd.Start(); err != nil {
		return err
	}
	r.details.PID = r.cmd.Process.Pid
	r.l.mu.Lock()
	r.l.runs[r] = true
	r.l.mu.Unlock()
	go r.watch()
	return nil
}

// watch waits for the main process and then for every other one.
func (r *processRun) watch() {
	err := r.cmd.Wait()
	var ee *exec.ExitError
	if errors.As(err, &ee) {
		if ws, ok := ee.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			r.exit.Signal = int(ws.Signal())
		} else {
			r.exit.Code = ee.ExitCode()
		}
	}
	close(r.ended)
	every := 250 * time.Millisecond // a look through /proc costs milliseconds
	if r.group != nil {
		every = 50 * time.Millisecond
	}
	for empty := 0; empty < 2; {
		if len(r.alive()) > 0 {
			empty = 0
			select {
			case <-r.wake:
			case <-time.After(every):
			}
			continue
		}
		empty++ // a process in the middle of an exec can look like nobody's
		time.Sleep(5 * time.Millisecond)
	}
	r.cleanup()
	r.l.mu.Lock()
	delete(r.l.runs, r)
	r.l.mu.Unlock()
	close(r.done)
}

func (r *processRun) cleanup() {
	r.clean.Do(func() {
		if r.closeAPI != nil {
			r.closeAPI()
		}
		if r.group == nil {
			return
		}
		if err := r.group.remove(); err != nil {
			r.l.opts.Log.Warn("cgroup is not removed", "machine", r.id, "error", err)
		}
	})
}

// marks are what the environment of the machine's processes has, and nobody
// else's: its socket is in this emulator's own directory.
func (r *processRun) marks() []string {
	return []string{"FLY_MACHINE_ID=" + r.id, "FLYMESH_SOCKET=" + r.details.Socket}
}

// alive returns the processes of the machine, by the cgroup alone where there is one.
func (r *processRun) alive() []int {
	if r.group != nil {
		return r.group.pids()
	}
	return machinePIDs(r.marks())
}

// all returns the processes of the machine by cgroup and by environment.
func (r *processRun) all() []int {
	pids := machinePIDs(r.marks())
	if r.group != nil {
		pids = append(pids, r.group.pids()...)
	}
	slices.Sort(pids)
	return slices.Compact(pids)
}

// member reports whether a process still is the machine's.
func (r *processRun) member(pid int) bool {
	return belongs(pid, r.marks()) || (r.group != nil && slices.Contains(r.group.pids(), pid))
}

// signalAll signals every process of the machine and returns how many there
// were. A process is taken hold of before it is looked at, so that a number
// that is used anew meanwhile does no harm.
func (r *processRun) signalAll(sig syscall.Signal) int {
	n := 0
	for _, pid := range r.all() {
		p, err := os.FindProcess(pid)
		if err != nil {
			continue
		}
		if r.member(pid) && p.Signal(sig) == nil {
			n++
		}
		p.Release()
	}
	return n
}

// Stop signals the main process; what it leaves behind is killed when it
// ends, as the end of the main process is the end of the machine. Without a
// main process every other one gets the signal.
func (r *processRun) Stop(signal string, timeout time.Duration) {
	sig, err := signalNumber(signal)
	if err != nil {
		sig = syscall.SIGINT
	}
	end := time.NewTimer(timeout)
	defer end.Stop()
	select {
	case <-r.ended:
		r.signalAll(sig)
		select {
		case <-r.done:
		case <-end.C:
		}
	default:
		r.cmd.Process.Signal(sig) // fails only if it has ended
		select {
		case <-r.ended:
		case <-end.C:
		}
	}
	r.Kill()
}

// Kill kills until nothing is left.
func (r *processRun) Kill() {
	for {
		r.signalAll(syscall.SIGKILL)
		select {
		case r.wake <- struct{}{}:
		default:
		}
		select {
		case <-r.done:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Signal sends a signal to the main process.
func (r *processRun) Signal(signal string) error {
	sig, err := signalNumber(signal)
	if err != nil {
		return err
	}
	if err := r.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("signal main process: %w", err)
	}
	return nil
}

// Freeze sends SIGSTOP until every process has stopped: a signal takes its
// time to reach all threads, and something may just be forked.
func (r *processRun) Freeze() error {
	for range 200 {
		running, n := 0, 0
		for _, pid := range r.all() {
			n++
			if s := processState(pid); s != "T" && s != "Z" && s != "" {
				running++
			}
		}
		switch {
		case n == 0:
			return errors.New("freeze machine: nothing runs")
		case running == 0:
			return nil
		}
		r.signalAll(syscall.SIGSTOP)
		time.Sleep(5 * time.Millisecond)
	}
	return errors.New("freeze machine: a process does not stop")
}

// Thaw sends SIGCONT.
func (r *processRun) Thaw() error {
	if r.signalAll(syscall.SIGCONT) == 0 {
		return errors.New("thaw machine: nothing runs")
	}
	return nil
}

func (r *processRun) Done() <-chan struct{} { return r.done }
func (r *processRun) Exit() Exit            { return r.exit }
func (r *processRun) Details() Details      { return r.details }

// Processes lists the machine's processes from /proc.
func (r *processRun) Processes() []fly.ProcessStat {
	var out []fly.ProcessStat
	for _, pid := range r.all() {
		if p, ok := processStat(pid); ok {
			out = append(out, p)
		}
	}
	return out
}
