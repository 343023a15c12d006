package process

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// TestMain turns the test binary into one that holds a program: it starts the
// script of its second argument, and at a line of its input kills all of it.
func TestMain(m *testing.M) {
	if len(os.Args) < 5 || os.Args[1] != "hold" {
		os.Exit(m.Run())
	}
	mark := Mark{Socket: os.Args[3], Token: os.Args[4]}
	if mark.Socket == "" {
		mark = Mark{}
	}
	if err := Adopt(); err != nil {
		panic(err)
	}
	older := exec.Command("sleep", "300") // not of the program
	older.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := older.Start(); err != nil {
		panic(err)
	}
	cmd := exec.Command("sh", "-c", os.Args[2])
	cmd.Env = append(os.Environ(), TokenEnv+"="+mark.Token, SocketEnv+"="+mark.Socket)
	c, err := Start(cmd, Options{Mark: mark, Alone: true})
	if err != nil {
		panic(err)
	}
	fmt.Println("started", cageOf(mark).pids() != nil)
	if !bufio.NewScanner(os.Stdin).Scan() {
		return
	}
	fmt.Println("gone", c.Kill(), c.Code(), Started(older.Process.Pid) > 0)
	_ = older.Process.Kill()
}

// runaway is a program that stays, one that leaves its group, and one that
// leaves its group, its parents and its environment. All have a name.
func runaway(name string) string {
	return fmt.Sprintf(`(setsid env -i sh -c 'sleep 300; true' %[1]s &); (setsid sh -c 'sleep 300; true' %[1]s &); sh -c 'sleep 300; true' %[1]s & wait`, name)
}

// named counts the living processes that have the name in their arguments.
func named(name string) (n int) {
	for _, pid := range pids() {
		b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
		args := bytes.Split(bytes.TrimSuffix(b, []byte{0}), []byte{0})
		if string(args[len(args)-1]) == name && Started(pid) != 0 {
			n++
		}
	}
	return n
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

type holder struct {
	cmd  *exec.Cmd
	in   *os.File
	out  *bufio.Scanner
	cage bool
	name string
}

func hold(t *testing.T, m Mark) *holder {
	t.Helper()
	h := &holder{name: fmt.Sprintf("runaway-%d-%s", os.Getpid(), t.Name())}
	h.cmd = exec.Command(os.Args[0], "hold", runaway(h.name), m.Socket, m.Token)
	h.cmd.Stderr = os.Stderr
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	h.in, h.cmd.Stdin = w, r
	out, err := h.cmd.StdoutPipe()
	if err == nil {
		err = h.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	t.Cleanup(func() { w.Close(); _ = h.cmd.Process.Kill(); _ = h.cmd.Wait(); m.Kill() })
	h.out = bufio.NewScanner(out)
	h.cage = h.line(t) == "started true"
	if probe := cage(filepath.Join(ownCgroup(), "flymesh-probe")); m.Token != "" && os.Mkdir(string(probe), 0o700) == nil {
		probe.remove()
		if !h.cage {
			t.Error("a cgroup may be made here, and was not")
		}
	}
	until(t, "three programs", func() bool { return named(h.name) == 3 })
	return h
}

func (h *holder) line(t *testing.T) string {
	t.Helper()
	if !h.out.Scan() {
		t.Fatalf("the holder said nothing: %v", h.out.Err())
	}
	return h.out.Text()
}

// The holder ends everything that its program started, also what left the
// group, the parents and the environment: with a cgroup, and without one.
func TestKillEndsWhatRanAway(t *testing.T) {
	for name, m := range map[string]Mark{"marked": {Socket: filepath.Join(t.TempDir(), "s"), Token: "1-2"}, "unmarked": {}} {
		t.Run(name, func(t *testing.T) {
			h := hold(t, m)
			began := time.Now()
			fmt.Fprintln(h.in, "kill")
			if got, want := h.line(t), "gone true 137 true"; got != want {
				t.Errorf("the holder says %q, want %q", got, want)
			}
			if n := named(h.name); n > 0 {
				t.Errorf("%d programs still run", n)
			}
			t.Logf("all gone after %v, cgroup %v", time.Since(began).Round(time.Millisecond), h.cage)
		})
	}
}

// What a holder leaves that was killed itself is found by others.
func TestLeftoversAreFound(t *testing.T) {
	m := Mark{Socket: filepath.Join(t.TempDir(), "s"), Token: "1-3"}
	h := hold(t, m)
	if err := h.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = h.cmd.Wait()
	if n := len(Marked(m.Socket)[m.Token]); n == 0 {
		t.Error("nothing is found of what the dead holder left")
	}
	until(t, "nothing left", func() bool { return m.Kill() == 0 })
	want := 0
	if !h.cage {
		want = 1 // without a cgroup nobody finds a process without environment and parents
		t.Log("no cgroup may be made here: what cleared its environment is not found")
	}
	until(t, "nothing named left", func() bool { return named(h.name) <= want })
	if c := cageOf(m); c != "" {
		if _, err := os.Stat(string(c)); err == nil {
			t.Errorf("the cgroup %s is left", c)
		}
	}
	for _, pid := range pids() { // ours to end, where nobody else can
		b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
		if bytes.Contains(b, []byte(h.name)) {
			killAll([]int{pid})
		}
	}
}

// Another agent's work, and that of another token, is left alone.
func TestKillLeavesOthers(t *testing.T) {
	dir := t.TempDir()
	m := Mark{Socket: filepath.Join(dir, "s"), Token: "1-4"}
	h := hold(t, m)
	for _, other := range []Mark{{Socket: m.Socket, Token: "1-5"}, {Socket: filepath.Join(dir, "z"), Token: "1-4"}, {}} {
		if n := other.Kill(); n > 0 {
			t.Errorf("%+v killed %d processes", other, n)
		}
	}
	// A shell that has just forked is seen twice.
	until(t, "still three programs", func() bool { return named(h.name) == 3 })
	fmt.Fprintln(h.in, "kill")
	h.line(t)
}
