package supervise

import (
	"bytes"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// inForeground says whether stdin is a terminal and this process is in its
// foreground. Then the app's group must be put there, or its first read from
// the terminal would stop it.
func inForeground() bool {
	group, err := unix.IoctlGetInt(int(os.Stdin.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// children are the processes that somebody here waits for.
type children struct {
	mu   sync.Mutex // guards pids, and is held over a start
	pids map[int]bool
}

// start starts c so that it is never taken for an orphan.
func (c *children) start(cmd *exec.Cmd) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	if c.pids == nil {
		c.pids = map[int]bool{}
	}
	c.pids[cmd.Process.Pid] = true
	return nil
}

// forget drops a process that has been waited for.
func (c *children) forget(cmd *exec.Cmd) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pids, cmd.Process.Pid)
}

// reap waits for the dead children of this process that nobody waits for.
func (c *children) reap() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, pid := range zombies(os.Getpid()) {
		if !c.pids[pid] {
			_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
		}
	}
}

// reapOrphans waits for the children that PID 1 is given and did not start,
// until done is closed. It must not wait for any child at all, because the end
// of the known ones belongs to those who wait for them.
func reapOrphans(done <-chan struct{}, known *children) {
	dead := make(chan os.Signal, 1)
	signal.Notify(dead, syscall.SIGCHLD)
	defer signal.Stop(dead)
	// SIGCHLD of several is one, and ours may be the one that is seen.
	again := time.NewTicker(10 * time.Second)
	defer again.Stop()
	for {
		select {
		case <-done:
			return
		case <-dead:
		case <-again.C:
		}
		known.reap()
	}
}

// zombies lists the dead children of a process (proc(5), stat).
func zombies(parent int) []int {
	entries, _ := os.ReadDir("/proc") // no /proc: none are seen
	var all []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
		if len(f) > 1 && string(f[0]) == "Z" && string(f[1]) == strconv.Itoa(parent) {
			all = append(all, pid)
		}
	}
	return all
}
