package role

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"flymesh/agent/api"
	"flymesh/agent/process"
	"flymesh/leader"
	"flymesh/probes/report"
)

// TestMain turns the test binary into a runner or a program.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 4 && os.Args[1] == "runner":
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		program := []string{os.Args[0], "program", os.Args[3]}
		os.Exit(Run(ctx, Options{
			Primary: program, Replica: program, Socket: os.Args[2], Patience: 500 * time.Millisecond, askEvery: 50 * time.Millisecond,
			Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		}))
	case len(os.Args) == 3 && os.Args[1] == "program":
		program(os.Args[2])
		os.Exit(0) // not on to the tests: they would start more of these
	}
	os.Exit(m.Run())
}

// program signs in a file until it is told to end, and leaves one behind that
// does the same. A file "stubborn" beside it keeps it from ending; one named
// after its role makes it exit with 7, and "over" all of them.
func program(file string) {
	said := os.Getenv(api.RoleEnv) + " " + os.Getenv(api.LockTokenEnv)
	if os.Getenv("LEFT") == "" {
		c := exec.Command("/proc/self/exe", os.Args[1:]...)
		c.Env, c.SysProcAttr = append(os.Environ(), "LEFT=1"), &syscall.SysProcAttr{Setsid: true}
		_ = c.Start()
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	for {
		if _, err := os.Stat(file + ".over"); err == nil {
			os.Exit(0)
		}
		f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return
		}
		fmt.Fprintf(f, "%d %d %s\n", time.Now().UnixNano(), os.Getpid(), said)
		f.Close()
		if _, err := os.Stat(file + "." + os.Getenv(api.RoleEnv)); err == nil {
			os.Exit(7)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-end:
			if _, err := os.Stat(file + ".stubborn"); err != nil && os.Getenv("LEFT") == "" {
				os.Exit(3)
			}
		}
	}
}

// Times of the model's leases.
const (
	lease = 1500 * time.Millisecond
	grace = 500 * time.Millisecond
	slack = leader.LockMargin // a busy machine is late
)

// model is the agents of a mesh of one lock, which is granted again only when
// it was released.
type model struct {
	mu      sync.Mutex // guards all below
	primary string     // machine
	token   int
	session string // that holds it; empty: free
	deaf    map[string]bool
	asked   map[string]time.Time // by machine: start of the newest renewal or grant
	roles   map[string]report.AppRole
}

func (m *model) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// serve answers as the agent of a machine.
func (m *model) serve(t *testing.T, machine, socket string) {
	mux := http.NewServeMux()
	handle := func(path string, answer func(b *json.Decoder) any) {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.deaf[machine] {
				w.WriteHeader(http.StatusServiceUnavailable)
				fmt.Fprint(w, `{"error":"nobody leads","code":"no_leader"}`)
				return
			}
			_ = json.NewEncoder(w).Encode(answer(json.NewDecoder(r.Body)))
		})
	}
	granted := func() api.Lease {
		m.asked[machine] = time.Now()
		return api.Lease{OK: true, Lock: "role/x", Token: fmt.Sprintf("1-%d", m.token), Fence: uint64(m.token), Socket: socket,
			LeaseMS: lease.Milliseconds(), Renew: 200, Grace: grace.Milliseconds()}
	}
	handle(api.PathRole, func(b *json.Decoder) any {
		var q api.RoleRequest
		_ = b.Decode(&q)
		m.roles[machine] = q.Role
		return api.RoleAnswer{Self: machine, Lock: "role/x", Primary: api.Primary{Service: "x", Machine: m.primary}}
	})
	handle(api.PathLockAcquire, func(b *json.Decoder) any {
		var q api.AcquireRequest
		_ = b.Decode(&q)
		if m.session != "" && m.session != q.Session {
			return api.Lease{Lock: q.Lock, Holder: "another", Why: "held"}
		}
		if m.session == "" {
			m.session = q.Session
			m.token++
		}
		return granted()
	})
	handle(api.PathLockRenew, func(b *json.Decoder) any {
		var q api.TokenRequest
		if _ = b.Decode(&q); m.session == "" || q.Token != fmt.Sprintf("1-%d", m.token) {
			return api.Lease{Why: "not held"}
		}
		return granted()
	})
	handle(api.PathLockRelease, func(b *json.Decoder) any {
		var q api.TokenRequest
		if _ = b.Decode(&q); q.Token == fmt.Sprintf("1-%d", m.token) {
			m.session = ""
		}
		return api.Lease{OK: true}
	})
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: mux}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
}

// machine is one runner beside its agent.
type machine struct {
	*exec.Cmd
	file string
	code chan int
}

func start(t *testing.T, m *model, name string) *machine {
	t.Helper()
	dir := t.TempDir()
	r := &machine{file: filepath.Join(dir, "signs"), code: make(chan int, 1)}
	socket := filepath.Join(dir, "s")
	m.serve(t, name, socket)
	r.Cmd = exec.Command(os.Args[0], "runner", socket, r.file)
	r.Stderr = os.Stderr
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = r.Wait(); r.code <- r.ProcessState.ExitCode() }()
	t.Cleanup(func() {
		_ = r.Process.Kill()
		_ = os.WriteFile(r.file+".over", nil, 0o600) // for what it leaves behind
		until(t, "nobody signs", func() bool {
			s := r.signs()
			return len(s) == 0 || time.Since(time.Unix(0, s[len(s)-1].at)) > 300*time.Millisecond
		})
	})
	return r
}

// sign is one line of a program.
type sign struct {
	at          int64
	pid         int
	role, token string
}

func (r *machine) signs() (all []sign) {
	b, _ := os.ReadFile(r.file)
	for line := range strings.Lines(string(b)) {
		var s sign
		if n, _ := fmt.Sscan(line, &s.at, &s.pid, &s.role, &s.token); n >= 3 {
			all = append(all, s)
		}
	}
	return all
}

