package proxy

import (
	"context"
	"fmt"
	"io"
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
	app, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	body := make([]byte, 1024)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) })}
	go func() { _ = s.Serve(app) }()
	t.Cleanup(func() { _ = s.Close() })
	direct := "http://" + app.Addr().String()
	p, ours := openTo(t, direct)

	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	dir := t.TempDir()
	conf := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf(`daemon off; worker_processes auto; pid %s/pid; error_log %s/error.log;
events { worker_connections 4096; }
http { access_log off; client_body_temp_path %s; proxy_temp_path %s; fastcgi_temp_path %s; uwsgi_temp_path %s; scgi_temp_path %s;
 upstream app { server %s; keepalive 256; }
 server { listen %s; location / { proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; } } }
`, dir, dir, dir, dir, dir, dir, dir, app.Addr(), addr)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(nginx, "-c", conf, "-p", dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Signal(os.Interrupt); _ = cmd.Wait() })
	theirs := "http://" + addr
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if resp, err := http.Get(theirs); err == nil {
			resp.Body.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nginx does not answer")
		}
	}

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
	m := reading(t, p)
	t.Logf("the proxy's own count: %.0f requests, %.0f errors, p99 %.3f ms", m.Requests.X, m.Errors.X, 1000*m.Latency.Quantile(0.99))
	if m.Errors.X != 0 {
		t.Errorf("%v errors", m.Errors.X)
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
