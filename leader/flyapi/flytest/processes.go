package flytest

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"

	fly "github.com/superfly/fly-go"
)

// Processes is a Launcher whose machines are real processes on this host.
// Each has an address of 127.0.0.0/8 to itself, so that every machine can use
// the same ports, a directory as root filesystem, and a CPU allowance. It
// needs Linux's /proc.
type Processes struct {
	opts   ProcessOptions
	dir    string
	groups *cgroups // nil: none can be made

	mu   sync.Mutex // guards next and runs
	next int
	net  [3]byte // first bytes of the addresses
	runs map[*processRun]bool
}

var _ Launcher = (*Processes)(nil)

// ProcessOptions configure Processes.
type ProcessOptions struct {
	// Dir keeps logs (logs/<machine>.log) and root filesystems (m/<machine>).
	// Empty: a temporary directory that Close removes. Keep it short: a unix
	// socket's path inside it has at most 107 bytes.
	Dir string
	// Allowance is how many cores a machine may use. Nil, or a result of 0:
	// environment or metadata FLYMESH_CPU_ALLOWANCE (flymesh_cpu_allowance) of the
	// config, else the guest's number of CPUs.
	Allowance func(Boot) float64
	// NoCgroups limits nothing and leaves accounting to the process tree.
	NoCgroups bool
	Log       *slog.Logger // nil: silent
}

