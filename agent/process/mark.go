package process

import (
	"bytes"
	"os"
	"strconv"
	"syscall"
)

// What the work under a lock finds in its environment.
const (
	TokenEnv  = "FLYMESH_LOCK_TOKEN"  // as it was granted: 1-42
	SocketEnv = "FLYMESH_LOCK_SOCKET" // of the agent that knows
)

// Mark tells the work under one lock from all other processes. The zero Mark is
// that of work without a lock.
type Mark struct {
	Socket string // of the agent
	Token  string
}

// Marked returns the processes that run under a lock of the agent, by token:
// what holders start, and what that starts, has both in its environment or is
// in the token's cgroup.
func Marked(socket string) map[string][]int {
	all := cages(socket)
	home := []byte(SocketEnv + "=" + socket)
	for _, pid := range pids() {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ") // empty for a zombie
		if err != nil || pid == os.Getpid() {
			continue
		}
		token, ours := "", false
		for v := range bytes.SplitSeq(b, []byte{0}) {
			if t, ok := bytes.CutPrefix(v, []byte(TokenEnv+"=")); ok {
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

// Kill kills what runs under the mark and returns how much of it was still
// there: 0 means that nothing runs any more. The caller repeats it.
func (m Mark) Kill() (left int) {
	if m == (Mark{}) {
		return 0
	}
	c := cageOf(m)
	c.kill() // at once, so that nothing of it can start more
	left = killAll(Marked(m.Socket)[m.Token])
	if left == 0 {
		c.remove()
	}
	return left
}

// killAll kills processes and returns how many there were.
func killAll(pids []int) (n int) {
	for _, pid := range pids {
		if syscall.Kill(pid, syscall.SIGKILL) == nil { // else it has ended, as is wanted
			n++
		}
	}
	return n
}
