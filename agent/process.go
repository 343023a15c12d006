package agent

import (
	"bytes"
	"os"
	"strconv"
	"syscall"

	"flymesh/agent/api"
)

// started returns when a process started, in the kernel's ticks since boot, or
// 0 if there is none or it is a zombie (proc(5), stat).
func started(pid int) uint64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 20 || string(f[0]) == "Z" || string(f[0]) == "X" {
		return 0
	}
	t, err := strconv.ParseUint(string(f[19]), 10, 64)
	if err != nil {
		return 0
	}
	return t
}

// alive says whether the process of that start still runs.
func alive(pid int, start uint64) bool { return pid > 0 && start != 0 && started(pid) == start }

// marked returns the processes that run under a lock of this agent, by token:
// what `agentctl lock` starts, and what that starts, has both in its environment.
func marked(socket string) map[string][]int {
	entries, _ := os.ReadDir("/proc") // no /proc: none are seen
	all := map[string][]int{}
	home := []byte(api.LockSocketEnv + "=" + socket)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		b, err := os.ReadFile("/proc/" + e.Name() + "/environ") // empty for a zombie
		if err != nil {
			continue
		}
		token, ours := "", false
		for v := range bytes.SplitSeq(b, []byte{0}) {
			if t, ok := bytes.CutPrefix(v, []byte(api.LockTokenEnv+"=")); ok {
				token = string(t)
			}
			ours = ours || bytes.Equal(v, home)
		}
		if ours && token != "" {
			all[token] = append(all[token], pid)
		}
	}
	return all
}

func killAll(pids []int) {
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL) // one that has ended is what is wanted
	}
}
