package process

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// reapEvery is the pause between two looks for the dead.
const reapEvery = 10 * time.Second

// Adopt makes this process the parent of whatever its descendants leave behind,
// so that Kill finds what has left its group and its parents. Reap must run
// then.
func Adopt() error { return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// Reap waits for the dead that this process was given and did not start, until
// ctx ends. One that is dead at two looks is nobody's: what this process
// started is waited for at once.
func Reap(ctx context.Context) {
	t := time.NewTicker(reapEvery)
	defer t.Stop()
	var before processes
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now := table()
		for pid, s := range now {
			if s.dead && s.parent == os.Getpid() && before[pid].dead {
				_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
			}
		}
		before = now
	}
}

// Options of Start.
type Options struct {
	Mark Mark // its environment must carry it; zero: none
	// Alone says that this process runs one program at a time: whatever comes
	// to descend from this process is of the program, orphans included.
	Alone bool
}

// Command is a program in a process group of its own. It dies with the process
// that started it. Its methods may be called from any goroutine.
type Command struct {
	cmd   *exec.Cmd
	o     Options
	older []int // children that this process had before
	ended chan struct{}
	err   error // of Wait, once ended is closed
}

// Start starts a program, in a cgroup of its own if that is allowed here and it
// has a mark. The program has the terminal if this process has it.
func Start(cmd *exec.Cmd, o Options) (*Command, error) {
	attr := syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if tty, ok := cmd.Stdin.(*os.File); ok && foreground(tty) {
		attr.Foreground, attr.Ctty = true, int(tty.Fd())
	}
	if dir, ok := cageOf(o.Mark).open(); ok {
		caged := attr
		caged.UseCgroupFD, caged.CgroupFD = true, int(dir.Fd())
		c, err := start(cmd, o, caged)
		dir.Close()
		if err == nil {
			return c, nil
		}
		cageOf(o.Mark).remove() // the program cannot start, or the kernel cannot do this: the next try tells
	}
	return start(cmd, o, attr)
}

func start(cmd *exec.Cmd, o Options, attr syscall.SysProcAttr) (*Command, error) {
	c := &Command{o: o, ended: make(chan struct{}), cmd: &exec.Cmd{ // one is started once
		Path: cmd.Path, Args: cmd.Args, Env: cmd.Env, Dir: cmd.Dir, Err: cmd.Err,
		Stdin: cmd.Stdin, Stdout: cmd.Stdout, Stderr: cmd.Stderr, WaitDelay: time.Second, SysProcAttr: &attr,
	}}
	if o.Alone {
		c.older = table().under(os.Getpid(), nil)
	}
	begun := make(chan error)
	go func() {
		runtime.LockOSThread() // the signal at the parent's death is of the thread
		err := c.cmd.Start()
		begun <- err
		if err == nil {
			c.err = c.cmd.Wait()
			close(c.ended)
		}
	}()
	if err := <-begun; err != nil {
		return nil, err
	}
	return c, nil
}

// foreground says whether the file is a terminal and this process is in its
// foreground.
func foreground(tty *os.File) bool {
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// PID returns the program's PID, which is also its group's.
func (c *Command) PID() int { return c.cmd.Process.Pid }

// Ended is closed when the program has ended. What it started may go on.
func (c *Command) Ended() <-chan struct{} { return c.ended }

// Code is the exit code of a program that has ended, as shells have it: 128+n
// for signal n.
func (c *Command) Code() int {
	if st, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && st.Signaled() {
		return 128 + int(st.Signal())
	}
	return c.cmd.ProcessState.ExitCode()
}

// Err says why a program that has ended did not end well.
func (c *Command) Err() error { return c.err }

// Signal signals the program alone.
func (c *Command) Signal(sig os.Signal) { _ = c.cmd.Process.Signal(sig) } // one that has ended needs none

// SignalGroup signals the program and what is in its group.
func (c *Command) SignalGroup(sig syscall.Signal) { _ = syscall.Kill(-c.PID(), sig) }

// Kill kills the program and all that it has started, and waits until nothing
// is left: for at most two seconds, then it says false.
func (c *Command) Kill() (gone bool) {
	for range 100 {
		c.SignalGroup(syscall.SIGKILL)
		left := c.o.Mark.Kill()
		all := table()
		root := c.PID()
		if c.o.Alone {
			root = os.Getpid()
			for pid, s := range all {
				if s.dead && s.parent == root && pid != c.PID() && !slices.Contains(c.older, pid) {
					_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
				}
			}
		}
		left += killAll(all.under(root, c.older)) + len(all.group(c.PID()))
		select {
		case <-c.ended:
			if left == 0 {
				return true
			}
		default:
		}
		time.Sleep(20 * time.Millisecond)
	}
	return false
}