// runs waits until the newest sign is of the role, and that is so for a while.
func (r *machine) runs(t *testing.T, role, token string) {
	t.Helper()
	good := 0
	until(t, r.Args[2]+" runs "+role+" "+token, func() bool {
		s := r.signs()
		if good++; len(s) == 0 || s[len(s)-1].role != role || s[len(s)-1].token != token || time.Since(time.Unix(0, s[len(s)-1].at)) > 200*time.Millisecond {
			good = 0
		}
		return good > 5
	})
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 15 s: %s", what)
		}
	}
}

// oneAtATime fails if two tokens were at work at a time, or two programs on a
// machine.
func oneAtATime(t *testing.T, ms ...*machine) {
	t.Helper()
	type span struct{ from, to int64 }
	spans := map[string]*span{}
	for _, r := range ms {
		was := sign{}
		for _, s := range r.signs() {
			if s.at > was.at && (s.role != was.role || s.token != was.token) && spans[s.token] != nil && s.token != "" {
				t.Errorf("token %s is at work again at %d, after %s %s", s.token, s.at, was.role, was.token)
			}
			was = s
			if s.token == "" {
				continue
			}
			if spans[s.token] == nil {
				spans[s.token] = &span{s.at, s.at}
			}
			spans[s.token].to = max(spans[s.token].to, s.at)
		}
	}
	for a, x := range spans {
		for b, y := range spans {
			if a < b && x.to >= y.from {
				t.Errorf("token %s worked until %v after %s had begun", a, time.Duration(x.to-y.from), b)
			}
		}
	}
}

func newModel() *model {
	return &model{primary: "m1", deaf: map[string]bool{}, asked: map[string]time.Time{}, roles: map[string]report.AppRole{}}
}

// The primary runs where the mesh wants it, the replica elsewhere, through a
// move and back; what a program leaves behind goes with it.
func TestMove(t *testing.T) {
	m := newModel()
	a, b := start(t, m, "m1"), start(t, m, "m2")
	a.runs(t, "primary", "1-1")
	b.runs(t, "replica", "")
	m.set(func() { m.primary = "m2" })
	b.runs(t, "primary", "1-2")
	a.runs(t, "replica", "")
	m.set(func() { m.primary = "m1" })
	a.runs(t, "primary", "1-3")
	until(t, "the agents know it", func() (ok bool) {
		m.set(func() { ok = m.roles["m1"] == report.Primary && m.roles["m2"] == report.Replica })
		return ok
	})
	oneAtATime(t, a, b)

	// A program's own end is the app's, and the lock is free.
	if err := os.WriteFile(a.file+".primary", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code := <-a.code; code != 7 {
		t.Errorf("exit %d, want the program's 7", code)
	}
	m.set(func() {
		if m.session != "" {
			t.Error("the lock is still held")
		}
	})
	_ = b.Process.Signal(syscall.SIGTERM)
	if code := <-b.code; code != 3 {
		t.Errorf("exit %d, want the program's 3", code)
	}
}

// A primary that cannot renew has ended with its lease, however stubborn it is,
// and the replica takes its place. When the mesh answers again, the primary
// comes back under a new token.
func TestSilentMesh(t *testing.T) {
	m := newModel()
	a := start(t, m, "m1")
	a.runs(t, "primary", "1-1")
	if err := os.WriteFile(a.file+".stubborn", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var renewed time.Time
	m.set(func() { m.deaf["m1"] = true; renewed = m.asked["m1"] })
	a.runs(t, "replica", "")
	var last int64
	for _, s := range a.signs() {
		if s.token == "1-1" {
			last = max(last, s.at)
		}
	}
	// The holder counts from before it asked, the model from when it heard.
	if after := time.Unix(0, last).Sub(renewed); after > lease+slack || after < lease-grace {
		t.Errorf("the primary worked until %v after the last renewal; its lease is %v, its grace %v", after, lease, grace)
	} else {
		t.Logf("the primary worked until %v after the last renewal (lease %v)", after.Round(time.Millisecond), lease)
	}
	m.set(func() { m.deaf["m1"] = false })
	a.runs(t, "primary", "1-2")
	oneAtATime(t, a)
}

// A replica that does not end in time is killed before the primary begins.
func TestStubbornReplica(t *testing.T) {
	m := newModel()
	m.primary = "m2"
	a := start(t, m, "m1")
	a.runs(t, "replica", "")
	if err := os.WriteFile(a.file+".stubborn", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m.set(func() { m.primary = "m1" })
	a.runs(t, "primary", "1-1")
	first := int64(0)
	for _, s := range a.signs() {
		switch {
		case s.token == "1-1" && first == 0:
			first = s.at
		case s.role == "replica" && first != 0:
			t.Errorf("the replica works %v after the primary's begin", time.Duration(s.at-first))
		}
	}
}

// When the runner is killed, its program is, at once; the agent finds the rest.
func TestDeadRunner(t *testing.T) {
	m := newModel()
	a := start(t, m, "m1")
	a.runs(t, "primary", "1-1")
	at := func() int {
		pids := map[int]bool{}
		for _, s := range a.signs() {
			if time.Since(time.Unix(0, s.at)) < 200*time.Millisecond {
				pids[s.pid] = true
			}
		}
		return len(pids)
	}
	until(t, "the program and what it leaves behind sign", func() bool { return at() == 2 })
	if err := a.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-a.code
	until(t, "the program has ended", func() bool { return at() <= 1 })
	mark := process.Mark{Socket: a.Args[2], Token: "1-1"}
	until(t, "nothing is left", func() bool { return mark.Kill() == 0 && at() == 0 })
}
