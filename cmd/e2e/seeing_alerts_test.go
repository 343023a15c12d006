package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"flymesh/agent/api"
	"flymesh/leader/notify/notifytest"
	"flymesh/raftstore/state"
)

const (
	routingKey = "0123456789abcdef0123456789abcdef"
	hookKey    = "key-of-the-webhook-of-the-test"
)

// TestAlerts holds that a page reaches a real Alertmanager, a PagerDuty-shaped
// server and a signed webhook once, and its end once, while leaders are killed
// with -9 as the alert is pending and as it fires, the webhook is down for three
// minutes, PagerDuty answers 500 and 429 first, and one more Alertmanager
// refuses everything with 400. A scaling step reaches PagerDuty as a change.
func TestAlerts(t *testing.T) {
	long(t)
	const rule, down = "queue_page/api", 3 * time.Minute
	am, duty, began := alertmanager(t), notifytest.NewPagerDuty(), time.Now()
	defer duty.Close()
	hook := &inbox{t: t, URL: "http://" + port(t), status: http.StatusNoContent, line: hookLine, key: hookKey, began: began}
	refuser := &inbox{t: t, URL: "http://" + port(t), status: http.StatusBadRequest, line: managerLine, began: began}
	refuser.listen()
	var gauge atomic.Int32
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "# TYPE waiting gauge\nwaiting %d\n", gauge.Load())
	}))
	defer app.Close()
	t.Setenv("FLYMESH_PAGERDUTY_KEY", routingKey)
	t.Setenv("FLYMESH_WEBHOOK_KEY", hookKey)
	m := newMesh(t, strings.Replace(config, "[service.api]", fmt.Sprintf(`[alerts]
alertmanager = [%q, %q]
pagerduty_url = %q
webhook = %q
[[service.api.probe]]
type = "prometheus"
url = %q
queue = "waiting"
scope = "service"
[service.api]
page = ["queue > 25 for 8s"]
warn = []`, am, refuser.URL, duty.URL+notifytest.EventPath, hook.URL, app.URL), 1))

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
	trigger := "trigger flymesh/e2e/" + rule
	m.until("the rule is at rest", 10*time.Second, func() bool { return phase() == "" })
	duty.Answer(http.StatusInternalServerError, 2)
	duty.Answer(http.StatusTooManyRequests, 1)
	gauge.Store(50)
	m.until("the page is pending", 10*time.Second, func() bool { return phase() == state.Pending })
	pending := time.Now()
	killLeader()
	m.until("the page fires", 30*time.Second, func() bool { return phase() == state.Firing })
	fired := time.Now()
	if took := fired.Sub(pending); took < 6*time.Second || took > 25*time.Second {
		t.Errorf("fired %s after it was pending, want about 8 s: the kill must not restart its clock", took)
	}
	m.until("PagerDuty has it", 60*time.Second, func() bool { return slices.Contains(duty.Taken(), trigger) })
	killLeader()
	m.settle(30 * time.Second)
	m.until("Alertmanager has it", 10*time.Second, func() bool { return firing(t, am, "queue_page") == 1 })
	if out, err := exec.Command(need(t, "amtool", "prometheus-alertmanager"), "alert", "query", "--alertmanager.url="+am, "alertname=queue_page", "-o", "extended").CombinedOutput(); err != nil || !strings.Contains(string(out), `service="api"`) {
		t.Errorf("amtool: %v\n%s", err, out)
	} else {
		t.Logf("amtool:\n%s", out)
	}
	duty.Answer(http.StatusTooManyRequests, 1)
	if _, err := client(m.of("site")[0]).Scale(t.Context(), api.ScaleRequest{Service: "site", Delta: 1, Reason: "e2e", By: "e2e"}); err != nil {
		t.Fatal(err)
	}
	const change = "change site: 1 -> 2 machines: "
	changed := func(s string) bool { return strings.HasPrefix(s, change) }
	m.until("PagerDuty has the step", 60*time.Second, func() bool { return slices.ContainsFunc(duty.Taken(), changed) })

	time.Sleep(time.Until(fired.Add(down)))
	hook.listen()
	m.until("the webhook has it", 65*time.Second, func() bool { return len(hook.taken()) > 0 })
	if n := firing(t, am, "queue_page"); n != 1 {
		t.Errorf("Alertmanager holds %d alerts after %s", n, time.Since(fired).Round(time.Second))
	}
	gauge.Store(0)
	m.until("the page is over", 40*time.Second, func() bool { return phase() == state.Resolved })
	m.until("everybody knows", 15*time.Second, func() bool {
		return len(hook.taken()) >= 2 && len(duty.Taken()) >= 3 && firing(t, am, "queue_page") == 0
	})
	killLeader() // nor does the next leader say it again
	m.settle(30 * time.Second)
	pages := slices.DeleteFunc(duty.Taken(), changed)
	if want := []string{trigger, "resolve flymesh/e2e/" + rule}; !slices.Equal(pages, want) {
		t.Errorf("PagerDuty took %q, want %q", pages, want)
	}
	if n := len(duty.Taken()) - len(pages); n != 1 {
		t.Errorf("PagerDuty took %d changes, want one", n)
	}
	if bad := duty.Bad(); len(bad) > 0 {
		t.Errorf("PagerDuty would refuse %q", bad)
	}
	if got, want := hook.taken(), []string{"firing " + rule, "resolved " + rule}; !slices.Equal(got, want) {
		t.Errorf("the webhook took %q, want %q", got, want)
	}
	if n := hook.unsigned(); n > 0 {
		t.Errorf("%d messages without a right signature", n)
	}
	if got := refuser.lines(); len(got) != 1 {
		t.Errorf("who answers 400 was asked %d times:\n%s", len(got), strings.Join(got, "\n"))
	}
	t.Logf("PagerDuty heard:\n%s\nthe webhook, down for %s, heard:\n%s\nwho answers 400 heard:\n%s",
		strings.Join(duty.Log(), "\n"), down, strings.Join(hook.lines(), "\n"), strings.Join(refuser.lines(), "\n"))
	m.notSaid(hookKey, routingKey)
}

