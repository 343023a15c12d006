package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"flymesh/agent/config"
	"flymesh/agent/identity"
	"flymesh/agent/supervise"
)

// TestMain makes this binary a machine of the tests: an agent and, in the same
// process, an embeddings app that takes its time to load.
func TestMain(m *testing.M) {
	if os.Getenv("FLYMESH_TEST_CONFIG") == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	var err error
	switch {
	case len(os.Args) > 2 && os.Args[1] == "sidecar":
		os.Exit(sidecar(os.Args[2:]))
	case len(os.Args) > 2 && os.Args[1] == "app":
		err = http.ListenAndServe(os.Args[2], http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") }))
	default:
		err = machine(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func machine(ctx context.Context) error {
	cfg, err := config.Load(os.Getenv("FLYMESH_TEST_CONFIG"))
	if err != nil {
		return err
	}
	self, err := identity.FromEnv(os.Getenv)
	if err != nil {
		return err
	}
	secret, err := identity.ParseSecret(os.Getenv("FLYMESH_SECRET"))
	if err != nil {
		return err
	}
	cfg.Mesh.Socket = os.Getenv("FLYMESH_SOCKET")
	if ms, err := strconv.Atoi(os.Getenv("FLYMESH_TEST_LOAD_MS")); err == nil {
		l, err := net.Listen("tcp", net.JoinHostPort(self.PrivateIP, "3000"))
		if err != nil {
			return err
		}
		go func() { _ = http.Serve(l, newModel(time.Duration(ms)*time.Millisecond)) }()
	}
	tokens, missing := identity.Tokens(os.Getenv, cfg.TokenApps())
	if len(missing) > 0 {
		tokens = nil
	}
	child, err := supervise.Attach()
	if err != nil {
		return err
	}
	o := Options{
		Config: cfg, Machine: self, Secret: secret, Tokens: tokens, APIBase: os.Getenv("FLY_FLAPS_BASE_URL"), Version: "test", Supervisor: child,
		Logger: slog.New(slog.NewJSONHandler(os.Stderr, nil)),
	}
	if os.Getenv("FLYMESH_TEST_FLEET") != "" {
		return crowded(ctx, o)
	}
	return Run(ctx, o)
}

// sidecar supervises the app at an address and the mesh half that mesh starts.
func sidecar(args []string) int {
	return supervise.Run(context.Background(), supervise.Options{
		App: []string{os.Args[0], "app", args[0]}, Mesh: args[1:], Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
}

// model is an embeddings app in the openai dialect. It keeps when it became
// able to embed, and can lose its model.
type model struct {
	loadedAt atomic.Int64 // unix nanoseconds; 0: not loaded
}

func newModel(load time.Duration) *model {
	m := &model{}
	time.AfterFunc(load, func() { m.loadedAt.Store(time.Now().UnixNano()) })
	return m
}

func (m *model) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/loaded-at":
		fmt.Fprint(w, m.loadedAt.Load())
	case "/unload":
		m.loadedAt.Store(0)
	case "/load":
		m.loadedAt.Store(time.Now().UnixNano())
	case "/v1/embeddings":
		_, _ = io.Copy(io.Discard, r.Body)
		if m.loadedAt.Load() == 0 {
			http.Error(w, "loading", http.StatusServiceUnavailable)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"data": []any{map[string]any{"embedding": []float64{1, 2, 3}}}})
	default:
		http.NotFound(w, r)
	}
}
