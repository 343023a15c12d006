package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flymesh/agent/identity"
)

// island is a network namespace of its own with one address that is not
// loopback: who connects to it there comes from off the loopback.
type island struct{ name, addr string }

func newIsland(t *testing.T) island {
	t.Helper()
	i := island{fmt.Sprintf("e2ei%d", os.Getpid()%100000), "fdaa:0:18:a7b:1::9"}
	run := func(args ...string) {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Skipf("SKIPPED: ip %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	need(t, "ip", "iproute2")
	run("netns", "add", i.name)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", i.name).Run() })
	run("-n", i.name, "link", "set", "lo", "up")
	run("-n", i.name, "-6", "addr", "add", i.addr+"/128", "dev", "lo", "nodad")
	return i
}

// dial connects from within.
func (i island) dial(ctx context.Context, network, addr string) (c net.Conn, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // the thread ends with this goroutine: its namespace is not for others
		ns, e := os.Open("/var/run/netns/" + i.name)
		if e == nil {
			defer ns.Close()
			e = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err = e; err == nil {
			c, err = new(net.Dialer).DialContext(ctx, network, addr)
		}
	}()
	<-done
	return c, err
}

// paths are all that agent/api names, and those of the page.
func paths(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("../../agent/api/*.go")
	if err != nil {
		t.Fatal(err)
	}
	all := []string{"/", "/live", "/assets/page.js", "/v1/why/api", "/nothing", "/debug/pprof/"}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`= "(/[a-z0-9/_-]+)"`).FindAllSubmatch(b, -1) {
			all = append(all, string(m[1]))
		}
	}
	if len(all) < 30 {
		t.Fatalf("only %d paths: nothing was read", len(all))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// TestOffTheMachine holds that who comes from another address and has no token
// gets /health and /metrics, and nothing else of any port.
func TestOffTheMachine(t *testing.T) {
	i := newIsland(t)
	dir, err := os.MkdirTemp("", "e2e-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "mesh.toml")
	if err := os.WriteFile(path, []byte(strings.Replace(config, `["api"]`, `["peers"]`+"\npeers = [\"127.0.0.1:1\"]", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	plain, wrong := identity.NewSecret(), identity.NewSecret()
	secret, err := identity.ParseSecret(plain)
	if err != nil {
		t.Fatal(err)
	}
	other, err := identity.ParseSecret(wrong)
	if err != nil {
		t.Fatal(err)
	}
	token := secret.PageToken("e2e")
	var log bytes.Buffer
	cmd := exec.Command("ip", "netns", "exec", i.name, agentBinary(t), "mesh", "-config", path)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "FLYMESH_SECRET=" + plain, "FLYMESH_SOCKET=" + filepath.Join(dir, "s"), "FLY_APP_NAME=e2e-site",
		"FLY_MACHINE_ID=00000000000001", "FLY_REGION=fra", "FLY_PRIVATE_IP=" + i.addr, "FLY_PROCESS_GROUP=app", "FLY_IMAGE_REF=x"}
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	end := func() {
		if !ended {
			ended = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	defer end()

	client := &http.Client{
		Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: i.dial},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	base := "http://" + net.JoinHostPort(i.addr, "9470")
	ask := func(method, path string, edit func(*http.Request)) (int, string) {
		t.Helper()
		r, err := http.NewRequest(method, base+path, strings.NewReader(`{"service":"api","delta":1}`))
		if err != nil {
			t.Fatal(err)
		}
		if edit != nil {
			edit(r)
		}
		resp, err := client.Do(r)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		return resp.StatusCode, string(b)
	}
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if status, _ := ask("GET", "/health", nil); status != 0 {
			break
		}
		if time.Now().After(until) {
			end()
			t.Fatalf("the agent does not answer:\n%s", log.String())
		}
	}

	set := func(k, v string) func(*http.Request) { return func(r *http.Request) { r.Header.Set(k, v) } }
	strangers := map[string]func(*http.Request){
		"nothing":              nil,
		"a wrong bearer":       set("Authorization", "Bearer "+other.PageToken("e2e")),
		"a cut bearer":         set("Authorization", "Bearer "+token[:len(token)-1]),
		"a longer bearer":      set("Authorization", "Bearer "+token+"A"),
		"an empty bearer":      set("Authorization", "Bearer "),
		"another scheme":       set("Authorization", token),
		"basic":                func(r *http.Request) { r.SetBasicAuth("flymesh", token) },
		"a header of its own":  set("X-Flymesh-Token", token),
		"a cookie of its own":  set("Cookie", "token="+token),
		"a wrong cookie":       set("Cookie", "flymesh_page="+other.PageToken("e2e")),
		"another mesh's token": set("Authorization", "Bearer "+secret.PageToken("elsewhere")),
		"the secret":           set("Authorization", "Bearer "+plain),
		"says it is local":     func(r *http.Request) { r.Host = "localhost:9470"; r.Header.Set("X-Forwarded-For", "127.0.0.1") },
		"the address elsewhere": func(r *http.Request) {
			if r.URL.Path != "/" {
				r.URL.RawQuery = "token=" + token
			}
		},
		"a wrong address": func(r *http.Request) { r.URL.RawQuery = "token=" + other.PageToken("e2e") },
	}
	asked, all := 0, paths(t)
	for who, edit := range strangers {
		for _, path := range all {
			for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"} {
				status, body := ask(method, path, edit)
				asked++
				open := path == "/health" || path == "/metrics"
				switch {
				case open && (method == "GET" || method == "HEAD") && (status == 200 || status == 503):
				case open && status == 405:
				case !open && status == 401:
				default:
					t.Errorf("%s with %s: %s %s: %d %.100q", i.addr, who, method, path, status, body)
				}
				if !open && (strings.Contains(body, "e2e") || strings.Contains(body, token)) {
					t.Errorf("%s %s tells %q", method, path, body)
				}
			}
		}
	}
	for path, want := range map[string]int{"/": 200, "/assets/page.js": 200, "/v1/history?service=api": 503, "/v1/scale": 404, "/v1/status": 404} {
		if status, body := ask("GET", path, set("Authorization", "Bearer "+token)); status != want {
			t.Errorf("with the token %s: %d, want %d: %.100q", path, status, want, body)
		}
	}

	// The mesh port takes members alone; gossip does not answer what it cannot read.
	strange, err := other.TLS("e2e", "m", strings.Repeat("0", 32), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	strange.InsecureSkipVerify = true
	member, err := secret.TLS("e2e", "m", strings.Repeat("0", 32), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for who, c := range map[string]*tls.Config{"no certificate": {InsecureSkipVerify: true}, "another secret": strange, "a member": member} {
		c.NextProtos = []string{"http/1.1"}
		got := i.mesh(t, c)
		if (got > 0) != (who == "a member") {
			t.Errorf("the mesh port and %s: %d bytes", who, got)
		}
	}
	if c, err := i.dial(t.Context(), "udp", net.JoinHostPort(i.addr, "7946")); err != nil {
		t.Error(err)
	} else {
		for range 20 {
			fmt.Fprint(c, "\x00ping e2e")
		}
		_ = c.SetDeadline(time.Now().Add(300 * time.Millisecond))
		if n, err := c.Read(make([]byte, 1500)); err == nil {
			t.Errorf("gossip answers a stranger with %d bytes", n)
		}
		c.Close()
	}
	end()
	for _, s := range []string{token, plain, wrong} {
		if strings.Contains(log.String(), s) {
			t.Error("the log holds a secret")
		}
	}
	t.Logf("%d requests from %s: %d paths, 6 methods, %d kinds of strangers; only /health and /metrics answer", asked, i.addr, len(all), len(strangers))
}

// mesh asks the mesh port for a status and returns how much it answers.
func (i island) mesh(t *testing.T, c *tls.Config) int {
	t.Helper()
	raw, err := i.dial(t.Context(), "tcp", net.JoinHostPort(i.addr, "7947"))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(5 * time.Second))
	conn := tls.Client(raw, c)
	fmt.Fprint(conn, "GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	b, _ := io.ReadAll(conn)
	return len(b)
}
