package supervise

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain turns the test binary into a supervisor, a mesh half or an app.
func TestMain(m *testing.M) {
	switch role, _, _ := strings.Cut(os.Getenv("ROLE"), " "); role {
	case "supervisor":
		kill, _ := time.ParseDuration(os.Getenv("KILL_TIMEOUT"))
		if os.Getpid() == 1 { // a new PID namespace needs its own /proc
			_ = unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "")
			_ = unix.Mount("proc", "/proc", "proc", 0, "")
		}
		os.Exit(Run(context.Background(), Options{
			App:         os.Args[1:],
			Mesh:        []string{"/proc/self/exe", "mesh"},
			Env:         append(os.Environ(), "ROLE=mesh"),
			KillTimeout: kill,
			Log:         slog.New(slog.NewTextHandler(os.Stdout, nil)),
			beat:        50 * time.Millisecond, // hangs after half a second
		}))
	case "mesh":
		if len(os.Args) > 1 && os.Args[1] == "mesh" {
			meshRole(os.Getenv("MESH"))
		}
	}
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		serveRole(os.Args[2])
	}
	os.Exit(m.Run())
}

// meshRole is a mesh half that tells what it sees.
func meshRole(how string) {
	if how == "bad" {
		fmt.Println("mesh: bad configuration")
		os.Exit(2)
	}
	c, err := Attach()
	if err != nil || c == nil {
		fmt.Println("mesh: not attached", err)
		os.Exit(1)
	}
	c.beat = 10 * time.Millisecond
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- c.Run(context.Background(), nil) }()
	nice, _ := unix.Getpriority(unix.PRIO_PROCESS, 0)
	score, _ := os.ReadFile("/proc/self/oom_score_adj")
	fmt.Printf("mesh up pid=%d app=%d nice=%d oom=%s limit=%s\n", os.Getpid(), c.AppPID(), 20-nice, strings.TrimSpace(string(score)), os.Getenv("GOMEMLIMIT"))
	for {
		select {
		case d := <-c.Drains():
			fmt.Printf("mesh drains within=%v\n", time.Until(d.Deadline).Round(100*time.Millisecond))
			if how == "never drains" {
				continue
			}
			if how == "panics" {
				panic("on purpose")
			}
			time.Sleep(50 * time.Millisecond)
			fmt.Println("mesh drained")
			_ = d.Done()
		case <-ctx.Done():
			select {
			case <-c.AppExited():
				fmt.Println("mesh app code", c.AppExitCode())
			case <-time.After(200 * time.Millisecond): // told to end by another
			}
			fmt.Println("mesh ends")
			if how == "never ends" {
				time.Sleep(time.Hour)
			}
			os.Exit(0)
		case err := <-ended:
			fmt.Println("mesh alone:", err)
			ended = nil
		}
	}
}

// serveRole is an app that answers each connection until a signal.
func serveRole(addr string) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("app up pid="+strconv.Itoa(os.Getpid()), "addr="+l.Addr().String())
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, "served")
			c.Close()
		}
	}()
	fmt.Println("app got", <-stop)
	os.Exit(3)
}

// run is a running supervisor whose output can be waited for.
type run struct {
	*exec.Cmd
	t     *testing.T
	in    io.WriteCloser
	lines chan string
	seen  []string
	pids  []int // of its children, to be ended with the test
}

// supervise starts a supervisor process over an app.
func supervise(t *testing.T, env []string, app ...string) *run {
	t.Helper()
	c := exec.Command(os.Args[0], app...)
	return launch(t, c, env)
}

func launch(t *testing.T, c *exec.Cmd, env []string) *run {
	t.Helper()
	c.Env = append(append(os.Environ(), "ROLE=supervisor", "KILL_TIMEOUT=4s", "GORACE=atexit_sleep_ms=0"), env...)
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stderr = c.Stdout
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	r := &run{Cmd: c, t: t, in: in, lines: make(chan string, 1000)}
	go func() {
		defer close(r.lines)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			r.lines <- sc.Text()
		}
	}()
	t.Cleanup(func() {
		_ = c.Process.Kill()
		for _, pid := range r.pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if c.ProcessState == nil {
			_ = c.Wait()
		}
		if t.Failed() {
			t.Logf("output:\n%s", strings.Join(r.seen, "\n"))
		}
	})
	return r
}

// wait reads the output up to a line that contains text, and returns it.
func (r *run) wait(text string) string {
	r.t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case line, ok := <-r.lines:
			if !ok {
				r.t.Fatalf("output ended without %q", text)
			}
			r.seen = append(r.seen, line)
			for _, f := range strings.Fields(line) {
				if pid, err := strconv.Atoi(strings.TrimPrefix(f, "pid=")); err == nil && strings.Contains(line, " up ") {
					r.pids = append(r.pids, pid)
				}
			}
			if strings.Contains(line, text) {
				return line
			}
		case <-deadline:
			r.t.Fatalf("no %q in the output", text)
		}
	}
}

// up waits until the serving app and the mesh half are up, in any order, and
// the supervisor has heard of it.
func (r *run) up() (app, mesh string) {
	r.t.Helper()
	for app == "" || mesh == "" {
		switch line := r.wait(" up "); {
		case strings.HasPrefix(line, "app"):
			app = line
		case strings.HasPrefix(line, "mesh"):
			mesh = line
		}
	}
	time.Sleep(100 * time.Millisecond) // a heartbeat or more
	return app, mesh
}

// end waits for the end of the supervisor and returns its exit code and the
// rest of the output.
func (r *run) end() (int, string) {
	r.t.Helper()
	var rest []string
	deadline := time.After(10 * time.Second)
	for {
		select {
		case line, ok := <-r.lines:
			if ok {
				rest, r.seen = append(rest, line), append(r.seen, line)
				continue
			}
			_ = r.Wait()
			return r.ProcessState.ExitCode(), strings.Join(rest, "\n")
		case <-deadline:
			r.t.Fatal("the supervisor does not end")
		}
	}
}

// field returns name=value of a line.
func field(line, name string) string {
	for _, f := range strings.Fields(line) {
		if v, ok := strings.CutPrefix(f, name+"="); ok {
			return v
		}
	}
	return ""
}

func pid(t *testing.T, line string) int {
	t.Helper()
	n, err := strconv.Atoi(field(line, "pid"))
	if err != nil {
		t.Fatalf("no pid in %q", line)
	}
	return n
}

// ask makes one request to the app.
func ask(addr string) error {
	c, err := net.DialTimeout("tcp", addr, 2*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	b, err := io.ReadAll(c)
	if err == nil && string(b) != "served\n" {
		err = fmt.Errorf("answer %q", b)
	}
	return err
}

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
		r.wait("app got " + sig.String())
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
