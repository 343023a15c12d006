package demo

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"flymesh/cmd/agentctl/emulator"
)

// TestMain makes this binary an agent: a supervisor that starts itself again
// as its mesh half. Both end with their standard input.
func TestMain(m *testing.M) {
	role := os.Getenv("DEMO_TEST_ROLE")
	if role == "supervisor" {
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), "DEMO_TEST_ROLE=half")
		c.Stdin = os.Stdin
		if c.Run() != nil {
			os.Exit(1)
		}
	}
	if role != "" {
		_, _ = os.Stdin.Read(make([]byte, 1))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestMeshHalfIsTheChildOfItsMachine(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	supervisors := map[string]int{}
	for _, id := range []string{"3d8d9014a3d589", "5f8d9014a3d580"} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		c := exec.Command(self)
		c.Env = append(os.Environ(), "DEMO_TEST_ROLE=supervisor", "FLY_MACHINE_ID="+id)
		c.Stdin = r
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		r.Close()
		t.Cleanup(func() { w.Close(); _ = c.Wait() })
		supervisors[id] = c.Process.Pid
	}
	for id, supervisor := range supervisors {
		pid := 0
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			if pid, err = meshHalf(self, id); err == nil {
				break
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := parentOf(t, pid); got != supervisor {
			t.Errorf("machine %s: process %d is a child of %d, want %d", id, pid, got, supervisor)
		}
	}
	if _, err := meshHalf(self, "3d8d9014a3d58"); err == nil {
		t.Error("found a mesh half for the begin of an ID")
	}
}

func parentOf(t *testing.T, pid int) int {
	t.Helper()
	p, err := parent(pid)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestWatchAppCountsFailures(t *testing.T) {
	n := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n++; n%2 == 0 || r.URL.Path != "/healthz" {
			w.WriteHeader(http.StatusBadGateway)
		}
	}))
	defer srv.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 650*time.Millisecond)
	defer cancel()
	asked, failed := watchApp(ctx, emulator.Machine{Kind: "n8n", Addr: strings.TrimPrefix(srv.URL, "http://")})
	if asked < 3 || failed < 1 || failed > asked/2+1 {
		t.Errorf("asked %d, failed %d, want about half", asked, failed)
	}
}

func TestPong(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for _, answer := range []string{"+PONG\r\n", "-LOADING\r\n"} {
			if c, err := l.Accept(); err == nil {
				_, _ = c.Read(make([]byte, 64))
				_, _ = c.Write([]byte(answer))
				c.Close()
			}
		}
	}()
	if err := pong(t.Context(), l.Addr().String()); err != nil {
		t.Error(err)
	}
	if err := pong(t.Context(), l.Addr().String()); err == nil {
		t.Error("a server that is loading counts as serving")
	}
}
