package agent

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"flymesh/agent/identity"
)

// The mesh half gets 10 MB of memory by a cgroup, which it may or may not live
// in; 10 MB of address space, in which it cannot even start; and a disk without
// a free byte. A load on the app sees nothing of it.
func TestAppOutlivesAStarvedMeshHalf(t *testing.T) {
	t.Parallel()
	for i, c := range []struct {
		name string
		// hold returns what starts the mesh half, and the environment.
		hold        func(t *testing.T, self string) (mesh, env []string)
		died, lives bool // which of the two it must
	}{
		{"10 MB of memory", func(t *testing.T, self string) ([]string, []string) {
			return []string{"sh", "-c", memoryLimit(t) + `; exec "$0"`, self}, nil
		}, false, false},
		{"10 MB of address space", func(_ *testing.T, self string) ([]string, []string) {
			return []string{"sh", "-c", `ulimit -v 10000; exec "$0"`, self}, nil
		}, true, false},
		{"a full disk", func(t *testing.T, self string) ([]string, []string) {
			dir := fullDisk(t)
			// stderr, the log, goes to the full disk as well.
			return []string{"sh", "-c", `exec "$0" 2>>` + dir + `/log`, self}, []string{"FLYMESH_SOCKET=" + dir + "/s", "TMPDIR=" + dir}
		}, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			self := os.Args[0]
			mesh, env := c.hold(t, self)
			ip := fmt.Sprintf("127.%d.%d.%d", 230+i, os.Getpid()/250%250, os.Getpid()%250+2)
			l, err := net.Listen("tcp", ip+":0")
			if err != nil {
				t.Fatal(err)
			}
			addr := l.Addr().String()
			l.Close()
			dir := t.TempDir()
			path := filepath.Join(dir, "mesh.toml")
			text := "[mesh]\nname = \"m\"\nreport_every = \"200ms\"\n[service.a]\napp = \"m-a\"\nvote = true\n[[service.a.probe]]\ntype = \"http\"\nurl = \"http://" + addr + "/\"\n"
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(self, append([]string{"sidecar", addr}, mesh...)...)
			cmd.Env = append(os.Environ(), "FLYMESH_TEST_CONFIG="+path, "FLYMESH_SECRET="+identity.NewSecret(), "FLYMESH_SOCKET="+dir+"/s",
				"FLY_MACHINE_ID=m1", "FLY_APP_NAME=m-a", "FLY_REGION=fra", "FLY_PRIVATE_IP="+ip, "FLY_API_TOKEN=")
			cmd.Env = append(cmd.Env, env...)
			log, err := os.Create(filepath.Join(dir, "log"))
			if err != nil {
				t.Fatal(err)
			}
			defer log.Close()
			cmd.Stdout, cmd.Stderr = log, log
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			t.Cleanup(func() {
				_ = cmd.Process.Signal(syscall.SIGTERM)
				select {
				case <-ended:
				case <-time.After(10 * time.Second):
					_ = cmd.Process.Kill()
					t.Error("the supervisor did not end")
				}
			})
			for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
				if status, _ := get("http://" + addr); status == 200 {
					break
				}
				if time.Now().After(end) {
					t.Fatal("the app does not answer")
				}
			}
			asked, failed := 0, 0
			var healthy atomic.Bool
			stop := time.Now().Add(3 * time.Second)
			go func() {
				for time.Now().Before(stop) {
					if status, _ := get("http://" + ip + ":9470/health"); status == 200 {
						healthy.Store(true)
					}
					time.Sleep(50 * time.Millisecond)
				}
			}()
			for time.Now().Before(stop) {
				resp, err := quick.Get("http://" + addr)
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				if asked++; err != nil {
					failed++
				}
				time.Sleep(time.Millisecond)
			}
			select {
			case err := <-ended:
				t.Fatalf("the supervisor ended: %v", err)
			default:
			}
			b, _ := os.ReadFile(log.Name())
			restarts := strings.Count(string(b), "mesh half")
			t.Logf("%d requests, %d failed; mesh half ready: %v; lines of the supervisor on it: %d", asked, failed, healthy.Load(), restarts)
			if failed != 0 || asked < 100 {
				t.Errorf("%d of %d requests failed", failed, asked)
			}
			if c.died && (healthy.Load() || restarts == 0) || c.lives && !healthy.Load() {
				t.Errorf("mesh half ready: %v, %d lines; log ends\n%s", healthy.Load(), restarts, b[max(0, len(b)-2000):])
			}
		})
	}
}

// memoryLimit returns the shell command that limits what comes after it to
// 10 MB.
func memoryLimit(t *testing.T) string {
	group := "/sys/fs/cgroup/memory/flymesh-test-" + strconv.Itoa(os.Getpid())
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Skipf("no memory cgroup can be made here: %v", err)
	}
	t.Cleanup(func() {
		for _, name := range []string{"max_usage_in_bytes", "failcnt"} {
			b, _ := os.ReadFile(filepath.Join(group, "memory."+name))
			t.Logf("cgroup %s: %s", name, strings.TrimSpace(string(b)))
		}
		for end := time.Now().Add(5 * time.Second); os.Remove(group) != nil && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		}
	})
	if err := os.WriteFile(group+"/memory.limit_in_bytes", []byte("10000000"), 0o600); err != nil {
		t.Skipf("no memory limit can be set here: %v", err)
	}
	return "echo $$ > " + group + "/cgroup.procs"
}

// fullDisk returns a directory on a file system of its own without space.
func fullDisk(t *testing.T) string {
	dir, err := os.MkdirTemp("", "full-") // short: a socket is to be in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("no file system can be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	for name, size := range map[string]int{"fill": 4096, "rest": 1} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for block := make([]byte, size); err == nil; {
			_, err = f.Write(block)
		}
		f.Close()
	}
	return dir
}
