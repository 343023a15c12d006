package proxy

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestMain makes this binary the proxy's own process, as the agent is one, or
// the app behind it.
func TestMain(m *testing.M) {
	target, app := os.Getenv("PROXY_TEST_TARGET"), os.Getenv("PROXY_TEST_APP")
	switch {
	case app != "":
		body := make([]byte, 1024)
		_ = http.ListenAndServe(app, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }))
	case target != "":
		p, err := Open(Options{Listen: os.Getenv("PROXY_TEST_LISTEN"), Target: target, Logger: slog.New(slog.DiscardHandler)})
		if err == nil {
			err = p.Run(context.Background())
		}
		fmt.Fprintln(os.Stderr, err)
	default:
		os.Exit(m.Run())
	}
	os.Exit(1)
}

// besides starts a process of the comparison and waits until it answers.
func besides(t *testing.T, url string, env []string, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Signal(os.Interrupt); _ = cmd.Wait() })
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if resp, err := http.Get(url); err == nil {
			resp.Body.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not answer", name)
		}
	}
}

// free returns an address that nobody has.
func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestBesideNginx compares the proxy with nginx as a reverse proxy on the same
// machine, in one run, in turns: FLYMESH_BENCH=1 go test -run BesideNginx -v.
func TestBesideNginx(t *testing.T) {
	if os.Getenv("FLYMESH_BENCH") == "" {
		t.Skip("a measurement of some 30 s: set FLYMESH_BENCH=1")
	}
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		t.Skip("nginx is not on the PATH (Debian: apt-get install nginx-light)")
	}
	app, theirAddr, ourAddr := free(t), free(t), free(t)
	direct, theirs, ours := "http://"+app, "http://"+theirAddr, "http://"+ourAddr
	besides(t, direct, []string{"PROXY_TEST_APP=" + app}, os.Args[0])
	besides(t, ours, []string{"PROXY_TEST_TARGET=" + direct, "PROXY_TEST_LISTEN=" + ourAddr}, os.Args[0])
	dir := t.TempDir()
	conf := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf(`daemon off; worker_processes auto; pid %s/pid; error_log %s/error.log;
events { worker_connections 4096; }
http { access_log off; client_body_temp_path %s; proxy_temp_path %s; fastcgi_temp_path %s; uwsgi_temp_path %s; scgi_temp_path %s;
 upstream app { server %s; keepalive 256; }
 server { listen %s; location / { proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; } } }
`, dir, dir, dir, dir, dir, dir, dir, app, theirAddr)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	besides(t, theirs, nil, nginx, "-c", conf, "-p", dir)
	ways := []struct{ name, url string }{{"direct", direct}, {"nginx", theirs}, {"flymesh", ours}}
	for _, load := range []struct {
		name    string
		clients int
		pause   time.Duration
	}{{"1 client, 1 ms apart", 1, time.Millisecond}, {"32 clients, no pause", 32, 0}} {
		results := make([][]float64, len(ways))
		spent := make([]time.Duration, len(ways))
		for range 3 { // in turns, so that a busy moment hits all
			for i, w := range ways {
				begin := time.Now()
				results[i] = append(results[i], hammer(t, w.url, load.clients, load.pause, 1500*time.Millisecond)...)
				spent[i] += time.Since(begin)
			}
		}
		t.Logf("%s:", load.name)
		for i, w := range ways {
			slices.Sort(results[i])
			n := len(results[i])
			t.Logf("  %-8s %8.0f requests/s   p50 %7.3f ms   p99 %7.3f ms", w.name, float64(n)/spent[i].Seconds(), 1000*results[i][n/2], 1000*results[i][n*99/100])
		}
	}
}

// hammer asks with keep-alive and returns each duration in seconds.
func hammer(t *testing.T, url string, clients int, pause, d time.Duration) (all []float64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
	defer client.CloseIdleConnections()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			var mine []float64
			for ctx.Err() == nil {
				begin := time.Now()
				resp, err := client.Get(url)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				mine = append(mine, time.Since(begin).Seconds())
				time.Sleep(pause)
			}
			mu.Lock()
			all = append(all, mine...)
			mu.Unlock()
		})
	}
	wg.Wait()
	return all
}
