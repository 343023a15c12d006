package flytest

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	fly "github.com/superfly/fly-go"
)

// machinePIDs returns the processes whose environment has every mark. One is
// the machine's ID; another tells it from the machine of another emulator that
// happens to have the same ID.
func machinePIDs(marks []string) []int {
	names, err := readNames("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil && belongs(pid, marks) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func readNames(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// belongs reports whether a live process carries every mark. A process that
// has ended but was not waited for has no environment any more.
func belongs(pid int, marks []string) bool {
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil || pid == os.Getpid() {
		return false
	}
	left := len(marks)
	for v := range bytes.SplitSeq(env, []byte{0}) {
		if slices.Contains(marks, string(v)) {
			left--
		}
	}
	return left <= 0
}

// processState returns the letter of a process's state, empty if it has ended.
func processState(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	rest := afterName(stat)
	state, _, _ := strings.Cut(rest, " ")
	return state
}

// afterName returns the fields after the process's name, which may contain anything.
func afterName(stat []byte) string {
	i := bytes.LastIndex(stat, []byte(") "))
	return string(stat[max(0, i+2):])
}

// processStat reads what the API's ps tells of a process; times in ticks.
func processStat(pid int) (fly.ProcessStat, bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return fly.ProcessStat{}, false
	}
	rest := afterName(stat)
	f := strings.Fields(rest) // from field 3, the state
	if len(f) < 22 {
		return fly.ProcessStat{}, false
	}
	num := func(field int) uint64 { n, _ := strconv.ParseUint(f[field-3], 10, 64); return n }
	cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	dir, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	return fly.ProcessStat{
		Pid: int32(pid), Stime: num(15), Rtime: num(22), Cpu: num(14) + num(15), Rss: num(24) * uint64(os.Getpagesize()),
		Command:       strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " ")),
		Directory:     dir,
		ListenSockets: []fly.ListenSocket{},
	}, true
}
