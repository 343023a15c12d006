// Package process starts programs that must end, finds what they have started,
// and ends all of it: the process group, what left the group, and what left the
// family. It is used by whatever runs a program under a lock or in a role.
//
// What work under a lock starts is known by three signs. It is in the cgroup
// that Start made for it, where this process may make one; it has the lock's
// token in its environment; it descends from the process that started it. The
// first holds always, the others hold unless a program takes pains.
package process

import (
	"bytes"
	"os"
	"slices"
	"strconv"
)

// Started returns when a process started, in the kernel's ticks since boot, or
// 0 if there is none or it is a zombie (proc(5), stat).
func Started(pid int) uint64 {
	s, ok := readStat(pid)
	if !ok || s.dead {
		return 0
	}
	return s.started
}

// Alive says whether the process of that start still runs.
func Alive(pid int, start uint64) bool { return pid > 0 && start != 0 && Started(pid) == start }

// processes are all that there are, by PID. Without /proc there are none.
type processes map[int]stat

// stat is what is needed of /proc/PID/stat.
type stat struct {
	parent, group int
	dead          bool   // a zombie, or about to vanish
	started       uint64 // in the kernel's ticks since boot
}

// under lists the living processes that descend from one, but not by way of
// those that are spared.
func (p processes) under(root int, spared []int) (pids []int) {
	children := map[int][]int{}
	for pid, s := range p {
		children[s.parent] = append(children[s.parent], pid)
	}
	for todo := children[root]; len(todo) > 0; {
		pid := todo[0]
		todo = todo[1:]
		if slices.Contains(spared, pid) {
			continue
		}
		todo = append(todo, children[pid]...)
		if !p[pid].dead {
			pids = append(pids, pid)
		}
	}
	return pids
}

// group lists the living processes of a process group.
func (p processes) group(id int) (pids []int) {
	for pid, s := range p {
		if s.group == id && !s.dead {
			pids = append(pids, pid)
		}
	}
	return pids
}

func table() processes {
	all := processes{}
	for _, pid := range pids() {
		if s, ok := readStat(pid); ok {
			all[pid] = s
		}
	}
	return all
}

func pids() (all []int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

func readStat(pid int) (stat, bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return stat{}, false
	}
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:]) // STATE PARENT GROUP ...
	if len(f) < 20 {
		return stat{}, false
	}
	parent, err1 := strconv.Atoi(string(f[1]))
	group, err2 := strconv.Atoi(string(f[2]))
	started, err3 := strconv.ParseUint(string(f[19]), 10, 64)
	dead := string(f[0]) == "Z" || string(f[0]) == "X"
	return stat{parent, group, dead, started}, err1 == nil && err2 == nil && err3 == nil
}
