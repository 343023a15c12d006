package e2e

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"flymesh/cmd/agentctl/emulator"
)

// The execution oracle: what runs under a lock or as a job says so in one
// file, twenty times a second. Nothing that the mesh says about itself counts.

// beats is a command that works for a time. Each line that it appends has its
// token, its process, when it began, the time now, and the run that it is of.
func beats(file string, work time.Duration) []string {
	return []string{"sh", "-c", fmt.Sprintf(
		`s=$(date +%%s%%N); i=0; while [ $i -lt %d ]; do echo "$FLYMESH_LOCK_FENCE $$ $s $(date +%%s%%N) ${FLYMESH_JOB_RUN:--}" >> %s; i=$((i+1)); sleep 0.05; done`,
		int(work/(50*time.Millisecond)), file)}
}

// span is one process's work as the oracle has seen it. It ends with its last
// sign of life: a process that is frozen and goes on has worked all the time.
type span struct {
	token      uint64
	pid        int
	start, end int64   // ns
	at         []int64 // ns: all its signs of life
	run        string  // of a job
}

// oracle reads what has worked, in the order of its beginnings.
func oracle(t *testing.T, file string) (spans []span) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	type key struct {
		token uint64
		pid   int
	}
	by := map[key]*span{}
	for line := range strings.Lines(string(b)) {
		var v span
		if n, _ := fmt.Sscan(line, &v.token, &v.pid, &v.start, &v.end, &v.run); n != 5 {
			continue // cut off by a kill
		}
		k := key{v.token, v.pid}
		if by[k] == nil {
			by[k] = &v
		}
		by[k].at, by[k].end = append(by[k].at, v.end), max(by[k].end, v.end)
	}
	for _, s := range by {
		spans = append(spans, *s)
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	return spans
}

// broken says what of the promise the spans break: one at a time, tokens that
// grow, one start for each token and each run.
func broken(spans []span) (wrong []string) {
	runs := map[string]bool{}
	for i, s := range spans {
		if runs[s.run] {
			wrong = append(wrong, fmt.Sprintf("run %s began twice", s.run))
		}
		runs[s.run] = s.run != "-"
		if i == 0 {
			continue
		}
		last := spans[i-1]
		if s.token <= last.token {
			wrong = append(wrong, fmt.Sprintf("token %d came after %d", s.token, last.token))
		}
		for _, o := range spans[:i] {
			if d := time.Duration(o.end - s.start); d >= 0 {
				wrong = append(wrong, fmt.Sprintf("process %d under token %d began %s before process %d under %d ended", s.pid, s.token, d, o.pid, o.token))
			}
		}
	}
	return wrong
}

// worked is how many have begun to work.
func worked(t *testing.T, file string) int { return len(oracle(t, file)) }

// lock runs a command under a lock, as a process of the machine: what ends or
// freezes the machine does so to it. end waits for it and returns its exit code.
func (m *mesh) lock(x emulator.Machine, name string, wait time.Duration, argv []string, flags ...string) (pid int, end func() int) {
	m.t.Helper()
	args := append([]string{"lock", name, "--socket", x.Socket, "--wait", wait.String()}, flags...)
	c := exec.Command(filepath.Join(filepath.Dir(m.agent), "agentctl"), append(append(args, "--"), argv...)...)
	c.Env = append(os.Environ(), "FLY_MACHINE_ID="+x.ID, "FLYMESH_SOCKET="+x.Socket)
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		m.t.Fatal(err)
	}
	return c.Process.Pid, sync.OnceValue(func() int { _ = c.Wait(); return c.ProcessState.ExitCode() })
}

// agentctl asks a machine's agent, and returns what is printed and the exit code.
func (m *mesh) agentctl(x emulator.Machine, args ...string) (out string, code int) {
	m.t.Helper()
	c := exec.Command(filepath.Join(filepath.Dir(m.agent), "agentctl"), append([]string{"--socket", x.Socket}, args...)...)
	b, err := c.CombinedOutput()
	if c.ProcessState == nil {
		m.t.Fatal(err)
	}
	return string(b), c.ProcessState.ExitCode()
}

// children lists the processes under one, itself included.
func children(pid int) (all []int) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, t := range tasks {
		c, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, t.Name()))
		b = append(append(b, ' '), c...)
	}
	all = []int{pid}
	for _, f := range strings.Fields(string(b)) {
		if c, err := strconv.Atoi(f); err == nil && !slices.Contains(all, c) {
			all = append(all, children(c)...)
		}
	}
	return all
}

// freeze stops processes in their tracks; the function lets them go on.
func freeze(pids ...int) (thaw func()) {
	for _, p := range pids {
		_ = syscall.Kill(p, syscall.SIGSTOP)
	}
	return func() {
		for _, p := range pids {
			_ = syscall.Kill(p, syscall.SIGCONT) // some have been killed
		}
	}
}

// TestOracleSees holds that the oracle finds what it is there for.
func TestOracleSees(t *testing.T) {
	for _, c := range []struct{ name, lines, want string }{
		{"one after the other", "5 10 100 100 J@1\n5 10 100 200 J@1\n6 11 201 300 J@2\n", ""},
		{"frozen, then going on", "5 10 100 150 -\n6 11 201 300 -\n5 10 100 400 -\n", "before process 10 under 5 ended"},
		{"an old token", "6 10 100 200 -\n5 11 300 400 -\n", "token 5 came after 6"},
		{"two starts under a token", "5 10 100 200 -\n5 11 300 400 -\n", "token 5 came after 5"},
		{"a tick twice", "5 10 100 200 J@1\n6 11 300 400 J@1\n", "run J@1 began twice"},
		{"a line cut off by a kill", "5 10 100 200 -\n5 10 10", ""},
	} {
		file := filepath.Join(t.TempDir(), "oracle")
		if err := os.WriteFile(file, []byte(c.lines), 0o600); err != nil {
			t.Fatal(err)
		}
		got := strings.Join(broken(oracle(t, file)), "; ")
		if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
