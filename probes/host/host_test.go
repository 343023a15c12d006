package host

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shirou/gopsutil/v3/cpu"

	"flymesh/probes"
)

// TestMain turns the test binary into the processes that the tests measure.
func TestMain(m *testing.M) {
	switch os.Getenv("HOST_TEST") {
	case "burn": // use a share of one core until stdin closes
		share, _ := strconv.ParseFloat(os.Args[1], 64)
		go func() { _, _ = os.Stdin.Read(make([]byte, 1)); os.Exit(0) }()
		fmt.Println("burning")
		for {
			burn(time.Duration(share * float64(20*time.Millisecond)))
			time.Sleep(time.Duration((1 - share) * float64(20*time.Millisecond)))
		}
	case "probe": // print the pressure that this process sees over 1.5 s
		h := New(Options{})
		if _, err := h.Probe(context.Background()); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		time.Sleep(1500 * time.Millisecond)
		m, err := h.Probe(context.Background())
		fmt.Println(m.CPU.X, m.CPU.OK, m.Problems, err)
		os.Exit(0)
	case "fork": // short-lived children; a byte on stdin asks for the CPU seconds of all
		go func() {
			for {
				_ = exec.Command("sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done").Run()
			}
		}()
		fmt.Println("forking")
		for {
			if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
				os.Exit(0)
			}
			var sum int64
			for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
				var r syscall.Rusage
				_ = syscall.Getrusage(who, &r)
				sum += syscall.TimevalToNsec(r.Utime) + syscall.TimevalToNsec(r.Stime)
			}
			fmt.Println(float64(sum) / 1e9)
		}
	}
	os.Exit(m.Run())
}

// burn uses d of CPU time.
func burn(d time.Duration) {
	runtime.LockOSThread()
	var a, b syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &a)
	for b = a; syscall.TimevalToNsec(b.Utime)-syscall.TimevalToNsec(a.Utime) < int64(d); {
		for i := range 10_000 {
			_ = math.Sqrt(float64(i))
		}
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &b)
	}
}

// role is a child process in one of the roles of TestMain.
type role struct {
	*exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// child starts this binary in a role and waits for its first line.
func child(t *testing.T, name string, args ...string) role {
	t.Helper()
	c := exec.Command(os.Args[0], args...)
	c.Env = append(os.Environ(), "HOST_TEST="+name, "GOMAXPROCS=1")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	r := role{c, in, bufio.NewReader(out)}
	if _, err := r.out.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return r
}

// used asks the role for its CPU seconds.
func (r role) used(t *testing.T) float64 {
	t.Helper()
	var x float64
	if _, err := r.in.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fscanln(r.out, &x); err != nil {
		t.Fatal(err)
	}
	return x
}

// over probes twice with d between.
func over(t *testing.T, h *Host, d time.Duration) probes.Reading {
	t.Helper()
	m, err := h.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if m.CPU.OK || m.Steal.OK {
		t.Errorf("the first sample has a rate: %+v", m)
	}
	if len(m.Problems) != 1 || !strings.Contains(m.Problems[0], "first sample") {
		t.Errorf("problems of the first sample: %q", m.Problems)
	}
	time.Sleep(d)
	if m, err = h.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m
}

// schedstat returns the CPU seconds of one process from a file that the code
// under test does not read.
func schedstat(t *testing.T, pid int) float64 {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(tasks) == 0 {
		t.Skipf("no schedstat here: %v", err)
	}
	var sum float64
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			t.Fatal(err)
		}
		ns, err := strconv.ParseFloat(strings.Fields(string(b))[0], 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += ns / 1e9
	}
	return sum
}

func TestStatedAllowanceCoversTheTree(t *testing.T) {
	c := child(t, "burn", "0.3")
	h := New(Options{Cores: 0.5, Root: c.Process.Pid})
	before, start := schedstat(t, c.Process.Pid), time.Now()
	m := over(t, h, 1500*time.Millisecond)
	want := (schedstat(t, c.Process.Pid) - before) / time.Since(start).Seconds() / 0.5
	t.Logf("pressure %.3f, by schedstat %.3f", m.CPU.X, want)
	if !m.CPU.OK || math.Abs(m.CPU.X-want) > 0.08 {
		t.Errorf("CPU = %+v, want %.3f", m.CPU, want)
	}
}

