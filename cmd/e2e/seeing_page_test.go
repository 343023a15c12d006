package e2e

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flymesh/agent/api"
	"flymesh/cmd/agentctl/emulator"
)

// TestPageAndMetrics has a real browser follow a mesh from a machine that does
// not lead, through a scale-up and the death of the leader, and a real
// Prometheus scrape it and answer what the dashboards and rules ask.
func TestPageAndMetrics(t *testing.T) {
	node, chromium, tool := need(t, "node", "nodejs"), need(t, "chromium", "chromium"), need(t, "promtool", "prometheus")
	modules := playwright(t)
	prometheus := startPrometheus(t)
	m := newMesh(t, measured(t))
	lead := m.settle(10 * time.Second).Leader.Machine
	site := m.of("site")[0]
	prometheus.follow(m)

	shots := os.Getenv("FLYMESH_SHOTS")
	if shots == "" {
		shots = t.TempDir()
	}
	host, _, err := net.SplitHostPort(site.Addr)
	if err != nil {
		t.Fatal(err)
	}
	b := startBrowser(t, node, chromium, modules, "http://"+net.JoinHostPort(host, "9470"), shots)
	b.wait("READY", 30*time.Second)
	if _, err := client(site).Scale(t.Context(), api.ScaleRequest{Service: "api", Delta: 1, Reason: "test", By: "test"}); err != nil {
		t.Fatal(err)
	}
	if _, err := client(site).RunJob(t.Context(), api.JobRequest{Job: "Report", Reason: "test", By: "test"}); err != nil {
		t.Fatal(err)
	}
	b.wait("SCALED", 40*time.Second)
	m.lint(tool)
	m.identities()
	prometheus.follow(m)
	prometheus.answers(m)
	x, _ := m.pick("leader", lead)
	m.kill(x)
	b.wait("FOLLOWED", 40*time.Second)
	t.Logf("browser: %s", b.wait("DONE", 60*time.Second))
	m.replayed(site)
}

// replayed holds that what a running mesh tells of its past is a trace that
// its policy can be tried on.
func (m *mesh) replayed(x emulator.Machine) {
	m.t.Helper()
	ctl := filepath.Join(build(m.t), "agentctl")
	trace, err := exec.Command(ctl, "--socket", x.Socket, "history", "api", "--csv").Output()
	if err != nil {
		m.t.Fatalf("history: %v", err)
	}
	cmd := exec.Command(ctl, "simulate", "-", "--config", filepath.Join(m.State(), "mesh.toml"))
	cmd.Stdin = bytes.NewReader(trace)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "recorded  1 up, 0 down") {
		m.t.Errorf("simulate: %v\n%s\n%s", err, out, trace)
	}
	m.t.Logf("simulate:\n%s", out)
}

// playwright returns a directory with the module, installed if need be.
func playwright(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("FLYMESH_PLAYWRIGHT"); dir != "" {
		return dir
	}
	npm, dir := need(t, "npm", "npm"), t.TempDir()
	cmd := exec.Command(npm, "install", "--prefix", dir, "--no-audit", "--no-fund", "--no-save", "playwright-core@1.65.1")
	if out, err := cmd.CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("install playwright-core: %v\n%s", err, out)
		}
		t.Skipf("SKIPPED: playwright-core cannot be installed: %v", err)
	}
	return filepath.Join(dir, "node_modules")
}

// browser is the script that drives a real one; it tells its progress in lines.
type browser struct {
	t     *testing.T
	lines chan string
}

func startBrowser(t *testing.T, node, chromium, modules, url, shots string) *browser {
	t.Helper()
	cmd := exec.Command(node, "testdata/page.cjs", url, shots)
	cmd.Env = append(os.Environ(), "NODE_PATH="+modules, "CHROMIUM="+chromium)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := &browser{t, make(chan string, 100)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(b.lines)
		text, buf := "", make([]byte, 4096)
		for {
			n, err := out.Read(buf)
			text += string(buf[:n])
			for {
				line, rest, ok := strings.Cut(text, "\n")
				if !ok {
					break
				}
				text = rest
				b.lines <- line
			}
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			cmd.Process.Kill()
		}
		cmd.Wait()
	})
	return b
}

// wait reads up to the line that begins with a word, and returns the rest of it.
func (b *browser) wait(word string, limit time.Duration) string {
	b.t.Helper()
	var seen []string
	for end := time.After(limit); ; {
		select {
		case line, ok := <-b.lines:
			if rest, found := strings.CutPrefix(line, word); found {
				return rest
			}
			if seen = append(seen, line); !ok || strings.HasPrefix(line, "FAILED") {
				b.t.Fatalf("browser, waiting for %s:\n%s", word, strings.Join(seen, "\n"))
			}
		case <-end:
			b.t.Fatalf("browser: no %s within %s:\n%s", word, limit, strings.Join(seen, "\n"))
		}
	}
}
