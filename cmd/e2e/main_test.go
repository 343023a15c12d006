// Package e2e holds the tests of whole meshes of processes: real agents beside
// real apps on an emulated Machines API, and what happens to them when parts
// are killed, frozen, deployed, cut off or lied to.
//
// After every fault a test waits until the mesh has settled: every agent names
// one leader and one epoch, the epoch record names that epoch, and no warning
// is left. What it prints is the time without a leader.
//
// FLYMESH_E2E=1 runs all scenarios, some minutes of them; without it only the
// short ones run.
package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"

	"github.com/alecthomas/kong"

	"flymesh/cmd/agentctl/demoapp"
)

// TestMain makes this binary the app of every machine, and at the end prints
// what the scenarios have shown.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "role-app" {
		roleApp(os.Args[2])
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "demo-app" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		var o demoapp.Options
		_, err := kong.Must(&o).Parse(os.Args[2:])
		if err == nil {
			err = demoapp.Run(ctx, o, slog.Default())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	os.RemoveAll(binaries.dir)
	table.print()
	os.Exit(code)
}

// binaries are the programs under test, built once.
var binaries struct {
	once sync.Once
	dir  string
	err  error
}

// build returns the directory of agent and agentctl.
func build(t *testing.T) string {
	t.Helper()
	binaries.once.Do(func() {
		if binaries.dir, binaries.err = os.MkdirTemp("", "e2e-bin-"); binaries.err != nil {
			return
		}
		cmd := exec.Command("go", "build", "-o", binaries.dir+"/", "flymesh/cmd/agent", "flymesh/cmd/agentctl")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			binaries.err = fmt.Errorf("build: %w\n%s", err, out)
		}
	})
	if binaries.err != nil {
		t.Fatal(binaries.err)
	}
	return binaries.dir
}

func agentBinary(t *testing.T) string { return filepath.Join(build(t), "agent") }

// long skips a scenario that takes more than a few seconds.
func long(t *testing.T) {
	t.Helper()
	if os.Getenv("FLYMESH_E2E") == "" {
		t.Skip("a long scenario: set FLYMESH_E2E=1")
	}
}

// row is what one scenario has shown.
type row struct {
	scenario string
	gap      float64 // seconds without a leader
	asked    int     // requests to apps meanwhile
	failed   int
	from, to uint64 // epochs
	note     string
}

type rows struct {
	mu   sync.Mutex // guards list
	list []row
}

var table rows

func (r *rows) add(x row) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, x)
}

func (r *rows) print() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) == 0 {
		return
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SCENARIO\tS WITHOUT LEADER\tEPOCH\tREQUESTS\tFAILED\tNOTE")
	for _, x := range r.list {
		fmt.Fprintf(w, "%s\t%.1f\t%d -> %d\t%d\t%d\t%s\n", x.scenario, x.gap, x.from, x.to, x.asked, x.failed, x.note)
	}
	w.Flush()
}
