package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"flymesh/cmd/agentctl/emulator"
)

// processes of the agent on one machine.
type processes struct{ supervisor, mesh int }

// procs finds the agent's processes of a machine; 0: there is none.
func (m *mesh) procs(x emulator.Machine) processes {
	exe, err := filepath.EvalSymlinks(m.agent)
	if err != nil {
		m.t.Fatal(err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		m.t.Fatal(err)
	}
	var p processes
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join("/proc", e.Name())
		if at, err := os.Readlink(dir + "/exe"); err != nil || at != exe {
			continue
		}
		env, err := os.ReadFile(dir + "/environ")
		if err != nil || !bytes.Contains(append([]byte{0}, env...), []byte("\x00FLY_MACHINE_ID="+x.ID+"\x00")) {
			continue
		}
		args, err := os.ReadFile(dir + "/cmdline")
		switch f := strings.Split(string(args), "\x00"); {
		case err != nil || len(f) < 2:
		case f[1] == "mesh":
			p.mesh = pid
		case f[1] == "run":
			p.supervisor = pid
		}
	}
	return p
}

// kill ends the mesh half of a machine's agent with kill -9.
func (m *mesh) kill(x emulator.Machine) {
	m.t.Helper()
	m.signal(m.procs(x).mesh, syscall.SIGKILL)
}

func (m *mesh) signal(pid int, sig syscall.Signal) {
	m.t.Helper()
	if pid <= 1 {
		m.t.Fatal("no such process")
	}
	if err := syscall.Kill(pid, sig); err != nil {
		m.t.Fatalf("signal %d: %v", pid, err)
	}
}

// load sends requests to URLs, ten a second to each, until the function that
// it returns is called.
func load(t *testing.T, urls ...string) (stop func() (asked, failed int, causes map[string]int)) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex // guards what follows
		asked  int
		failed int
		causes = map[string]int{}
	)
	c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{}}
	for _, u := range urls {
		wg.Go(func() {
			for ctx.Err() == nil {
				err := get(ctx, c, u)
				if ctx.Err() == nil {
					mu.Lock()
					asked++
					if err != nil {
						failed++
						causes[err.Error()]++
					}
					mu.Unlock()
				}
				select {
				case <-ctx.Done():
				case <-time.After(100 * time.Millisecond):
				}
			}
		})
	}
	return func() (int, int, map[string]int) {
		cancel()
		wg.Wait()
		c.CloseIdleConnections()
		return asked, failed, causes
	}
}

func get(ctx context.Context, c *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", res.StatusCode)
	}
	return nil
}

// direct and routed are the addresses of every app: of its machines, and
// through the proxy.
func (m *mesh) direct() (urls []string) {
	for _, x := range m.running() {
		urls = append(urls, "http://"+x.Addr+"/")
	}
	return urls
}

func (m *mesh) routed() (urls []string) {
	for _, s := range services {
		urls = append(urls, m.Proxy(s)+"/")
	}
	return urls
}