// TestNoLeader freezes two of three voters: agents that see nobody lead tell
// people so, all under one key, and when somebody leads again the end is told
// once.
func TestNoLeader(t *testing.T) {
	long(t)
	am, duty := alertmanager(t), notifytest.NewPagerDuty()
	defer duty.Close()
	hook := newInbox(t, hookLine, hookKey)
	t.Setenv("FLYMESH_PAGERDUTY_KEY", routingKey)
	t.Setenv("FLYMESH_WEBHOOK_KEY", hookKey)
	m := newMesh(t, strings.Replace(config, "[service.api]", fmt.Sprintf(`[alerts]
alertmanager = [%q]
pagerduty_url = %q
webhook = %q
no_leader_after = "10s"
[service.api]`, am, duty.URL+notifytest.EventPath, hook.URL), 1))
	lead, _ := m.pick("leader", m.settle(10*time.Second).Leader.Machine)
	// With their supervisors, which would end a mesh half that hangs.
	p := m.procs(lead)
	frozen := []int{p.supervisor, p.mesh}
	for _, x := range m.others(lead) {
		if x.Service != "site" && len(frozen) < 4 {
			p = m.procs(x)
			frozen = append(frozen, p.supervisor, p.mesh)
		}
	}
	const key, trigger, resolve = "no_leader", "trigger flymesh/e2e/no_leader", "resolve flymesh/e2e/no_leader"
	count := func(all []string, what string) (n int) {
		for _, x := range all {
			if x == what {
				n++
			}
		}
		return n
	}
	for range 2 {
		triggers, resolves := count(duty.Taken(), trigger), count(duty.Taken(), resolve)
		hooked := count(hook.taken(), "resolved "+key)
		for _, pid := range frozen {
			m.signal(pid, syscall.SIGSTOP)
		}
		m.until("two agents tell PagerDuty", 60*time.Second, func() bool { return count(duty.Taken(), trigger) == triggers+2 })
		m.until("Alertmanager shows one alert", 10*time.Second, func() bool { return firing(t, am, key) == 1 })
		if got := duty.Open(); !slices.Equal(got, []string{"flymesh/e2e/no_leader"}) {
			t.Errorf("incidents %q, want one", got)
		}
		for _, pid := range frozen {
			m.signal(pid, syscall.SIGCONT)
		}
		m.settle(60 * time.Second)
		m.until("PagerDuty knows the end", 30*time.Second, func() bool { return len(duty.Open()) == 0 })
		m.until("Alertmanager knows the end", 30*time.Second, func() bool { return firing(t, am, key) == 0 })
		time.Sleep(40 * time.Second) // as long as agents speak of it
		if got := count(duty.Taken(), resolve) - resolves; got != 1 {
			t.Errorf("PagerDuty was told the end %d times", got)
		}
		if got := count(hook.taken(), "resolved "+key) - hooked; got != 1 {
			t.Errorf("the webhook was told the end %d times", got)
		}
	}
	t.Logf("PagerDuty heard:\n%s\nthe webhook heard:\n%s", strings.Join(duty.Log(), "\n"), strings.Join(hook.lines(), "\n"))
}
