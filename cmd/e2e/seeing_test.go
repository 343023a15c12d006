package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"flymesh/agent/api"
	"flymesh/leader/notify"
	"flymesh/raftstore/state"
)

// need returns a program of Debian's; without it a test is skipped, in CI it fails.
func need(t *testing.T, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
		return path
	case os.Getenv("CI") == "true":
		t.Fatalf("%s is not on the PATH: apt-get install %s", name, pkg)
	}
	t.Skipf("SKIPPED: %s is not on the PATH (apt-get install %s)", name, pkg)
	return ""
}

// port returns a loopback port that is free now.
func port(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// alertmanager starts a real one and returns its URL.
func alertmanager(t *testing.T) string {
	t.Helper()
	program := need(t, "prometheus-alertmanager", "prometheus-alertmanager")
	dir, addr := t.TempDir(), port(t)
	file := filepath.Join(dir, "am.yml")
	if err := os.WriteFile(file, []byte("route: {receiver: none}\nreceivers: [{name: none}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--config.file="+file, "--storage.path="+dir, "--web.listen-address="+addr, "--cluster.listen-address=")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("alertmanager:\n%s", log.String())
		}
	})
	url := "http://" + addr
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if resp, err := http.Get(url + "/-/ready"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return url
			}
		}
		if time.Now().After(end) {
			t.Fatalf("alertmanager is not ready:\n%s", log.String())
		}
	}
}

// inbox is a receiver that keeps what it is sent, and refuses at will.
type inbox struct {
	*httptest.Server
	status atomic.Int32 // answered to what comes; 0: 202
	mu     sync.Mutex   // guards all below
	began  time.Time
	got    []string // status and body of each request that was taken
	log    []string // every request, for people
	unsign int      // requests without a right signature
}

func newInbox(t *testing.T, line func(body []byte) string, key string) *inbox {
	b := &inbox{began: time.Now()}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		code := int(b.status.Load())
		if code == 0 {
			code = http.StatusAccepted
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		if key != "" {
			var secs int64
			sig := r.Header.Get(notify.SignatureHeader)
			fmt.Sscanf(sig, "t=%d,", &secs)
			if sig != notify.Sign(key, time.Unix(secs, 0), body) {
				b.unsign++
			}
		}
		if code < 300 {
			b.got = append(b.got, line(body))
		}
		b.log = append(b.log, fmt.Sprintf("%5.1fs  %d  %s", time.Since(b.began).Seconds(), code, line(body)))
		w.WriteHeader(code)
	}))
	t.Cleanup(b.Close)
	return b
}

func (b *inbox) taken() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.got)
}

func (b *inbox) lines() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.log)
}

func hookLine(body []byte) string {
	var m notify.Message
	_ = json.Unmarshal(body, &m)
	return m.Status + " " + m.Key
}

func dutyLine(body []byte) string {
	var e struct {
		Action string `json:"event_action"`
		Dedup  string `json:"dedup_key"`
		Key    string `json:"routing_key"`
	}
	_ = json.Unmarshal(body, &e)
	return e.Action + " " + e.Dedup + " " + e.Key
}

// firing asks Alertmanager for the alerts of a name that it holds for active.
func firing(t *testing.T, am, name string) int {
	t.Helper()
	resp, err := http.Get(am + `/api/v2/alerts?active=true&filter=alertname="` + name + `"`)
	if err != nil {
		return -1
	}
	defer resp.Body.Close()
	var as []struct{ Labels map[string]string }
	if err := json.NewDecoder(resp.Body).Decode(&as); err != nil {
		return -1
	}
	return len(as)
}

// TestAlerts holds that a page reaches a real Alertmanager, a PagerDuty-shaped
// server and a signed webhook once, and its end once, while leaders are killed
// with -9 as the alert is pending and as it fires, and a receiver is down.
func TestAlerts(t *testing.T) {
	long(t)
	am := alertmanager(t)
	const key, rule = "page_key-of-the-test", "queue_page/api"
	duty, hook, gauge := newInbox(t, dutyLine, ""), newInbox(t, hookLine, key), atomic.Int32{}
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "# TYPE waiting gauge\nwaiting %d\n", gauge.Load())
	}))
	defer app.Close()
	t.Setenv("FLYMESH_PAGERDUTY_KEY", "routing-key-of-the-test")
	t.Setenv("FLYMESH_WEBHOOK_KEY", key)
	m := newMesh(t, strings.Replace(config, "[service.api]", fmt.Sprintf(`[alerts]
alertmanager = [%q]
pagerduty_url = %q
webhook = %q
[[service.api.probe]]
type = "prometheus"
url = %q
queue = "waiting"
scope = "service"
[service.api]
page = ["queue > 25 for 8s"]
warn = []`, am, duty.URL, hook.URL, app.URL), 1))

	phase := func() state.Phase {
		for _, x := range m.running() {
			if a, err := client(x).Alerts(t.Context()); err == nil {
				for _, y := range a.Alerts {
					if y.Key == rule {
						return y.Phase
					}
				}
				return ""
			}
		}
		return "nobody answers"
	}
	killLeader := func() {
		lead := m.settle(30 * time.Second).Leader.Machine
		x, _ := m.pick("leader", lead)
		m.kill(x)
	}
	duty.status.Store(503) // down until some time after the page
	m.until("the rule is at rest", 10*time.Second, func() bool { return phase() == "" })
	gauge.Store(50)
	m.until("the page is pending", 10*time.Second, func() bool { return phase() == state.Pending })
	began := time.Now()
	killLeader()
	m.until("the page fires", 30*time.Second, func() bool { return phase() == state.Firing })
	if took := time.Since(began); took > 25*time.Second {
		t.Errorf("fired %s after it was pending, want about 8 s: the kill must not restart its clock", took)
	}
	m.until("the webhook has it", 10*time.Second, func() bool { return len(hook.taken()) > 0 })
	killLeader()
	m.settle(30 * time.Second)
	duty.status.Store(0)
	m.until("PagerDuty has it", 90*time.Second, func() bool { return len(duty.taken()) > 0 })
	m.until("Alertmanager has it", 10*time.Second, func() bool { return firing(t, am, "queue_page") == 1 })
	if out, err := exec.Command(need(t, "amtool", "prometheus-alertmanager"), "alert", "query", "--alertmanager.url="+am, "alertname=queue_page", "-o", "extended").CombinedOutput(); err != nil || !strings.Contains(string(out), `service="api"`) {
		t.Errorf("amtool: %v\n%s", err, out)
	} else {
		t.Logf("amtool:\n%s", out)
	}
	gauge.Store(0)
	m.until("the page is over", 40*time.Second, func() bool { return phase() == state.Resolved })
	m.until("everybody knows", 15*time.Second, func() bool {
		return len(hook.taken()) >= 2 && len(duty.taken()) >= 2 && firing(t, am, "queue_page") == 0
	})
	dedup := "flymesh/e2e/" + rule + " routing-key-of-the-test"
	if got, want := duty.taken(), []string{"trigger " + dedup, "resolve " + dedup}; !slices.Equal(got, want) {
		t.Errorf("PagerDuty took %q, want %q", got, want)
	}
	if got, want := hook.taken(), []string{"firing " + rule, "resolved " + rule}; !slices.Equal(got, want) {
		t.Errorf("the webhook took %q, want %q", got, want)
	}
	hook.mu.Lock()
	if hook.unsign > 0 {
		t.Errorf("%d messages without a right signature", hook.unsign)
	}
	hook.mu.Unlock()
	t.Logf("PagerDuty heard:\n%s\nthe webhook heard:\n%s", strings.Join(duty.lines(), "\n"), strings.Join(hook.lines(), "\n"))
	m.notSaid(key, "routing-key-of-the-test")
}

