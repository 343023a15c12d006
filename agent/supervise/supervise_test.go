package supervise

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestExitCodeIsKept(t *testing.T) {
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("no program"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		want int
		app  []string
	}{
		{0, []string{"true"}},
		{7, []string{"sh", "-c", "exit 7"}},
		{128 + 9, []string{"sh", "-c", "kill -9 $$"}},
		{128 + 11, []string{"sh", "-c", "ulimit -c 0; kill -SEGV $$"}},
		{ExitNotFound, []string{"/no/such/program"}},
		{ExitNotFound, []string{"no-such-program-anywhere"}},
		{ExitNotExecutable, []string{text}},
	} {
		if got, out := supervise(t, nil, c.app...).end(); got != c.want {
			t.Errorf("%q: exit %d, want %d\n%s", c.app, got, c.want, out)
		}
	}
}

func TestAppEndsEverything(t *testing.T) {
	for how, late := range map[string]bool{"": false, "never ends": true} {
		r := supervise(t, []string{"MESH=" + how}, "sh", "-c", "read line; exit 7")
		r.wait("mesh up")
		begin := time.Now()
		fmt.Fprintln(r.in, "go")
		code, out := r.end()
		if code != 7 || !strings.Contains(out, "mesh app code 7\nmesh ends") {
			t.Errorf("%q: exit %d\n%s", how, code, out)
		}
		if d := time.Since(begin); late != (d > 500*time.Millisecond) || d > 4*time.Second {
			t.Errorf("%q: the end took %v", how, d)
		}
	}
}

func TestAppIsUntouched(t *testing.T) {
	const script = `cat; echo "err" >&2; echo "nice $(cut -d' ' -f19 /proc/$$/stat) limit ${GOMEMLIMIT-none} sockets $(ls -l /proc/$$/fd | grep -c socket) signals $(grep 'Sig[BIC]' /proc/$$/status | tr '\n' ' ')"`
	direct := exec.Command("sh", "-c", script)
	direct.Stdin = strings.NewReader("through stdin\n")
	want, err := direct.CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	r := supervise(t, nil, "sh", "-c", script+`; echo group $(cut -d' ' -f5 /proc/$$/stat) of $$; read line`)
	mesh := r.wait("mesh up")
	fmt.Fprintln(r.in, "through stdin")
	r.in.Close()
	got := r.wait("through stdin") + "\n" + r.wait("err") + "\n" + r.wait("nice") + "\n"
	if got != string(want) {
		t.Errorf("the app sees\n%swithout the supervisor\n%s", got, want)
	}
	f := strings.Fields(r.wait("group"))
	if f[1] != f[3] {
		t.Errorf("the app's group is %s, want %s", f[1], f[3])
	}
	if field(mesh, "app") != f[3] || field(mesh, "nice") != "5" || field(mesh, "limit") != "64MiB" {
		t.Errorf("the mesh half sees %q", mesh)
	}
	if n, _ := strconv.Atoi(field(mesh, "oom")); n < 500 {
		t.Errorf("the mesh half sees %q", mesh)
	}
	if code, _ := r.end(); code != 1 {
		t.Errorf("exit %d, want that of read at the end of the file", code)
	}
}

func TestSignalsArePassedOn(t *testing.T) {
	script := `for s in HUP QUIT USR1 USR2 WINCH; do trap "echo app got $s" $s; done; echo app up; while :; do sleep 0.05; done`
	r := supervise(t, nil, "sh", "-c", script)
	r.wait("app up")
	for name, sig := range map[string]syscall.Signal{"HUP": syscall.SIGHUP, "QUIT": syscall.SIGQUIT, "USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2, "WINCH": syscall.SIGWINCH} {
		_ = r.Process.Signal(sig)
		r.wait("app got " + name)
	}
	_ = r.Process.Signal(syscall.SIGTERM)
	if code, _ := r.end(); code != 128+15 {
		t.Errorf("exit %d, want %d", code, 128+15)
	}
}

// A load on the app sees nothing of what happens to the mesh half.
func TestAppOutlivesTheMeshHalf(t *testing.T) {
	r := supervise(t, nil, os.Args[0], "serve", "127.0.0.1:0")
	app, half := r.up()
	addr, mesh := field(app, "addr"), pid(t, half)

	stop, result := make(chan struct{}), make(chan error, 1)
	asked := 0
	go func() {
		for {
			select {
			case <-stop:
				result <- nil
				return
			default:
			}
			if err := ask(addr); err != nil {
				result <- err
				return
			}
			asked++
			time.Sleep(time.Millisecond)
		}
	}()
	for name, sig := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "aborted": syscall.SIGABRT, "ended": syscall.SIGTERM, "frozen": syscall.SIGSTOP} {
		begin := time.Now()
		if err := syscall.Kill(mesh, sig); err != nil {
			t.Fatal(err)
		}
		next := pid(t, r.wait("mesh up"))
		t.Logf("%s: back after %v", name, time.Since(begin).Round(time.Millisecond))
		if next == mesh {
			t.Errorf("%s: the same process", name)
		}
		mesh = next
		time.Sleep(100 * time.Millisecond)
	}
	close(stop)
	if err := <-result; err != nil {
		t.Errorf("after %d requests: %v", asked, err)
	}
	t.Logf("%d requests, none failed", asked)
	if asked == 0 {
		t.Error("no requests")
	}
	_ = r.Process.Signal(syscall.SIGTERM)
	if code, _ := r.end(); code != 3 {
		t.Errorf("exit %d, want 3", code)
	}
}

