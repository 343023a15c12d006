package redis

import (
	"context"
	"fmt"
	"math"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"flymesh/probes"
	"flymesh/probes/redis/redistest"
	"flymesh/probes/report"
)

func make1(t *testing.T, o Options) *Redis {
	t.Helper()
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func probe(t *testing.T, r *Redis) probes.Reading {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	m, err := r.Probe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// procCPU returns the CPU seconds of a process from the kernel.
func procCPU(t *testing.T, pid int) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndex(string(b), ")")+2:]))
	user, _ := strconv.ParseFloat(f[11], 64)
	system, _ := strconv.ParseFloat(f[12], 64)
	return (user + system) / 100
}

func TestCPUAndMemoryOfARealServer(t *testing.T) {
	s := redistest.Start(t, "--maxmemory", "40mb")
	r := make1(t, Options{Server: Server{Addr: s.Addr}})
	m := probe(t, r)
	if m.CPU.OK || len(m.Problems) != 1 || m.Ready == nil || !*m.Ready {
		t.Errorf("first sample: %+v", m)
	}
	before, begin := procCPU(t, s.PID), time.Now()
	c := s.Client(t)
	if err := c.Set(t.Context(), "big", strings.Repeat("x", 8<<20), 0).Err(); err != nil {
		t.Fatal(err)
	}
	for time.Since(begin) < 1500*time.Millisecond {
		if err := c.Eval(t.Context(), "local x = 0 for i = 1, 200000 do x = x + i end return x", nil).Err(); err != nil {
			t.Fatal(err)
		}
	}
	m = probe(t, r)
	want := (procCPU(t, s.PID) - before) / time.Since(begin).Seconds()
	t.Logf("cpu %.3f, by /proc %.3f; memory %.3f", m.CPU.X, want, m.Memory.X)
	if !m.CPU.OK || math.Abs(m.CPU.X-want) > 0.05 || want < 0.05 {
		t.Errorf("CPU = %+v, want %.3f", m.CPU, want)
	}
	if !m.Memory.OK || m.Memory.X < 0.2 || m.Memory.X > 0.45 {
		t.Errorf("Memory = %+v with 8 MiB and little else of 40 MB", m.Memory)
	}
	if len(m.Problems) != 0 {
		t.Errorf("problems %q", m.Problems)
	}

	// Without a limit the machine's memory is the limit.
	if err := c.ConfigSet(t.Context(), "maxmemory", "0").Err(); err != nil {
		t.Fatal(err)
	}
	if m = probe(t, r); !m.Memory.OK || m.Memory.X <= 0 || m.Memory.X > 0.2 {
		t.Errorf("Memory = %+v without a limit", m.Memory)
	}

	// Another process at the same address has no rate yet.
	other := redistest.Start(t)
	r.options.Server.Addr = other.Addr
	if m = probe(t, r); m.CPU.OK || len(m.Problems) != 1 || !strings.Contains(m.Problems[0], "restarted") {
		t.Errorf("after a restart: %+v", m)
	}
	other.Stop()
	if m, err := r.Probe(t.Context()); err == nil {
		t.Errorf("a stopped server gave %+v", m)
	}
}

func TestPasswordIsNeeded(t *testing.T) {
	s := redistest.Start(t, "--requirepass", "secret")
	m := probe(t, make1(t, Options{Server: Server{Addr: s.Addr}}))
	if m.Ready == nil || *m.Ready || !strings.HasPrefix(m.Reason, "NOAUTH") || m.Memory.OK || len(m.Problems) != 1 {
		t.Errorf("without the password: %+v", m)
	}
	m = probe(t, make1(t, Options{Server: Server{Addr: s.Addr, Password: "wrong"}}))
	if m.Ready == nil || *m.Ready || !strings.HasPrefix(m.Reason, "WRONGPASS") || m.Memory.OK {
		t.Errorf("with a wrong password: %+v", m)
	}
	m = probe(t, make1(t, Options{Server: Server{Addr: s.Addr, Password: "secret"}}))
	if m.Ready == nil || !*m.Ready || !m.Memory.OK {
		t.Errorf("with the password: %+v", m)
	}
}

func TestHungServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts by backlog, never answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if m, err := make1(t, Options{Server: Server{Addr: l.Addr().String()}}).Probe(ctx); err == nil {
		t.Errorf("a hung server gave %+v", m)
	}
	if d := time.Since(begin); d > 3*time.Second {
		t.Errorf("the deadline of 100 ms took %v", d)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, o := range []Options{{}, {Server: Server{Addr: "localhost"}}} {
		if _, err := New(o); err == nil {
			t.Errorf("New(%+v) did not fail", o)
		}
	}
}

// INFO of Redis 7.0.15 that held a live n8n queue, recorded.
func TestRecordedInfo(t *testing.T) {
	b, err := os.ReadFile("testdata/info.txt")
	if err != nil {
		t.Fatal(err)
	}
	info := fields(strings.ReplaceAll(string(b), "\n", "\r\n"))
	m, err := memory(info) // maxmemory is 0
	if want := 2298360.0 / 25276502016; err != nil || m != report.Of(want) {
		t.Errorf("memory = %v, %v, want %v", m, err, want)
	}
	info["maxmemory"] = "4596720"
	if m, err := memory(info); err != nil || m != report.Of(0.5) {
		t.Errorf("memory = %v, %v, want 0.5", m, err)
	}
	r := &Redis{}
	info["run_id"] = "a"
	cpu := func() (report.Value, []string) {
		var m probes.Reading
		r.read(info, &m)
		return m.CPU, m.Problems
	}
	if v, p := cpu(); v.OK || len(p) != 1 {
		t.Errorf("first cpu = %v, %q", v, p)
	}
	now, _ := info.Number("server_time_usec")
	used, _ := info.Number("used_cpu_user")
	info["server_time_usec"] = strconv.FormatFloat(now+2e6, 'f', 0, 64)
	info["used_cpu_user"] = strconv.FormatFloat(used+0.5, 'f', 6, 64)
	if v, p := cpu(); len(p) != 0 || math.Abs(v.X-0.25) > 1e-6 {
		t.Errorf("cpu = %v, %q, want 0.25", v, p)
	}
	info["server_time_usec"] = strconv.FormatFloat(now+4e6, 'f', 0, 64)
	info["used_cpu_user"] = "0.1"
	if v, p := cpu(); v.OK || len(p) != 1 {
		t.Errorf("cpu = %v of a counter that fell", v)
	}
	for name, change := range map[string]string{"cpu": "used_cpu_sys", "clock": "server_time_usec"} {
		delete(info, change)
		if v, p := cpu(); v.OK || len(p) == 0 {
			t.Errorf("%s missing: %v", name, v)
		}
	}
}
