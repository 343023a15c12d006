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