func TestMeshHalfThatCannotStart(t *testing.T) {
	r := supervise(t, []string{"MESH=bad"}, os.Args[0], "serve", "127.0.0.1:0")
	addr := field(r.wait("app up"), "addr")
	r.wait("cannot start with this configuration")
	if err := ask(addr); err != nil {
		t.Error(err)
	}
	_ = r.Process.Signal(syscall.SIGTERM) // nobody to drain: at once
	code, out := r.end()
	if code != 3 || strings.Contains(out, "bad configuration") {
		t.Errorf("exit %d\n%s", code, out)
	}
}

func TestMeshHalfThatPanics(t *testing.T) {
	r := supervise(t, []string{"MESH=panics"}, os.Args[0], "serve", "127.0.0.1:0")
	r.up()
	_ = r.Process.Signal(syscall.SIGTERM)
	// It panics while it drains: the app gets its signal at once.
	begin := time.Now()
	r.wait("panic: on purpose")
	r.wait("app got terminated")
	if d := time.Since(begin); d > 1500*time.Millisecond {
		t.Errorf("the signal came after %v", d)
	}
	if code, _ := r.end(); code != 3 {
		t.Errorf("exit %d", code)
	}
}

func TestDrainComesFirst(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		r := supervise(t, nil, os.Args[0], "serve", "127.0.0.1:0")
		r.up()
		_ = r.Process.Signal(sig)
		if line := r.wait("mesh drains"); field(line, "within") != "2s" { // half of 4 s
			t.Error(line)
		}
		r.wait("mesh drained")
		begin := time.Now()
		r.wait("app got " + sig.String())
		if d := time.Since(begin); d > time.Second {
			t.Errorf("the app got its signal %v after the drain", d)
		}
		r.wait("mesh app code 3")
		if code, _ := r.end(); code != 3 {
			t.Errorf("exit %d", code)
		}
	}
}

func TestDrainHasAnEnd(t *testing.T) {
	r := supervise(t, []string{"MESH=never drains", "KILL_TIMEOUT=2s"}, os.Args[0], "serve", "127.0.0.1:0")
	r.up()
	begin := time.Now()
	_ = r.Process.Signal(syscall.SIGTERM)
	r.wait("app got terminated")
	if d := time.Since(begin); d < 900*time.Millisecond || d > 1900*time.Millisecond {
		t.Errorf("the app got its signal after %v, want half of 2 s", d)
	}
	r.end()

	// A second signal is an order not to wait.
	r = supervise(t, []string{"MESH=never drains"}, os.Args[0], "serve", "127.0.0.1:0")
	r.up()
	begin = time.Now()
	_ = r.Process.Signal(syscall.SIGTERM)
	r.wait("mesh drains")
	_ = r.Process.Signal(syscall.SIGTERM)
	r.wait("app got terminated")
	if d := time.Since(begin); d > 1500*time.Millisecond {
		t.Errorf("the app got its signal after %v", d)
	}
	r.end()
}

func TestStubbornAppIsKilled(t *testing.T) {
	r := supervise(t, []string{"KILL_TIMEOUT=1s"}, "sh", "-c", `trap "" TERM; echo app up; while :; do sleep 0.1; done`)
	r.wait("app up")
	begin := time.Now()
	_ = r.Process.Signal(syscall.SIGTERM)
	code, out := r.end()
	if d := time.Since(begin); code != 128+9 || d < 700*time.Millisecond || d > 3*time.Second {
		t.Errorf("exit %d after %v\n%s", code, d, out)
	}
}

