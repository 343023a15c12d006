package emulator

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"flymesh/agent/config"
	"flymesh/cmd/agentctl/demoapp"
)

// TestMain makes this binary the two programs that a machine runs: an agent,
// here one that only supervises and answers health checks, and the app.
func TestMain(m *testing.M) {
	var err error
	switch {
	case len(os.Args) > 1 && os.Args[1] == "run":
		err = supervise(os.Args[slices.Index(os.Args, "--")+1:])
	case len(os.Args) > 1 && os.Args[1] == "demo-app":
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		var o demoapp.Options
		if _, err = kong.Must(&o).Parse(os.Args[2:]); err == nil {
			err = demoapp.Run(ctx, o, slog.Default())
		}
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func supervise(argv []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	for _, name := range []string{"FLYMESH_SECRET", "FLYMESH_SOCKET", "FLY_FLAPS_BASE_URL"} {
		if os.Getenv(name) == "" {
			return fmt.Errorf("%s is not set", name)
		}
	}
	go http.ListenAndServe(os.Getenv("FLY_PRIVATE_IP")+":9470", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	_ = cmd.Run() // ends with ctx
	return nil
}

const mesh = `
[mesh]
name = "test"
[service.n8n]
kind = "n8n"
app = "test-n8n"
vote = true
[service.site]
kind = "web"
app = "test-site"
max = 1
`

func options(t *testing.T) Options {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mesh.toml")
	if err := os.WriteFile(path, []byte(mesh), 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Options{Agent: self, Config: path, Listen: "127.0.0.1:0"}
}

func TestEmulatorRunsTheBaselineAndLeavesNothing(t *testing.T) {
	t.Setenv("FLYMESH_SECRET", "")
	e, err := Start(t.Context(), options(t), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if err := e.started(t.Context(), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(e.SecretFile()); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("secret file: %v %v", fi.Mode(), err)
	}
	ms := e.Machines()
	if len(ms) != 2 || ms[0].Service != "n8n" || ms[1].Service != "site" {
		t.Fatalf("got machines %+v", ms)
	}
	for service, call := range map[string]struct{ method, path, want string }{
		"n8n": {"POST", "/webhook/answer", "answer"}, "site": {"GET", "/", demoapp.Marker},
	} {
		body := ""
		for end := time.Now().Add(10 * time.Second); !strings.Contains(body, call.want); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s does not answer through its proxy: %q", service, body)
			}
			body = ask(t, call.method, e.Proxy(service)+call.path)
		}
	}
	var out strings.Builder
	e.print(&out)
	for _, want := range []string{e.URL(), e.Proxy("n8n"), ms[0].Socket, ms[1].Socket, e.SecretFile()} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the command does not print %s:\n%s", want, out.String())
		}
	}
	secret, err := os.ReadFile(e.SecretFile())
	if err != nil || strings.Contains(out.String(), strings.TrimSpace(string(secret))) {
		t.Errorf("the secret is printed (%v)", err)
	}

	if err := e.Close(); err != nil {
		t.Error(err)
	}
	for _, m := range ms {
		if err := syscall.Kill(m.PID, 0); err == nil {
			t.Errorf("process %d of machine %s is left", m.PID, m.ID)
		}
	}
	if _, err := os.Stat(e.State()); !os.IsNotExist(err) {
		t.Errorf("state directory is left: %v", err)
	}
}

func ask(t *testing.T, method, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err.Error()
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return string(b)
}

func TestStartSaysWhatIsWrong(t *testing.T) {
	o := options(t)
	o.Agent = filepath.Join(t.TempDir(), "none")
	if _, err := Start(t.Context(), o, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "agent binary") {
		t.Errorf("missing agent: %v", err)
	}
	o = options(t)
	t.Setenv("FLYMESH_SECRET", "short")
	if _, err := Start(t.Context(), o, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "FLYMESH_SECRET") {
		t.Errorf("bad secret: %v", err)
	}
}

func TestMachinesFitTheComputer(t *testing.T) {
	c, err := config.Parse("mesh.toml", []byte(mesh))
	if err != nil {
		t.Fatal(err)
	}
	for _, cpus := range []int{1, 2, 4, 64} {
		s, total := sizesFor(c, cpus), 0.0
		for _, x := range c.Services {
			total += s.cores[x.Name] * float64(x.Policy.Max)
		}
		if total > 0.8*float64(cpus) || s.cores["n8n"] < least || s.cores["n8n"] > most {
			t.Errorf("%d cores: %v, %.2f in all", cpus, s.cores, total)
		}
	}
}
