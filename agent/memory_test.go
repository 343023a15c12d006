package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	fly "github.com/superfly/fly-go"
	"golang.org/x/sync/errgroup"

	"flymesh/agent/api"
	"flymesh/agent/identity"
	"flymesh/leader/flyapi/flytest"
	"flymesh/leader/history"
	"flymesh/leader/window"
	"flymesh/probes/report"
)

// The fleet whose voter is measured.
const (
	crowdServices = 50
	crowdMachines = 200
)

// crowd is what machine i of the fleet reports.
func crowd(i int, seq uint64) report.Report {
	s := report.NewSketch()
	for k := range 40 { // as many bins as an app with a spread of answers fills
		s.Add(0.05 * float64(1+(i+k*k)%60))
	}
	return report.Report{
		Machine: fmt.Sprintf("%014x", i+1), Boot: fmt.Sprintf("%032x", i+1), Seq: seq, Service: fmt.Sprint("s", i%crowdServices), Region: "fra",
		Version: "test", Config: "0badcafe", CPU: report.Of(0.3), Steal: report.Of(0), Memory: report.Of(0.5), Queue: report.Of(1), InFlight: report.Of(2),
		Requests: report.Of(40), Errors: report.Of(0), Latency: s, Readiness: report.Ready,
	}
}

// crowded runs an agent that has heard such a fleet for a day, and goes on
// hearing it.
func crowded(ctx context.Context, o Options) error {
	a, err := open(o)
	if err != nil {
		return err
	}
	every := o.Config.Mesh.ReportEvery
	w, h, now := window.New(window.Config{Every: every}), history.New(every), time.Now()
	for t, seq := now.Add(-window.DefaultKeep), uint64(1); t.Before(now); t, seq = t.Add(every), seq+1 {
		for i := range crowdMachines {
			w.Add(t, crowd(i, seq))
		}
		w.Tick(t)
	}
	for t := now.Add(-history.Length * h.Step()); t.Before(now); t = t.Add(h.Step()) {
		for i := range crowdMachines {
			h.AddMachine(t, crowd(i, 1))
		}
		for i := range crowdServices {
			s := w.Series(fmt.Sprint("s", i))[0]
			s.At = t
			h.Add(fmt.Sprint("s", i), s)
		}
	}
	// The counts behind burn rates stay this agent's own: they have a fixed size.
	own, err := a.reports.ExportPast()
	if err != nil {
		return err
	}
	day := h.Export()
	past := append(binary.LittleEndian.AppendUint32(nil, uint32(len(day))), day...)
	past = append(past, own[4+binary.LittleEndian.Uint32(own):]...)
	recent, err := w.Export(now)
	if err == nil {
		err = a.reports.Import(recent)
	}
	if err == nil {
		err = a.reports.ImportPast(past)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "crowd: history %d bytes, copy of it %d, copy of the window %d\n", h.Bytes(), len(past), len(recent))
	debug.FreeOSMemory() // what only this preparation took
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		for seq := uint64(1000); ; seq++ {
			for i := range crowdMachines {
				a.reports.Add(crowd(i, seq))
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(every):
			}
		}
	})
	g.Go(func() error { return a.run(ctx) })
	return g.Wait()
}

// TestMemory measures a real agent that votes and leads: with nobody else, and
// with 50 services, 200 machines and a day of history. FLYMESH_BENCH=1.
func TestMemory(t *testing.T) {
	if os.Getenv("FLYMESH_BENCH") == "" {
		t.Skip("a measurement: set FLYMESH_BENCH=1 (without the race detector)")
	}
	idle, _ := resident(t, "")
	full, page := resident(t, "1")
	t.Logf("resident memory of an agent that leads: %.1f MiB alone, %.1f MiB with %d services, %d machines and 24 h of history: %.1f MiB more; the page's state has %d bytes",
		idle, full, crowdServices, crowdMachines, full-idle, page)
	if full > 80 {
		t.Errorf("%.1f MiB, want at most 80", full)
	}
}

// resident starts a mesh of one and returns the highest resident memory of its
// agent in MiB over some rounds, and the size of the page's state.
func resident(t *testing.T, fleet string) (mib float64, page int) {
	t.Helper()
	dir, err := os.MkdirTemp("", "mem-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	var b strings.Builder
	b.WriteString("[mesh]\nname = \"m\"\ndiscover = [\"api\"]\n")
	for i := range crowdServices {
		group := fmt.Sprint("g", i)
		if i == 0 {
			group = "app"
		}
		fmt.Fprintf(&b, "[service.s%d]\napp = \"m-app\"\ngroup = %q\nvote = %t\nmode = \"shadow\"\n"+
			"up = [\"cpu > 80%% for 3m\"]\ndown = [\"cpu < 40%% for 10m\"]\n", i, group, i == 0)
	}
	path := filepath.Join(dir, "mesh.toml")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	processes, err := flytest.NewProcesses(flytest.ProcessOptions{Dir: dir, NoCgroups: true})
	if err != nil {
		t.Fatal(err)
	}
	server, err := flytest.New(flytest.Options{Launcher: processes, Tokens: map[string]string{"m-app": "a"},
		Secrets: map[string]map[string]string{"m-app": {"FLYMESH_SECRET": identity.NewSecret(), "FLYMESH_TOKEN_M_APP": "a"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if err := server.Listen("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	// What the agent sets itself at its start.
	env := map[string]string{"FLYMESH_TEST_CONFIG": path, "FLYMESH_TEST_FLEET": fleet, "GOMAXPROCS": "1", "GOGC": "50", "GOMEMLIMIT": "64MiB"}
	if _, err := server.Seed(flytest.Spec{App: "m-app", Start: true, Config: fly.MachineConfig{
		Image: "m", Init: fly.MachineInit{Exec: []string{os.Args[0]}}, Env: env}}); err != nil {
		t.Fatal(err)
	}
	m := &mesh{t: t, server: server}
	var self flytest.MachineInfo
	m.await("a leader", 60*time.Second, func() bool {
		if self = server.Machines()[0]; self.State != "started" {
			return false
		}
		st, err := api.NewSocketClient(self.Socket).Status(t.Context())
		return err == nil && st.Leader != nil
	})
	for range 40 {
		p, err := api.NewSocketClient(self.Socket).Page(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if fleet != "" && len(p.Sparks["s7"].Rows) < pagePoints {
			t.Fatalf("%d rows: the fleet is not there", len(p.Sparks["s7"].Rows))
		}
		if b, err := json.Marshal(p); err != nil {
			t.Fatal(err)
		} else {
			page = len(b)
		}
		mib = max(mib, vmRSS(t, self.PID))
		time.Sleep(500 * time.Millisecond)
	}
	h, err := api.NewSocketClient(self.Socket).History(t.Context(), api.HistoryQuery{Service: "s7", Since: api.MaxSince})
	if err != nil || fleet != "" && len(h.Rows) < history.Length-5 {
		t.Fatalf("%d rows of history, %v", len(h.Rows), err)
	}
	log, _ := os.ReadFile(self.Log)
	for line := range bytes.Lines(log) {
		if bytes.HasPrefix(line, []byte("crowd: ")) {
			t.Logf("%s", line)
		}
	}
	return mib, page
}

func vmRSS(t *testing.T, pid int) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
	if err != nil {
		t.Fatal(err)
	}
	return kb / 1024
}