func TestKilledSupervisorLeavesBoth(t *testing.T) {
	r := supervise(t, nil, os.Args[0], "serve", "127.0.0.1:0")
	serving, half := r.up()
	app, addr, mesh := pid(t, serving), field(serving, "addr"), pid(t, half)
	_ = r.Process.Kill()
	_, _ = r.Process.Wait()
	r.wait("mesh alone:")
	for name, pid := range map[string]int{"app": app, "mesh half": mesh} {
		if err := syscall.Kill(pid, 0); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := ask(addr); err != nil {
		t.Error(err)
	}
}

// On a terminal the app is in the foreground: it may read, and Ctrl-C is its.
func TestTerminal(t *testing.T) {
	ptm, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no terminal may be made here: %v", err)
	}
	defer ptm.Close()
	n, err := unix.IoctlGetInt(int(ptm.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(ptm.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Skipf("no terminal may be made here: %v", err)
	}
	pts, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no terminal may be made here: %v", err)
	}
	c := exec.Command(os.Args[0], "sh", "-c", `trap "exit 4" INT; read line; echo "app got $line"; while :; do sleep 0.05; done`)
	c.Env = append(os.Environ(), "ROLE=supervisor", "KILL_TIMEOUT=4s", "GORACE=atexit_sleep_ms=0")
	c.Stdin, c.Stdout, c.Stderr = pts, pts, pts
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	pts.Close()
	defer c.Process.Kill()
	out := make(chan string, 100)
	go func() {
		for sc := bufio.NewScanner(ptm); sc.Scan(); {
			out <- sc.Text()
		}
	}()
	until := func(text string) {
		for deadline := time.After(10 * time.Second); ; {
			select {
			case line := <-out:
				if strings.Contains(line, text) {
					return
				}
			case <-deadline:
				t.Fatalf("no %q on the terminal", text)
			}
		}
	}
	until("mesh up")
	fmt.Fprintln(ptm, "a line")
	until("app got a line")
	fmt.Fprint(ptm, "\x03")
	ended := make(chan struct{})
	go func() { _ = c.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("Ctrl-C did not end the app")
	}
	if code := c.ProcessState.ExitCode(); code != 4 {
		t.Errorf("exit %d, want 4", code)
	}
}

// An orphan belongs to PID 1, not to the supervisor, and outlives the app.
func TestOrphansAreNotTaken(t *testing.T) {
	r := supervise(t, nil, "sh", "-c", `(sleep 30 & echo orphan up pid=$!); sleep 0.2; echo done; read line`)
	orphan := pid(t, r.wait("orphan up"))
	r.wait("done")
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", orphan))
	if err != nil {
		t.Fatal(err)
	}
	if parent := strings.Fields(string(b))[3]; parent == strconv.Itoa(r.Process.Pid) {
		t.Error("the orphan belongs to the supervisor")
	}
	fmt.Fprintln(r.in)
	_ = syscall.Kill(orphan, 0)
	r.in.Close()
	go func() { // the orphan holds the output open
		time.Sleep(300 * time.Millisecond)
		_ = syscall.Kill(orphan, syscall.SIGKILL)
	}()
	r.end()
}

// As PID 1 of a container the supervisor reaps the orphans that it is given.
func TestOrphansAreReapedByPID1(t *testing.T) {
	c := exec.Command(os.Args[0], "sh", "-c", `i=0; while [ $i -lt 20 ]; do (true & exec true) ; sh -c 'sleep 0.1 & exit 0'; i=$((i+1)); done; sleep 1; echo zombies $(cat /proc/[0-9]*/stat | cut -d' ' -f3 | grep -c Z); exit 5`)
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	if err := exec.Command("unshare", "--pid", "--fork", "true").Run(); err != nil {
		t.Skipf("no PID namespace may be made here: %v", err)
	}
	r := launch(t, c, nil)
	if line := r.wait("zombies"); line != "zombies 0" {
		t.Error(line)
	}
	if code, _ := r.end(); code != 5 {
		t.Errorf("exit %d, want 5", code)
	}
}

func TestBackoff(t *testing.T) {
	var b backoff
	var got []time.Duration
	for range 12 {
		got = append(got, b.next(time.Second))
	}
	if got[0] != 100*time.Millisecond || got[1] != 200*time.Millisecond || got[8] != 25600*time.Millisecond || got[11] != 30*time.Second {
		t.Errorf("pauses %v", got)
	}
	if p := b.next(2 * time.Minute); p != firstPause {
		t.Errorf("after a healthy life: %v", p)
	}
}

func TestAttachOutside(t *testing.T) {
	if c, err := Attach(); c != nil || err != nil {
		t.Errorf("Attach without a supervisor = %v, %v", c, err)
	}
	t.Setenv(ControlEnv, "stdin")
	if _, err := Attach(); err == nil {
		t.Error("a bad descriptor was accepted")
	}
}

func TestSupervisorIsSmall(t *testing.T) {
	r := supervise(t, nil, os.Args[0], "serve", "127.0.0.1:0")
	r.wait("mesh up")
	time.Sleep(200 * time.Millisecond)
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "Rss") || strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "Threads") {
			t.Log(strings.TrimSpace(line))
		}
	}
}