// Time of children that began and ended between two samples counts.
func TestReapedChildrenCount(t *testing.T) {
	c := child(t, "fork")
	h := New(Options{Cores: 1, Root: c.Process.Pid})
	before, start := c.used(t), time.Now()
	m := over(t, h, 1500*time.Millisecond)
	want := (c.used(t) - before) / time.Since(start).Seconds()
	t.Logf("pressure %.3f, by rusage %.3f", m.CPU.X, want)
	if want < 0.1 || !m.CPU.OK || math.Abs(m.CPU.X-want) > 0.08 {
		t.Errorf("CPU = %+v, want %.3f", m.CPU, want)
	}
}

// A probe right after one that was held up must not make a rate of a burst.
func TestNoRateOverAMoment(t *testing.T) {
	c := child(t, "burn", "0.2")
	h := New(Options{Cores: 1, Root: c.Process.Pid})
	for range 2 {
		if _, err := h.Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(shortest)
	}
	first, err := h.Probe(t.Context())
	if err != nil || !first.CPU.OK {
		t.Fatalf("got %+v, %v", first, err)
	}
	if again, err := h.Probe(t.Context()); err != nil || again.CPU != first.CPU {
		t.Errorf("got %+v, %v at once after %+v", again.CPU, err, first.CPU)
	}
}

func TestGoneTreeIsUnknown(t *testing.T) {
	c := child(t, "burn", "0.1")
	h := New(Options{Cores: 1, Root: c.Process.Pid})
	if _, err := h.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = c.Process.Kill()
	_ = c.Wait()
	time.Sleep(shortest) // a rate needs so much time
	m, err := h.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if m.CPU.OK || len(m.Problems) != 1 || !strings.Contains(m.Problems[0], "tree is gone") {
		t.Errorf("got %+v", m)
	}
	if !m.Memory.OK {
		t.Error("memory is unknown because the tree is gone")
	}
}

func TestTreeAccounting(t *testing.T) {
	a, b := process{1, 10}, process{2, 20}
	for _, c := range []struct {
		name      string
		last, now map[process]times
		want      float64
	}{
		{"own time", map[process]times{a: {own: 100}}, map[process]times{a: {own: 150}}, 0.5},
		{"new child", map[process]times{a: {own: 100}}, map[process]times{a: {own: 100}, b: {own: 30}}, 0.3},
		{"reaped child counts once", map[process]times{a: {own: 100}, b: {own: 50}}, map[process]times{a: {own: 100, reaped: 60}}, 0.1},
		{"short-lived child", map[process]times{a: {own: 100}}, map[process]times{a: {own: 100, reaped: 40}}, 0.4},
		{"child nobody waited for", map[process]times{a: {own: 100}, b: {own: 500}}, map[process]times{a: {own: 120}}, 0.2},
		{"same pid, other process", map[process]times{b: {own: 500}}, map[process]times{{2, 99}: {own: 10}}, 0.1},
	} {
		tr := &tree{last: c.last}
		got, err := tr.used(c.now)
		if err != nil || math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%s: used = %v, %v, want %v", c.name, got, err, c.want)
		}
	}
}

func TestWholeMachine(t *testing.T) {
	a := cpu.TimesStat{User: 10, System: 5, Idle: 100, Steal: 1}
	busy, steal := shares(a, cpu.TimesStat{User: 12, System: 6, Idle: 105, Iowait: 1, Steal: 2})
	if math.Abs(busy-0.3) > 1e-9 || math.Abs(steal-0.1) > 1e-9 {
		t.Errorf("shares = %v, %v, want 0.3, 0.1", busy, steal)
	}
	m := over(t, New(Options{}), 300*time.Millisecond)
	if !m.CPU.OK || m.CPU.X < 0 || m.CPU.X > 2 {
		t.Errorf("CPU = %+v", m.CPU)
	}
	if !m.Steal.OK {
		t.Error("steal is unknown")
	}
	if !m.Memory.OK || m.Memory.X <= 0 || m.Memory.X > 1 {
		t.Errorf("Memory = %+v", m.Memory)
	}
}

func TestAllowance(t *testing.T) {
	for _, c := range []struct {
		configured float64
		env        string
		want       float64
		ok         bool
	}{
		{0, "", 0, true},
		{0, "0.25", 0.25, true},
		{1, "0.25", 1, true},
		{0, "half", 0, false},
		{0, "-1", 0, false},
		{0, "0", 0, false},
		{0, "Inf", 0, false},
	} {
		got, err := Allowance(c.configured, c.env)
		if got != c.want || (err == nil) != c.ok {
			t.Errorf("Allowance(%v, %q) = %v, %v", c.configured, c.env, got, err)
		}
	}
}
