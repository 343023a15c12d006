package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"flymesh/leader/notify"
	"flymesh/raftstore/state"
)

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
warn = []`, am, duty.URL+"/v2/enqueue", hook.URL, app.URL), 1))

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
