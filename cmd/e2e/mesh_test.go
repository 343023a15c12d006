package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"flymesh/agent/api"
	"flymesh/cmd/agentctl/emulator"
	"flymesh/leader/flyapi/flytest"
	"flymesh/raftstore/epoch"
	"flymesh/raftstore/state"
)

// config is the mesh of most scenarios: three services that may vote, one of
// them pinned, and one that may not. Nothing scales by itself.
const config = `
[mesh]
name = "e2e"
anchor_app = "e2e-cache"
report_every = "1s"
profile = "default"
discover = ["api"]
start_timeout = "20s"
ready_timeout = "30s"
drain_timeout = "3s"
` + `
[service.api]
app = "e2e-api"
kind = "app"
vote = true
max = 3
` + rules + `
[service.worker]
app = "e2e-worker"
kind = "app"
vote = true
max = 3
` + rules + `
[service.cache]
app = "e2e-cache"
kind = "app"
vote = true
max = 2
pinned = true
` + rules + `
[service.site]
app = "e2e-site"
kind = "app"
max = 2
` + rules

// rules that no load of these tests touches.
const rules = `up = ["memory > 99% for 1h"]
down = ["cpu < 1% for 6h"]
cooldown = "1s"
`

var services = []string{"api", "worker", "cache", "site"}

// mesh is a running fleet under test.
type mesh struct {
	fleet
	t     *testing.T
	agent string
	watch *watch
}

// fleet is what machines run on: the emulator of the command line, or one
// whose machines have networks of their own.
type fleet interface {
	Machines() []emulator.Machine
	Server() *flytest.Server
	Requests() []flytest.Request
	State() string
	SecretFile() string
	App(service string) string
	Proxy(service string) string
	Close() error
}

// newMesh starts the fleet of a config and waits until it has settled.
func newMesh(t *testing.T, config string) *mesh {
	t.Helper()
	m := startMesh(t, config)
	m.settle(40 * time.Second)
	return m
}

func startMesh(t *testing.T, config string) *mesh {
	t.Helper()
	return startWith(t, config, emulator.Options{})
}

