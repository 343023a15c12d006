package process

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// cage is a cgroup (v2) of the work under one lock: nothing leaves it by
// forking, and one write kills all of it. "" is none: not every process may
// make one. As root of a virtual machine it may; in most containers not.
type cage string

// cagePrefix is how the directories of the cages of an agent begin: tokens are
// unique within one mesh, and a kernel may have machines of several.
func cagePrefix(socket string) string {
	sum := sha256.Sum256([]byte(socket))
	return "flymesh-" + hex.EncodeToString(sum[:4]) + "-"
}

// cageOf is where the cage of the mark is, if there is one: beside the other
// processes of the caller's own cgroup, so that it is under the same limits.
func cageOf(m Mark) cage {
	own := ownCgroup()
	if own == "" || m.Token == "" {
		return ""
	}
	return cage(filepath.Join(own, cagePrefix(m.Socket)+m.Token))
}

// cages returns what is in the cages of an agent, by token.
func cages(socket string) map[string][]int {
	all := map[string][]int{}
	own := ownCgroup()
	if own == "" {
		return all
	}
	prefix := filepath.Join(own, cagePrefix(socket))
	dirs, _ := filepath.Glob(prefix + "*") // the pattern is well-formed
	for _, dir := range dirs {
		if pids := cage(dir).pids(); len(pids) > 0 {
			all[strings.TrimPrefix(dir, prefix)] = pids
		} else {
			cage(dir).remove()
		}
	}
	return all
}

// open makes the directory. The file says into which cgroup a process is born.
func (c cage) open() (*os.File, bool) {
	if c == "" || os.Mkdir(string(c), 0o700) != nil {
		return nil, false
	}
	f, err := os.Open(string(c))
	if err != nil {
		c.remove()
		return nil, false
	}
	return f, true
}

func (c cage) pids() (pids []int) {
	b, err := os.ReadFile(filepath.Join(string(c), "cgroup.procs"))
	if c == "" || err != nil {
		return nil
	}
	for _, f := range strings.Fields(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil && Started(pid) != 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// kill kills all at once (Linux 5.14 and later; before, each process is killed
// by itself).
func (c cage) kill() {
	if c != "" {
		_ = os.WriteFile(filepath.Join(string(c), "cgroup.kill"), []byte("1"), 0)
	}
}

// remove removes it if nothing is in it. One that stays is seen again.
func (c cage) remove() {
	if c != "" {
		_ = os.Remove(string(c))
	}
}

// ownCgroup is the directory of this process's cgroup; "": there is none.
func ownCgroup() string {
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	path := ""
	for line := range strings.Lines(string(self)) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			path = p
		}
	}
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil || path == "" {
		return ""
	}
	defer mounts.Close()
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		// ID PARENT DEVICE ROOT POINT OPTIONS ... - TYPE SOURCE OPTIONS
		before, after, ok := strings.Cut(lines.Text(), " - ")
		f := strings.Fields(before)
		if !ok || len(f) < 5 || !strings.HasPrefix(after, "cgroup2 ") {
			continue
		}
		if rel, err := filepath.Rel(f[3], path); err == nil && !strings.HasPrefix(rel, "..") {
			return filepath.Join(f[4], rel)
		}
	}
	return ""
}