// notSaid holds that no log of any machine has a secret.
func (m *mesh) notSaid(secrets ...string) {
	m.t.Helper()
	logs, err := filepath.Glob(filepath.Join(m.State(), "logs", "*.log"))
	if err != nil || len(logs) == 0 {
		m.t.Fatalf("%d logs, %v", len(logs), err)
	}
	for _, f := range logs {
		b, err := os.ReadFile(f)
		if err != nil {
			m.t.Fatal(err)
		}
		for _, s := range secrets {
			if bytes.Contains(b, []byte(s)) {
				m.t.Errorf("%s holds a secret", filepath.Base(f))
			}
		}
	}
}

// metrics scrapes every machine.
func (m *mesh) metrics() map[string][]byte {
	m.t.Helper()
	out := map[string][]byte{}
	for _, x := range m.running() {
		b, err := client(x).Metrics(m.t.Context())
		if err != nil {
			m.t.Fatalf("scrape %s: %v", x.ID, err)
		}
		out[x.Service+" "+x.ID] = b
	}
	return out
}

var metricName = regexp.MustCompile(`\b(?:flymesh|process|go)_[a-z0-9_]+\b`)

// TestPageAndMetrics has a real browser follow a mesh from a machine that does
// not lead, through a scale-up and the death of the leader, and holds what the
// agents export against promtool, the dashboards and the rules.
func TestPageAndMetrics(t *testing.T) {
	node, chromium, tool := need(t, "node", "nodejs"), need(t, "chromium", "chromium"), need(t, "promtool", "prometheus")
	modules := playwright(t)
	m := newMesh(t, config)
	lead := m.settle(10 * time.Second).Leader.Machine
	site := m.of("site")[0]

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
	b.wait("SCALED", 40*time.Second)
	m.lint(tool)
	m.exported()
	x, _ := m.pick("leader", lead)
	m.kill(x)
	b.wait("FOLLOWED", 40*time.Second)
	t.Logf("browser: %s", b.wait("DONE", 60*time.Second))
}

// lint has promtool check what every machine exports.
func (m *mesh) lint(tool string) {
	m.t.Helper()
	for who, text := range m.metrics() {
		cmd := exec.Command(tool, "check", "metrics")
		cmd.Stdin = bytes.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
			m.t.Errorf("metrics of %s: %v\n%s", who, err, out)
		}
	}
}

// exported holds that every metric that a dashboard or rule names is there.
// Two are not before something has gone wrong or a limit is set.
func (m *mesh) exported() {
	m.t.Helper()
	var all bytes.Buffer
	for _, text := range m.metrics() {
		all.Write(text)
	}
	rare := []string{"flymesh_leader_notices_total", "flymesh_leader_service_budget_limit_seconds", "flymesh_leader_alerts",
		// No probe of this fleet measures requests.
		"flymesh_leader_service_p95_seconds", "flymesh_leader_service_error_ratio", "flymesh_leader_service_queue_depth", "flymesh_leader_service_in_flight_requests"}
	files, err := filepath.Glob("../../deploy/grafana/*.json")
	if err != nil {
		m.t.Fatal(err)
	}
	named := 0
	for _, f := range append(files, "../../deploy/prometheus/rules.yml") {
		b, err := os.ReadFile(f)
		if err != nil {
			m.t.Fatal(err)
		}
		for _, name := range metricName.FindAllString(string(b), -1) {
			named++
			if !slices.Contains(rare, name) && !regexp.MustCompile(`(?m)^`+name+`[{ ]`).Match(all.Bytes()) {
				m.t.Errorf("%s names %s, which no machine exports", filepath.Base(f), name)
			}
		}
	}
	if named < 60 {
		m.t.Errorf("only %d metrics are named: nothing was read", named)
	}
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