func startWith(t *testing.T, config string, o emulator.Options) *mesh {
	t.Helper()
	// Short: the path of a unix socket has at most 107 bytes.
	dir, err := os.MkdirTemp("", "e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "mesh.toml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	o.Agent, o.Config, o.Listen, o.State = agentBinary(t), path, "127.0.0.1:0", dir
	em, err := emulator.Start(t.Context(), o, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return watched(t, em)
}

// watched is a mesh on a fleet that has just been started.
func watched(t *testing.T, f fleet) *mesh {
	m := &mesh{fleet: f, t: t, agent: agentBinary(t)}
	m.watch = newWatch(m)
	t.Cleanup(func() {
		m.watch.stop()
		if t.Failed() {
			m.dump()
		}
		if err := m.Close(); err != nil {
			t.Errorf("close emulator: %v", err)
		}
	})
	return m
}

// dump shows the end of what every machine has logged, and the mesh's calls.
func (m *mesh) dump() {
	if keep := os.Getenv("FLYMESH_E2E_KEEP"); keep != "" {
		_ = os.CopyFS(filepath.Join(keep, m.t.Name()), os.DirFS(filepath.Join(m.State(), "logs")))
	}
	logs, _ := filepath.Glob(filepath.Join(m.State(), "logs", "*.log"))
	for _, f := range logs {
		b, _ := os.ReadFile(f)
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		m.t.Logf("%s:\n%s", filepath.Base(f), strings.Join(lines[max(0, len(lines)-25):], "\n"))
	}
	rs := m.Requests()
	for _, r := range rs[max(0, len(rs)-40):] {
		m.t.Logf("%s %s %s %s -> %d %s %s", r.At.Format("05.000"), r.By, r.Method, r.Path, r.Status, r.Error, r.Fault)
	}
}

// running are the machines that are started and have an agent to ask.
func (m *mesh) running() []emulator.Machine {
	return slices.DeleteFunc(m.Machines(), func(x emulator.Machine) bool { return x.State != "started" || x.Socket == "" })
}

func (m *mesh) of(service string) []emulator.Machine {
	return slices.DeleteFunc(m.running(), func(x emulator.Machine) bool { return x.Service != service })
}

func client(x emulator.Machine) *api.Client { return api.NewSocketClient(x.Socket) }

// ask puts a question to the agents of machines, all at once.
func ask[T any](ctx context.Context, ms []emulator.Machine, limit time.Duration, question func(context.Context, *api.Client) (T, error)) ([]T, []error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out, errs := make([]T, len(ms)), make([]error, len(ms))
	var wg sync.WaitGroup
	for i, x := range ms {
		wg.Go(func() { out[i], errs[i] = question(ctx, client(x)) })
	}
	wg.Wait()
	return out, errs
}

func status(ctx context.Context, c *api.Client) (api.Status, error) { return c.Status(ctx) }

func events(ctx context.Context, c *api.Client) ([]state.Event, error) { return c.Events(ctx, 0) }

// settled says what of a settled mesh is still missing; empty: nothing.
func (m *mesh) settled() (api.Status, string) {
	none := api.Status{}
	for _, x := range m.Machines() {
		if x.State != "started" && x.State != "stopped" && x.State != "destroyed" {
			return none, fmt.Sprintf("machine %s is %s", x.ID, x.State)
		}
	}
	ms := m.running()
	if len(ms) == 0 {
		return none, "no machine runs"
	}
	all, errs := ask(m.t.Context(), ms, 3*time.Second, status)
	for i, err := range errs {
		if err != nil {
			return none, fmt.Sprintf("agent of %s %s: %v", ms[i].Service, ms[i].ID, err)
		}
	}
	first := all[0]
	for i, s := range all {
		switch {
		case s.Leader == nil:
			return none, fmt.Sprintf("%s %s knows no leader: %v", ms[i].Service, ms[i].ID, s.Warnings)
		case *s.Leader != *first.Leader || s.Epoch != first.Epoch || s.Term != first.Term:
			return none, "agents name different leaders"
		case len(s.Warnings) > 0:
			return s, fmt.Sprintf("warnings: %q", s.Warnings)
		case !s.Quorum.Healthy || len(s.Quorum.Voters) != 3:
			return s, fmt.Sprintf("quorum: %+v", s.Quorum)
		}
		for _, x := range ms {
			j := slices.IndexFunc(s.Machines, func(y api.MachineStatus) bool { return y.ID == x.ID })
			if j < 0 || s.Machines[j].Ready == nil || !*s.Machines[j].Ready {
				return s, fmt.Sprintf("%s %s is not ready in the status of %s", x.Service, x.ID, ms[i].ID)
			}
		}
		for _, id := range s.Quorum.Voters {
			if !slices.ContainsFunc(ms, func(x emulator.Machine) bool { return x.ID == id }) {
				return s, fmt.Sprintf("voter %s does not run", id)
			}
		}
	}
	if r := m.record(); r.Epoch != first.Epoch {
		return first, fmt.Sprintf("the record names epoch %d, the mesh is in %d", r.Epoch, first.Epoch)
	}
	told, errs := ask(m.t.Context(), ms, 3*time.Second, events)
	for i := range told {
		if errs[i] != nil || !reflect.DeepEqual(told[i], told[0]) {
			return first, fmt.Sprintf("events of %s differ (%v)", ms[i].ID, errs[i])
		}
	}
	return first, ""
}

// settle waits until the mesh has settled, twice in a row.
func (m *mesh) settle(limit time.Duration) api.Status {
	m.t.Helper()
	var missing string
	good, began := 0, time.Now()
	for end := began.Add(limit); time.Now().Before(end); {
		s, why := m.settled()
		if good++; why != "" {
			if testing.Verbose() && cut(missing) != cut(why) {
				m.t.Logf("%4.1fs: not settled: %s", time.Since(began).Seconds(), why)
			}
			good, missing = 0, why
		}
		if good == 2 {
			return s
		}
		time.Sleep(250 * time.Millisecond)
	}
	m.t.Fatalf("the mesh has not settled after %s: %s", limit, missing)
	return api.Status{}
}

// cut leaves out what changes all the time: enough to see progress by.
func cut(s string) string { return s[:min(len(s), 38)] }

// record is the epoch record: the highest one on the anchor app's machines.
func (m *mesh) record() (best epoch.Record) {
	for _, x := range m.Machines() {
		var r epoch.Record
		if json.Unmarshal([]byte(x.Metadata[epoch.MetadataKey]), &r) == nil && x.App == "e2e-cache" && r.Epoch >= best.Epoch {
			best = r
		}
	}
	return best
}

// events returns the history as the leader has it.
func (m *mesh) events() []state.Event {
	m.t.Helper()
	ms := m.running()
	all, errs := ask(m.t.Context(), ms, 3*time.Second, events)
	for i, err := range errs {
		if err == nil {
			return all[i]
		}
	}
	m.t.Fatalf("no agent tells the events: %v", errs)
	return nil
}

// mustKeep fails if events that were committed are not there any more.
func (m *mesh) mustKeep(before []state.Event) {
	m.t.Helper()
	after := m.events()
	if len(after) < len(before) || !reflect.DeepEqual(after[:len(before)], before) {
		m.t.Errorf("committed events were lost: %d before, %d after", len(before), len(after))
	}
}

// until polls a condition.
func (m *mesh) until(what string, limit time.Duration, ok func() bool) {
	m.t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			m.t.Fatalf("not within %s: %s", limit, what)
		}
	}
}
