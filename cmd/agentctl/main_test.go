package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"flymesh/agent/api"
	"flymesh/agent/api/apitest"
	"flymesh/agent/identity"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"agentctl": main})
}

// mesh is the agents of one script.
type mesh struct {
	*apitest.Mesh
	agents map[string]*served
}

// meshKey finds the mesh of a script.
type meshKey struct{}

type served struct {
	agent *apitest.Agent
	addr  string
	stop  func() error
}

// serve runs an agent with a real server on a socket.
func (m *mesh) serve(machine, socket string) (*served, error) {
	h := sha256.Sum256([]byte("test"))
	secret, err := identity.ParseSecret(base64.StdEncoding.EncodeToString(h[:]))
	if err != nil {
		return nil, err
	}
	conf, err := secret.TLS("test", machine, "b", time.Now())
	if err != nil {
		return nil, err
	}
	a := m.Agent(machine)
	s, err := api.NewServer(api.Options{Backend: a, Locks: a, Jobs: a, Redis: a, TLS: conf, Socket: socket, Mesh: "127.0.0.1:0"})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	v := &served{a, s.MeshAddr().String(), sync.OnceValue(func() error { cancel(); return <-done })}
	m.agents[machine] = v
	return v, nil
}

func (m *mesh) stop() error {
	var errs []error
	for _, v := range m.agents {
		errs = append(errs, v.stop())
	}
	return errors.Join(errs...)
}

// cmdMesh is the command mesh of the scripts:
//
//	mesh serve MACHINE    run an agent on $WORK/MACHINE.sock
//	mesh lead MACHINE     make it the leader; none: nobody leads
//	mesh stop MACHINE     end its agent
func cmdMesh(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mesh serve|lead|stop MACHINE")
	}
	m := ts.Value(meshKey{}).(*mesh)
	v := m.agents[args[1]]
	switch {
	case args[0] == "serve":
		_, err := m.serve(args[1], ts.MkAbs(args[1]+".sock"))
		ts.Check(err)
	case args[0] == "lead" && args[1] == "none":
		m.Lead(nil, "")
	case v == nil:
		ts.Fatalf("no agent %s", args[1])
	case args[0] == "lead":
		m.Lead(v.agent, v.addr)
	case args[0] == "stop":
		ts.Check(v.stop())
	default:
		ts.Fatalf("unknown mesh %s", args[0])
	}
}

// cmdExits runs agentctl and compares its exit code: exits CODE ARG...
func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE ARG...")
	}
	var out, errs bytes.Buffer
	if s := ts.Getenv("FLYMESH_SOCKET"); s != "" {
		args = append([]string{args[0], "--socket", s}, args[1:]...)
	}
	code := run(context.Background(), args[1:], &out, &errs)
	ts.Logf("[stdout]\n%s[stderr]\n%s", out.String(), errs.String())
	if got := string(rune('0' + code)); got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
	if code != 0 && strings.Count(errs.String(), "\n") != 1 {
		ts.Fatalf("an error must be one line")
	}
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			m := &mesh{apitest.New("n8n", "web"), map[string]*served{}}
			e.Values[meshKey{}] = m
			e.Defer(func() {
				if err := m.stop(); err != nil {
					t.Error(err)
				}
			})
			e.Setenv("USER", "ada")
			e.Setenv("SUDO_USER", "")
			e.Setenv("GORACE", "atexit_sleep_ms=0") // else each command of a race build takes a second
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"mesh": cmdMesh, "exits": cmdExits},
	})
}

// buffer is a bytes.Buffer for two goroutines.
type buffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

// Write implements io.Writer.
func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func poll(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

// events --follow tells everything once, over a change of leader and an agent
// that is away for a while; status --watch goes on as well. Ctrl-C ends both
// in good order.
func TestFollowAndWatch(t *testing.T) {
	m := &mesh{apitest.New("n8n", "web"), map[string]*served{}}
	defer m.stop()
	dir := t.TempDir()
	socket := filepath.Join(dir, "a.sock")
	a, err := m.serve("m0", socket)
	if err != nil {
		t.Fatal(err)
	}
	b, err := m.serve("m1", filepath.Join(dir, "b.sock"))
	if err != nil {
		t.Fatal(err)
	}
	m.Lead(a.agent, a.addr)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var events, eventErrs, statuses, statusErrs buffer
	codes := make(chan int, 2)
	go func() {
		codes <- run(ctx, []string{"--socket", socket, "events", "--follow", "--json"}, &events, &eventErrs)
	}()
	go func() { codes <- run(ctx, []string{"--socket", socket, "status", "--watch"}, &statuses, &statusErrs) }()
	scale := func(size string) {
		t.Helper()
		var out bytes.Buffer
		if code := run(ctx, []string{"--socket", filepath.Join(dir, "b.sock"), "scale", "n8n", size, "--reason", "test " + size}, &out, &out); code != 0 {
			t.Fatalf("scale %s: %d %s", size, code, out.String())
		}
	}
	scale("+1")
	poll(t, "the first event", func() bool { return strings.Contains(events.String(), "test +1") })
	m.Lead(nil, "")
	poll(t, "without a leader", func() bool {
		return strings.Contains(eventErrs.String(), "waiting") && strings.Contains(statuses.String(), "leader none")
	})
	m.Lead(b.agent, b.addr)
	scale("-1")
	poll(t, "the second event", func() bool { return strings.Contains(events.String(), "test -1") })
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	poll(t, "an agent that is away", func() bool { return strings.Contains(statusErrs.String(), "no agent runs here") })
	if _, err := m.serve("m0", socket); err != nil {
		t.Fatal(err)
	}
	scale("3")
	poll(t, "the third event", func() bool { return strings.Contains(events.String(), "test 3") })
	poll(t, "a new picture", func() bool { return strings.Contains(statuses.String(), "leader m1") })
	cancel()
	for range 2 {
		if code := <-codes; code != 0 {
			t.Errorf("exit code %d after Ctrl-C", code)
		}
	}

	last := uint64(0)
	for line := range strings.Lines(events.String()) {
		var e struct{ Index uint64 }
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Index <= last {
			t.Errorf("line %q after event %d: %v", line, last, err)
		}
		last = e.Index
	}
	for _, size := range []string{"+1", "-1", "3"} {
		if n := strings.Count(events.String(), "test "+size+`"`); n != 1 {
			t.Errorf("the event of %s is told %d times", size, n)
		}
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 3200 * time.Millisecond: "3s", 59600 * time.Millisecond: "1m00s",
		65 * time.Second: "1m05s", 2*time.Hour + 9*time.Minute: "2h09m", 49 * time.Hour: "2d1h",
	} {
		if got := age(d); got != want {
			t.Errorf("age(%v) = %s, want %s", d, got, want)
		}
	}
}
