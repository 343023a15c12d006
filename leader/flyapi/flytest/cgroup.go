package flytest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// cfsPeriod is the length of a CPU quota's period in microseconds.
const cfsPeriod = 100_000

// cgroups is the emulator's own group, in which each machine gets one: under
// cpu and cpuacct in version 1, in the one tree in version 2.
type cgroups struct {
	version int
	dirs    []string // of the emulator; the first limits
}

// cgroup is one machine's group.
type cgroup struct {
	cpu  string
	dirs []string
}

// openCgroups makes the emulator's group below the group that it runs in.
func openCgroups(name string) (*cgroups, error) {
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	g := &cgroups{version: 1}
	for _, controller := range []string{"cpu", "cpuacct"} {
		if dir := groupDir(string(mounts), string(self), controller); dir != "" {
			g.dirs = append(g.dirs, filepath.Join(dir, name))
		}
	}
	g.dirs = slices.Compact(g.dirs) // cpu and cpuacct are often one hierarchy
	if len(g.dirs) == 0 {
		g.version = 2
		dir := groupDir(string(mounts), string(self), "")
		if dir == "" {
			return nil, errors.New("find cgroups: none is mounted")
		}
		g.dirs = []string{filepath.Join(dir, name)}
		if err := delegate(dir); err != nil {
			return nil, err
		}
	}
	for _, d := range g.dirs {
		if err := os.Mkdir(d, 0o755); err != nil {
			g.close()
			return nil, fmt.Errorf("make cgroup: %w", err)
		}
	}
	g.favour()
	if g.version == 2 {
		if err := delegate(g.dirs[0]); err != nil {
			g.close()
			return nil, err
		}
	}
	probe, err := g.make("probe", 1)
	if err == nil {
		err = probe.remove()
	}
	if err != nil {
		g.close()
		return nil, err
	}
	return g, nil
}

// favour gives all machines together ten times the weight of a group or
// process beside them. Their quotas bound what they take; the weight sees that
// they get it on a busy computer, where they would else share what one process
// gets, and miss their heartbeats.
func (g *cgroups) favour() {
	file, weight := "cpu.shares", "10240"
	if g.version == 2 {
		file, weight = "cpu.weight", "1000"
	}
	_ = os.WriteFile(filepath.Join(g.dirs[0], file), []byte(weight), 0o644) // refused: it stays as it is
}

// delegate lets the groups below a version 2 group have CPU quotas.
func delegate(dir string) error {
	file := filepath.Join(dir, "cgroup.subtree_control")
	if have, err := os.ReadFile(file); err == nil && slices.Contains(strings.Fields(string(have)), "cpu") {
		return nil
	}
	if err := os.WriteFile(file, []byte("+cpu"), 0o644); err != nil {
		return fmt.Errorf("enable cpu quotas: %w", err)
	}
	return nil
}

// groupDir returns the directory of this process's group of a version 1
// controller, or of version 2 where controller is empty.
func groupDir(mounts, self, controller string) string {
	mount := ""
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		switch {
		case len(f) < 4:
		case controller == "" && f[2] == "cgroup2", f[2] == "cgroup" && controller != "" && slices.Contains(strings.Split(f[3], ","), controller):
			mount = f[1]
		}
	}
	if mount == "" {
		return ""
	}
	for line := range strings.Lines(self) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) < 3 || !slices.Contains(strings.Split(f[1], ","), controller) {
			continue
		}
		if dir := filepath.Join(mount, f[2]); isDir(dir) {
			return dir
		}
	}
	return mount // inside a container the path is the host's, the mount our own
}

func isDir(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}

// make makes the group of a machine that may use so many cores.
func (g *cgroups) make(id string, cores float64) (*cgroup, error) {
	c := &cgroup{cpu: filepath.Join(g.dirs[0], id)}
	for _, d := range g.dirs {
		dir := filepath.Join(d, id)
		if err := os.Mkdir(dir, 0o755); err != nil {
			c.remove()
			return nil, fmt.Errorf("make cgroup: %w", err)
		}
		c.dirs = append(c.dirs, dir)
	}
	quota := strconv.Itoa(max(1000, int(cores*cfsPeriod)))
	files := [][2]string{{"cpu.cfs_period_us", strconv.Itoa(cfsPeriod)}, {"cpu.cfs_quota_us", quota}}
	if g.version == 2 {
		files = [][2]string{{"cpu.max", quota + " " + strconv.Itoa(cfsPeriod)}}
	}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(c.cpu, f[0]), []byte(f[1]), 0o644); err != nil {
			c.remove()
			return nil, fmt.Errorf("set cpu quota: %w", err)
		}
	}
	return c, nil
}

// enter returns a command that joins the group and then becomes argv, so that
// not even its first instruction runs outside.
func (c *cgroup) enter(argv []string) []string {
	script := `n=$1; shift
while [ "$n" -gt 0 ]; do echo $$ >"$1" || exit 126; shift; n=$((n-1)); done
exec "$@"`
	out := []string{"/bin/sh", "-c", script, "sh", strconv.Itoa(len(c.dirs))}
	for _, d := range c.dirs {
		out = append(out, filepath.Join(d, "cgroup.procs"))
	}
	return append(out, argv...)
}

func (c *cgroup) pids() []int {
	b, err := os.ReadFile(filepath.Join(c.cpu, "cgroup.procs"))
	if err != nil {
		return nil
	}
	var pids []int
	for f := range strings.FieldsSeq(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (c *cgroup) remove() error { return removeGroups(c.dirs) }

func (g *cgroups) close() error { return removeGroups(g.dirs) }

// removeGroups removes empty groups. The kernel takes a moment to notice that
// the last process has left.
func removeGroups(dirs []string) error {
	var errs []error
	for _, d := range dirs {
		var err error
		for range 50 {
			if err = os.Remove(d); err == nil || errors.Is(err, os.ErrNotExist) {
				err = nil
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
		}
	}
	return errors.Join(errs...)
}
