package agent

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	fly "github.com/superfly/fly-go"

	"flymesh/agent/api"
	"flymesh/agent/identity"
	"flymesh/leader/flyapi/flytest"
	"flymesh/raftstore/state"
)

const meshFile = `
[mesh]
name = "m"
report_every = "200ms"
profile = "fast"
discover = ["api"]
no_leader_grace = "10m"
[service.voters]
app = "m-voters"
vote = true
baseline = 3
max = 3
[service.emb]
kind = "embeddings"
app = "m-emb"
gate = "leader"
mode = "up-only"
up = ["cpu > 100% for 1h"]
max = 100
[[service.emb.probe]]
type = "embeddings"
dialect = "openai"
model = "m"
url = "http://${FLY_PRIVATE_IP}:3000"
`

// mesh is a fleet of real agents in processes on the emulated Machines API.
type mesh struct {
	t      *testing.T
	server *flytest.Server
	base   fly.MachineConfig
}

func newMesh(t *testing.T) *mesh {
	t.Helper()
	return newMeshOf(t, meshFile)
}

func newMeshOf(t *testing.T, file string) *mesh {
	t.Helper()
	dir, err := os.MkdirTemp("", "mesh-") // short: sockets are in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "mesh.toml")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	processes, err := flytest.NewProcesses(flytest.ProcessOptions{Dir: dir, NoCgroups: true})
	if err != nil {
		t.Fatal(err)
	}
	secret := identity.NewSecret()
	voter := map[string]string{"FLYMESH_SECRET": secret, "FLYMESH_TOKEN_M_VOTERS": "a", "FLYMESH_TOKEN_M_EMB": "b"}
	server, err := flytest.New(flytest.Options{
		Launcher: processes, Tokens: map[string]string{"m-voters": "a", "m-emb": "b"},
		Secrets: map[string]map[string]string{"m-voters": voter, "m-emb": {"FLYMESH_SECRET": secret}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	if err := server.Listen("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	m := &mesh{t: t, server: server, base: fly.MachineConfig{
		Image: "m", Init: fly.MachineInit{Exec: []string{os.Args[0]}}, Env: map[string]string{"FLYMESH_TEST_CONFIG": path},
		Restart: &fly.MachineRestart{Policy: fly.MachineRestartPolicyAlways},
	}}
	for range 3 {
		m.start("m-voters", nil)
	}
	m.await("a leader and three voters", 60*time.Second, func() bool { return m.leader() != "" })
	return m
}

func (m *mesh) start(app string, env map[string]string) string {
	m.t.Helper()
	c := m.base
	c.Env = map[string]string{"FLYMESH_TEST_CONFIG": m.base.Env["FLYMESH_TEST_CONFIG"]}
	for k, v := range env {
		c.Env[k] = v
	}
	made, err := m.server.Seed(flytest.Spec{App: app, Config: c, Start: true})
	if err != nil {
		m.t.Fatal(err)
	}
	return made.ID
}

func (m *mesh) info(id string) flytest.MachineInfo {
	for _, i := range m.server.Machines() {
		if i.ID == id {
			return i
		}
	}
	return flytest.MachineInfo{}
}

func (m *mesh) await(what string, limit time.Duration, ok func() bool) {
	m.t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			for _, i := range m.server.Machines() {
				b, _ := os.ReadFile(i.Log)
				m.t.Logf("%s %s %s\n%s", i.App, i.ID, i.State, b[max(0, len(b)-1500):])
			}
			m.t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// ask asks the agents of the voters until one answers as the leader would.
func ask[T any](m *mesh, f func(context.Context, *api.Client) (T, error)) (t T, ok bool) {
	for _, i := range m.server.Machines() {
		if i.App != "m-voters" || i.State != "started" || i.Socket == "" {
			continue
		}
		ctx, cancel := context.WithTimeout(m.t.Context(), 2*time.Second)
		t, err := f(ctx, api.NewSocketClient(i.Socket))
		cancel()
		if err == nil {
			return t, true
		}
	}
	return t, false
}

// leader returns who leads three living voters; "" while that is not so.
func (m *mesh) leader() string {
	s, ok := ask(m, func(ctx context.Context, c *api.Client) (api.Status, error) {
		s, err := c.Status(ctx)
		if err == nil && s.Leader == nil {
			err = api.ErrNoLeader
		}
		return s, err
	})
	if !ok || len(s.Quorum.Voters) != 3 || !s.Quorum.Healthy {
		return ""
	}
	for _, w := range s.Warnings {
		if strings.Contains(w, "is not alive") {
			return ""
		}
	}
	return s.Leader.Machine
}

func (m *mesh) events(kind, machine string) (n int) {
	list, _ := ask(m, func(ctx context.Context, c *api.Client) ([]state.Event, error) { return c.Events(ctx, 0) })
	for _, e := range list {
		if e.Kind == kind && e.Machine == machine {
			n++
		}
	}
	return n
}

// watch polls /health each 10 ms and says what was wrong.
type watch struct {
	id, ip string

	mu    sync.Mutex // guards all below
	polls int
	ready time.Time
	early int // 200 before the model answered
	flips int // not 200 any more
	last  string
}

var quick = &http.Client{Timeout: 2 * time.Second}

func get(url string) (status int, body string) {
	resp, err := quick.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

func (w *watch) run(ctx context.Context) {
	for ; ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
		status, body := get("http://" + w.ip + ":9470/health")
		at := time.Now().UnixNano()
		early := false
		if status == http.StatusOK {
			_, text := get("http://" + w.ip + ":3000/loaded-at")
			loaded, err := strconv.ParseInt(text, 10, 64)
			early = err != nil || loaded == 0 || loaded > at
		}
		w.mu.Lock()
		w.polls++
		w.last = body
		switch {
		case early:
			w.early++
		case status == http.StatusOK && w.ready.IsZero():
			w.ready = time.Now()
		case status != http.StatusOK && !w.ready.IsZero() && ctx.Err() == nil:
			w.flips++
		}
		w.mu.Unlock()
	}
}

func (w *watch) isReady() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.ready.IsZero()
}

// TestAdmission shares one mesh: to form it takes longer than the rest.
func TestAdmission(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	m := newMesh(t)
	t.Logf("a mesh of three voters after %v", time.Since(begin).Round(time.Millisecond))
	t.Run("never ready before the model answers", func(t *testing.T) { m.t = t; neverEarly(t, m) })
	t.Run("revocation reaches the machine", func(t *testing.T) { m.t = t; revocation(t, m) })
}

// Machines start again and again with models that take a random time, while
// leaders are killed: none says 200 before its model answers, and none that
// was admitted flips. FLYMESH_STARTS says how many; default 5.
func neverEarly(t *testing.T, m *mesh) {
	starts, wave := 5, 5
	if n, err := strconv.Atoi(os.Getenv("FLYMESH_STARTS")); err == nil {
		starts, wave = n, min(n, 10)
	}
	var polls, early, flips, kills int
	var slowest time.Duration
	for done := 0; done < starts; done += wave {
		lead := m.leader()
		m.await("a whole quorum", 60*time.Second, func() bool { lead = m.leader(); return lead != "" })
		ctx, cancel := context.WithCancel(t.Context())
		var watches []*watch
		var wg sync.WaitGroup
		for range wave {
			id := m.start("m-emb", map[string]string{"FLYMESH_TEST_LOAD_MS": fmt.Sprint(300 + rand.IntN(2500))})
			w := &watch{id: id, ip: m.info(id).PrivateIP}
			watches = append(watches, w)
			wg.Go(func() { w.run(ctx) })
		}
		time.Sleep(time.Duration(300+rand.IntN(1500)) * time.Millisecond) // somewhere in the warm-up
		if err := m.server.Kill(lead); err != nil {
			t.Fatal(err)
		}
		kills++
		begin := time.Now()
		m.await("all ready", 60*time.Second, func() bool {
			for _, w := range watches {
				if !w.isReady() {
					return false
				}
			}
			return true
		})
		slowest = max(slowest, time.Since(begin))
		// Once more, with all admitted.
		m.await("a whole quorum", 60*time.Second, func() bool { lead = m.leader(); return lead != "" })
		if err := m.server.Kill(lead); err != nil {
			t.Fatal(err)
		}
		kills++
		m.await("a new leader", 60*time.Second, func() bool { l := m.leader(); return l != "" && l != lead })
		time.Sleep(2 * time.Second)
		cancel()
		wg.Wait()
		for _, w := range watches {
			polls, early, flips = polls+w.polls, early+w.early, flips+w.flips
			if w.early+w.flips > 0 {
				t.Errorf("machine %s: %d early, %d flips, last %s", w.id, w.early, w.flips, w.last)
			}
			if err := m.destroy(w.id); err != nil {
				t.Error(err)
			}
		}
	}
	t.Logf("%d starts, %d leaders killed, %d polls: %d early 200s, %d flips; slowest from the kill to all ready %v", starts, kills, polls, early, flips, slowest.Round(time.Millisecond))
	if polls < starts*50 {
		t.Errorf("only %d polls", polls)
	}
}

func (m *mesh) destroy(id string) error {
	req, err := http.NewRequest(http.MethodDelete, m.server.URL()+"/v1/apps/m-emb/machines/"+id+"?force=true", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer b")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("destroy machine %s: %s", id, resp.Status)
	}
	return nil
}

// From the model that is lost to the admission that is taken back and given
// again, over the mesh API.
func revocation(t *testing.T, m *mesh) {
	id := m.start("m-emb", map[string]string{"FLYMESH_TEST_LOAD_MS": "100"})
	ip := m.info(id).PrivateIP
	health := func() (int, string) { return get("http://" + ip + ":9470/health") }
	m.await("ready", 60*time.Second, func() bool { status, _ := health(); return status == 200 })
	if n := m.events("admit", id); n != 1 {
		t.Errorf("%d admissions", n)
	}
	get("http://" + ip + ":3000/unload")
	m.await("not ready", 10*time.Second, func() bool { status, _ := health(); return status == 503 })
	m.await("revoked", 30*time.Second, func() bool { return m.events("revoke", id) == 1 })
	_, body := health()
	t.Logf("revoked: %s", strings.TrimSpace(body))
	get("http://" + ip + ":3000/load")
	m.await("ready again", 30*time.Second, func() bool { status, _ := health(); return status == 200 })
	if n := m.events("admit", id); n != 2 {
		t.Errorf("%d admissions: it became ready by itself", n)
	}
}