// NewProcesses prepares the directory and finds out whether cgroups can be made.
func NewProcesses(o ProcessOptions) (*Processes, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	l := &Processes{opts: o, dir: o.Dir, runs: make(map[*processRun]bool)}
	rand.Read(l.net[:])
	l.net[0] = 16 + l.net[0]%200 // far from 127.0.0.1 and what else is in use there
	if l.dir == "" {
		dir, err := os.MkdirTemp("", "fly-")
		if err != nil {
			return nil, fmt.Errorf("make directory of machines: %w", err)
		}
		l.dir = dir
	}
	dir, err := filepath.Abs(l.dir)
	if err != nil {
		return nil, fmt.Errorf("make directory of machines: %w", err)
	}
	l.dir = dir
	for _, d := range []string{"logs", "m"} {
		if err := os.MkdirAll(filepath.Join(l.dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("make directory of machines: %w", err)
		}
	}
	if !o.NoCgroups {
		l.groups, err = openCgroups(fmt.Sprintf("flymesh-emulator-%d-%x", os.Getpid(), l.net))
		if err != nil {
			o.Log.Info("no cgroups for machines, CPU is accounted by process tree", "cause", err)
		}
	}
	return l, nil
}

// Address returns the next address of the launcher's own part of 127.0.0.0/8.
func (l *Processes) Address(string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.next
	l.next++
	return fmt.Sprintf("127.%d.%d.%d", l.net[0], l.net[1]+byte(n/250), n%250+2)
}

// Dir returns the directory of logs and root filesystems.
func (l *Processes) Dir() string { return l.dir }

// Accounting returns cgroup-v1, cgroup-v2 or process-tree.
func (l *Processes) Accounting() string {
	if l.groups == nil {
		return "process-tree"
	}
	return fmt.Sprintf("cgroup-v%d", l.groups.version)
}

func (l *Processes) rootfs(id string) string { return filepath.Join(l.dir, "m", id) }

// Start executes init.exec, or init.entrypoint and init.cmd, in a fresh
// process group, inside the machine's cgroup where there is one.
func (l *Processes) Start(_ context.Context, b Boot) (Instance, error) {
	argv := b.Config.Init.Exec
	if len(argv) == 0 {
		argv = append(append(argv, b.Config.Init.Entrypoint...), b.Config.Init.Cmd...)
	}
	if len(argv) == 0 {
		return nil, errors.New("boot machine: init has neither exec, entrypoint nor cmd")
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return nil, fmt.Errorf("boot machine: %w", err)
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, fmt.Errorf("boot machine: %w", err)
	}
	argv = append([]string{path}, argv[1:]...)

	r := &processRun{l: l, id: b.ID, ended: make(chan struct{}), done: make(chan struct{}), wake: make(chan struct{}, 1)}
	r.details = Details{
		Rootfs:    l.rootfs(b.ID),
		Socket:    filepath.Join(l.rootfs(b.ID), "run", "flymesh", "agent.sock"),
		API:       filepath.Join(l.rootfs(b.ID), ".fly", "api"),
		Log:       filepath.Join(l.dir, "logs", b.ID+".log"),
		Allowance: l.allowance(b),
	}
	if n := len(r.details.Socket); n > 107 {
		return nil, fmt.Errorf("boot machine: socket path %s has %d bytes, a unix socket takes 107", r.details.Socket, n)
	}
	for _, d := range []string{"run/flymesh", "tmp", "home"} {
		if err := os.MkdirAll(filepath.Join(r.details.Rootfs, d), 0o700); err != nil {
			return nil, fmt.Errorf("boot machine: %w", err)
		}
	}
	if l.groups != nil {
		r.group, err = l.groups.make(b.ID, r.details.Allowance)
		if err != nil {
			l.opts.Log.Warn("machine has no cgroup", "machine", b.ID, "error", err)
		} else {
			r.details.Cgroup = r.group.cpu
			argv = r.group.enter(argv)
		}
	}
	if r.closeAPI, err = listenSelf(r.details.API, b.API, l.opts.Log); err != nil {
		r.cleanup()
		return nil, fmt.Errorf("boot machine: serve its /.fly/api: %w", err)
	}
	if err := r.start(argv, l.environ(b, r)); err != nil {
		r.cleanup()
		return nil, fmt.Errorf("boot machine: %w", err)
	}
	return r, nil
}

func (l *Processes) allowance(b Boot) float64 {
	if l.opts.Allowance != nil {
		if a := l.opts.Allowance(b); a > 0 {
			return a
		}
	}
	for _, s := range []string{b.Env["FLYMESH_CPU_ALLOWANCE"], b.Config.Metadata["flymesh_cpu_allowance"]} {
		if a, err := strconv.ParseFloat(s, 64); err == nil && a > 0 {
			return a
		}
	}
	guest := cmp.Or(b.Config.Guest, &fly.MachineGuest{})
	return float64(max(1, guest.CPUs))
}

// environ returns the environment of a machine: nothing of the emulator's but
// the PATH.
func (l *Processes) environ(b Boot, r *processRun) []string {
	env := map[string]string{"PATH": os.Getenv("PATH")}
	for k, v := range b.Env {
		env[k] = v
	}
	env["HOME"] = filepath.Join(r.details.Rootfs, "home")
	env["TMPDIR"] = filepath.Join(r.details.Rootfs, "tmp")
	env["FLYMESH_SOCKET"] = r.details.Socket
	delete(env, "FLYMESH_CPU_ALLOWANCE")
	if r.group == nil {
		env["FLYMESH_CPU_ALLOWANCE"] = strconv.FormatFloat(r.details.Allowance, 'g', -1, 64)
	}
	var out []string
	for k, v := range env {
		out = append(out, k+"="+v)
	}
	return out
}

// Wipe empties the machine's root filesystem.
func (l *Processes) Wipe(id string) error { return os.RemoveAll(l.rootfs(id)) }

// Remove removes the root filesystem; the log stays.
func (l *Processes) Remove(id string) error { return os.RemoveAll(l.rootfs(id)) }

// Close kills what runs and removes cgroups and root filesystems, and the
// whole directory if it was a temporary one.
func (l *Processes) Close() error {
	l.mu.Lock()
	var runs []*processRun
	for r := range l.runs {
		runs = append(runs, r)
	}
	l.mu.Unlock()
	var wg sync.WaitGroup
	for _, r := range runs {
		wg.Go(r.Kill)
	}
	wg.Wait()
	var errs []error
	if l.groups != nil {
		errs = append(errs, l.groups.close())
	}
	dir := filepath.Join(l.dir, "m")
	if l.opts.Dir == "" {
		dir = l.dir
	}
	return errors.Join(append(errs, os.RemoveAll(dir))...)
}
