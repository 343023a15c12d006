package host

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// ticks per second of the times in /proc/PID/stat; USER_HZ is 100 on every
// architecture that Linux exports to Go programs.
const ticks = 100

// tree accounts the CPU time of a set of processes from /proc/PID/stat, those
// that began and ended between two readings included: their time is in the
// reaped time of the parent that waited for them. The time of a process whose
// parent ignores SIGCHLD, and of one that left the tree, is lost from when it
// was last seen.
type tree struct {
	proc string
	last map[process]times
}

// process is one life of a PID.
type process struct {
	pid   int
	start uint64 // ticks since boot
}

type times struct {
	parent int
	own    uint64 // ticks
	reaped uint64 // ticks of children that were waited for
}

func newTree(proc string) *tree { return &tree{proc: proc} }

// descendants lists root and all processes below it.
func (t *tree) descendants(root int) map[process]times {
	all := t.all()
	in := map[int]bool{root: true}
	// A child may have a lower PID than its parent after a wrap, so repeat
	// until nothing is added.
	for grown := true; grown; {
		grown = false
		for p, v := range all {
			if !in[p.pid] && in[v.parent] {
				in[p.pid], grown = true, true
			}
		}
	}
	for p := range all {
		if !in[p.pid] {
			delete(all, p)
		}
	}
	return all
}

// members lists the processes of a cgroup and of those below it.
func (t *tree) members(cgroup string) map[process]times {
	in := map[process]times{}
	// What cannot be read is gone; an empty set is refused by used.
	_ = filepath.WalkDir(cgroup, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return nil
		}
		b, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		for _, f := range bytes.Fields(b) {
			pid, _ := strconv.Atoi(string(f))
			if p, v, err := t.stat(pid); err == nil {
				in[p] = v
			}
		}
		return nil
	})
	return in
}

// all lists every process.
func (t *tree) all() map[process]times {
	entries, _ := os.ReadDir(t.proc) // an unreadable /proc is an empty set, which used refuses
	all := map[process]times{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, v, err := t.stat(pid); err == nil { // it may have ended meanwhile
			all[p] = v
		}
	}
	return all
}

// stat reads /proc/PID/stat (proc(5)).
func (t *tree) stat(pid int) (process, times, error) {
	b, err := os.ReadFile(filepath.Join(t.proc, strconv.Itoa(pid), "stat"))
	if err != nil {
		return process{}, times{}, err
	}
	// The command name is in parentheses and may hold spaces and parentheses.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 20 {
		return process{}, times{}, fmt.Errorf("read stat of process %d: %d fields", pid, len(f))
	}
	var n [6]uint64
	for i, field := range []int{1, 11, 12, 13, 14, 19} { // ppid utime stime cutime cstime starttime
		if n[i], err = strconv.ParseUint(string(f[field]), 10, 64); err != nil {
			return process{}, times{}, fmt.Errorf("read stat of process %d: %w", pid, err)
		}
	}
	return process{pid, n[5]}, times{int(n[0]), n[1] + n[2], n[3] + n[4]}, nil
}

// errFirst says that a rate needs a second sample.
var errFirst = errors.New("the first sample has no rate")

// used returns the CPU seconds that the processes used since the last call.
func (t *tree) used(now map[process]times) (float64, error) {
	last := t.last
	if len(now) == 0 {
		t.last = nil
		return 0, errors.New("the process tree is gone")
	}
	t.last = now
	if last == nil {
		return 0, errFirst
	}
	var own, reaped, gone int64
	for p, v := range now {
		own += int64(v.own) - int64(last[p].own)
		reaped += int64(v.reaped) - int64(last[p].reaped)
	}
	for p, v := range last {
		if _, ok := now[p]; !ok {
			gone += int64(v.own + v.reaped) // counted before; its parent's reaped time has it again
		}
	}
	return float64(own+max(reaped-gone, 0)) / ticks, nil
}
