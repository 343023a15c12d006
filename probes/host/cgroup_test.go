package host

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fake builds a /proc and cgroup tree on disk from the files of real machines.
func fake(t *testing.T, cgroup, mountinfo string, files map[string]string) *groups {
	t.Helper()
	root := t.TempDir()
	write := func(name, text string) {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("proc/self/cgroup", cgroup)
	write("proc/self/mountinfo", strings.ReplaceAll(mountinfo, "ROOT", root))
	for name, text := range files {
		write(name, text)
	}
	g := newGroups(filepath.Join(root, "proc"))
	return g
}

func (g *groups) set(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(filepath.Dir(g.proc), name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

const v2mount = "30 23 0:26 / ROOT/cg rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"

func TestQuotaV2(t *testing.T) {
	g := fake(t, "0::/app/web\n", v2mount, map[string]string{
		"cg/app/web/cpu.max":    "max 100000\n",
		"cg/app/cpu.max":        "50000 100000\n", // the parent is the tighter one
		"cg/app/cpu.stat":       "usage_usec 1000000\nnr_periods 10\nnr_throttled 0\n",
		"cg/app/memory.max":     "1000000\n",
		"cg/app/memory.current": "800000\n",
		"cg/app/memory.stat":    "anon 1\ninactive_file 300000\n",
		"cg/app/web/memory.max": "max\n",
	})
	if _, ok, err := g.pressure(1); !ok || err != errFirst {
		t.Fatalf("first pressure: ok %v, %v", ok, err)
	}
	g.set(t, "cg/app/cpu.stat", "usage_usec 2000000\nnr_periods 110\nnr_throttled 0\n")
	if p, ok, err := g.pressure(10); !ok || err != nil || math.Abs(p-0.2) > 1e-9 {
		t.Errorf("1 s in 10 s of half a core: pressure = %v, %v, %v, want 0.2", p, ok, err)
	}
	g.set(t, "cg/app/cpu.stat", "usage_usec 2500000\nnr_periods 210\nnr_throttled 70\n")
	if p, _, err := g.pressure(10); err != nil || math.Abs(p-0.7) > 1e-9 {
		t.Errorf("throttled in 70 of 100 periods: pressure = %v, %v, want 0.7", p, err)
	}
	if m, ok := g.memory(1e9); !ok || math.Abs(m-0.5) > 1e-9 {
		t.Errorf("memory = %v, %v, want 0.5", m, ok)
	}
	if _, ok := g.memory(1e6); ok {
		t.Error("a limit that is the whole machine counts as one")
	}
	g.set(t, "cg/app/cpu.stat", "")
	if _, ok, err := g.pressure(10); !ok || err == nil {
		t.Error("an unreadable cpu.stat gave a value")
	}
	g.set(t, "cg/app/cpu.stat", "usage_usec 2500000\n")
	if _, _, err := g.pressure(10); err != errFirst {
		t.Errorf("after a gap: %v, want %v", err, errFirst)
	}
	g.set(t, "cg/app/cpu.max", "max 100000\n")
	if _, ok, err := g.pressure(10); ok || err != nil {
		t.Errorf("without a quota: ok %v, %v", ok, err)
	}
}

func TestQuotaV1InContainer(t *testing.T) {
	// Docker without a cgroup namespace: the container's cgroup is the root of the mount.
	g := fake(t, "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/\n",
		"32 31 0:29 /docker/abc ROOT/cpu ro - cgroup cgroup rw,cpu,cpuacct\n"+
			"35 31 0:30 /docker/abc ROOT/memory ro - cgroup cgroup rw,memory\n",
		map[string]string{
			"cpu/cpu.cfs_quota_us":            "20000\n",
			"cpu/cpu.cfs_period_us":           "100000\n",
			"cpu/cpu.stat":                    "nr_periods 0\nnr_throttled 0\n",
			"cpu/cpuacct.usage":               "1000000000\n",
			"memory/memory.limit_in_bytes":    "9223372036854771712\n",
			"memory/memory.usage_in_bytes":    "5000\n",
			"memory/docker/abc/not_looked_at": "",
		})
	if _, ok, err := g.pressure(1); !ok || err != errFirst {
		t.Fatalf("first pressure: ok %v, %v", ok, err)
	}
	g.set(t, "cpu/cpuacct.usage", "2000000000\n")
	if p, ok, err := g.pressure(10); !ok || err != nil || math.Abs(p-0.5) > 1e-9 {
		t.Errorf("pressure = %v, %v, %v, want 0.5", p, ok, err)
	}
	if _, ok := g.memory(1e12); ok {
		t.Error("v1's no limit counts as one")
	}
}

func TestNoCgroups(t *testing.T) {
	g := newGroups(t.TempDir())
	if _, ok, err := g.pressure(1); ok || err != nil {
		t.Errorf("ok %v, %v", ok, err)
	}
	if _, ok := g.memory(1e9); ok {
		t.Error("a limit from nowhere")
	}
}

// realQuota makes a v1 cgroup of 0.2 core in the given controllers.
func realQuota(t *testing.T, controllers ...string) []string {
	t.Helper()
	var dirs []string
	for _, c := range controllers {
		d := fmt.Sprintf("/sys/fs/cgroup/%s/flymesh-test-%d-%d", c, os.Getpid(), time.Now().UnixNano())
		if len(dirs) > 0 {
			d = filepath.Join("/sys/fs/cgroup", c, filepath.Base(dirs[0]))
		}
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Skipf("no cgroup v1 may be made here: %v", err)
		}
		t.Cleanup(func() {
			for range 100 { // busy until its processes are gone
				if os.Remove(d) == nil {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
			t.Errorf("remove %s: still busy", d)
		})
		dirs = append(dirs, d)
	}
	if err := os.WriteFile(dirs[0]+"/cpu.cfs_quota_us", []byte("20000"), 0); err != nil {
		t.Skipf("no cpu quota may be set here: %v", err)
	}
	return dirs
}

// A process tree that wants a whole core under a quota of 0.2 is at pressure 1,
// and one that wants 0.1 core is at about a half.
func TestRealQuota(t *testing.T) {
	for _, c := range []struct {
		name        string
		controllers []string
		share       string
		low, high   float64
	}{
		{"saturated", []string{"cpu", "cpuacct"}, "1", 0.9, 1.15},
		{"half", []string{"cpu", "cpuacct"}, "0.08", 0.2, 0.75},
		{"without cpuacct", []string{"cpu"}, "1", 0.8, 1.15},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dirs := realQuota(t, c.controllers...)
			enter := ""
			for _, d := range dirs {
				enter += "echo $$ > " + d + "/cgroup.procs && "
			}
			sh := exec.Command("sh", "-c", enter+`HOST_TEST=burn exec "$0" "$1"`, os.Args[0], c.share)
			stdin, err := sh.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := sh.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = stdin.Close(); _ = sh.Process.Kill(); _ = sh.Wait() }()

			probe := exec.Command("sh", "-c", enter+`HOST_TEST=probe exec "$0"`, os.Args[0])
			out, err := probe.CombinedOutput()
			if err != nil {
				t.Fatalf("probe: %v: %s", err, out)
			}
			var pressure float64
			var ok bool
			if _, err := fmt.Sscan(string(out), &pressure, &ok); err != nil || !ok {
				t.Fatalf("probe printed %q", out)
			}
			t.Logf("pressure %.3f", pressure)
			if pressure < c.low || pressure > c.high {
				t.Errorf("pressure = %.3f, want %.2f to %.2f", pressure, c.low, c.high)
			}
		})
	}
}
