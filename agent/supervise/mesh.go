package supervise

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	firstPause = 100 * time.Millisecond
	longPause  = 30 * time.Second // also of one that cannot start
	healthy    = time.Minute      // a life of this length forgets the pauses before

	lowPriority = 5   // nice of the mesh half
	oomScore    = 500 // added to its oom_score_adj

	// exitUsage is the exit code of a mesh half that was given a bad
	// configuration. A Go panic has the same code; but once a mesh half lived,
	// its configuration is good.
	exitUsage = 2
)

// frugal are settings of the Go runtime for a mesh half that lives beside an
// app: its live heap is about 2 MiB, so collecting twice as often as by default
// costs little. What the environment sets itself stands.
var frugal = []string{"GOMEMLIMIT=64MiB", "GOGC=50", "GOMAXPROCS=1"}

// mesh is one life of the mesh half.
type mesh struct {
	cmd     *exec.Cmd
	control *os.File // this side of the socket pair
	started time.Time
	missed  int  // ticks since the last heartbeat
	alive   bool // there was a heartbeat
}

// startMesh starts a mesh half, or plans the next try.
func (s *supervisor) startMesh() {
	s.again = nil
	if len(s.Mesh) == 0 || s.stop != nil {
		return
	}
	m, err := s.newMesh()
	if err != nil {
		pause := s.back.next(0)
		s.log.Error("mesh half cannot start, the app goes on", "error", err, "retry_in", pause.String())
		s.again = time.After(pause)
		return
	}
	s.mesh = m
	go s.read(m)
	go func() {
		_ = m.cmd.Wait() // the state says more than the error
		select {
		case s.events <- event{from: m, ended: true}:
		case <-s.done:
		}
	}()
	m.send(fmt.Sprintf("%s %d", lineStarted, s.app.Process.Pid))
}

func (s *supervisor) newMesh() (*mesh, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make control socket: %w", err)
	}
	near, far := os.NewFile(uintptr(pair[0]), "control"), os.NewFile(uintptr(pair[1]), "control")
	defer far.Close()
	c := exec.Command(s.Mesh[0], s.Mesh[1:]...)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	c.ExtraFiles = []*os.File{far} // the child's descriptor 3
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Env = append(slices.Clone(s.Env), ControlEnv+"=3", AppPIDEnv+"="+strconv.Itoa(s.app.Process.Pid))
	for _, set := range frugal {
		name, _, _ := strings.Cut(set, "=")
		if !slices.ContainsFunc(s.Env, func(v string) bool { return strings.HasPrefix(v, name+"=") }) {
			c.Env = append(c.Env, set)
		}
	}
	if err := s.children.start(c); err != nil {
		near.Close()
		return nil, err
	}
	m := &mesh{cmd: c, control: near, started: time.Now()}
	m.lower()
	m.raiseOOM()
	return m, nil
}

// lower gives all threads of the mesh half a low priority; new threads inherit
// it. It runs again at the first heartbeat, for a thread that was born between.
func (m *mesh) lower() {
	_ = unix.Setpriority(unix.PRIO_PGRP, m.cmd.Process.Pid, lowPriority) // refused: it stays as it is
}

// raiseOOM makes the mesh half the first that the kernel kills for memory.
func (m *mesh) raiseOOM() {
	name := fmt.Sprintf("/proc/%d/oom_score_adj", m.cmd.Process.Pid)
	b, err := os.ReadFile(name)
	if err != nil {
		return
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return
	}
	_ = os.WriteFile(name, []byte(strconv.Itoa(min(score+oomScore, 1000))), 0) // refused: it stays as it is
}

func (m *mesh) beat() {
	if !m.alive {
		m.lower()
	}
	m.alive, m.missed = true, 0
}

// send writes one line. A mesh half that does not read has a full socket at
// some time; then the line is lost with it.
func (m *mesh) send(line string) bool {
	_ = m.control.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	_, err := m.control.WriteString(line + "\n")
	return err == nil
}

// drain asks for a drain and says whether an answer may be expected.
func (m *mesh) drain(within time.Duration) bool {
	return m.alive && m.send(fmt.Sprintf("%s %d", lineDrain, within.Milliseconds()))
}

// kill signals the mesh half and what it started in its group.
func (m *mesh) kill(sig syscall.Signal) { _ = syscall.Kill(-m.cmd.Process.Pid, sig) }

// meshEnded plans the next life after the end of one.
func (s *supervisor) meshEnded() {
	m, state := s.mesh, s.mesh.cmd.ProcessState
	s.mesh = nil
	s.children.forget(m.cmd)
	m.control.Close()
	if s.stop != nil {
		s.log.Warn("mesh half ended while draining", "state", state.String())
		s.passOn()
		return
	}
	life := time.Since(m.started)
	pause := s.back.next(life)
	if state.ExitCode() == exitUsage && !s.lived {
		pause = longPause
		s.log.Error("mesh half cannot start with this configuration, the app goes on without it", "exit", exitUsage, "retry_in", pause.String())
	} else {
		s.log.Warn("mesh half ended, the app goes on", "state", state.String(), "after", life.Round(time.Millisecond).String(), "restart_in", pause.String())
	}
	s.again = time.After(pause)
}

// endMesh gives the mesh half its orderly end after the app's.
func (s *supervisor) endMesh(code int) {
	if s.mesh == nil {
		return
	}
	defer s.mesh.control.Close()
	s.mesh.send(fmt.Sprintf("%s %d", lineExited, code))
	s.mesh.kill(syscall.SIGTERM)
	deadline := time.After(min(meshEnd, s.KillTimeout/5))
	for {
		select {
		case e := <-s.events:
			if e.from == s.mesh && e.ended {
				return
			}
		case <-deadline:
			s.log.Warn("mesh half did not end in time, killing it")
			s.mesh.kill(syscall.SIGKILL)
			deadline = nil
		}
	}
}

// backoff is the pause before the next start: doubled after each short life.
type backoff struct{ pause time.Duration }

func (b *backoff) next(life time.Duration) time.Duration {
	if life >= healthy || b.pause == 0 {
		b.pause = firstPause
	} else {
		b.pause = min(2*b.pause, longPause)
	}
	return b.pause
}
