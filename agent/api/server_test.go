package api_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"flymesh/agent/api"
	"flymesh/agent/api/apitest"
	"flymesh/agent/identity"
	"flymesh/raftstore/state"
)

// secret makes a mesh secret out of one byte.
func secret(t testing.TB, b byte) identity.Secret {
	t.Helper()
	h := sha256.Sum256([]byte{b})
	s, err := identity.ParseSecret(base64.StdEncoding.EncodeToString(h[:]))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func tlsOf(t testing.TB, b byte, machine string) *tls.Config {
	t.Helper()
	c, err := secret(t, b).TLS("acme", machine, strings.Repeat("0", 32), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// door is one agent with its server.
type door struct {
	*api.Server
	agent  *apitest.Agent
	socket *api.Client
	path   string
	mesh   string
	health string
	stop   func() error
}

func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fm") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// serve opens all doors of an agent and runs them.
func serve(t *testing.T, b api.Backend, machine string, edit ...func(*api.Options)) *door {
	t.Helper()
	d := &door{path: filepath.Join(tempDir(t), "run", "agent.sock")}
	reg := prometheus.NewRegistry()
	o := api.Options{
		Backend: b, TLS: tlsOf(t, 0, machine), Socket: d.path, Mesh: "127.0.0.1:0", Health: "127.0.0.1:0",
		Gatherer: reg, Registerer: reg,
	}
	for _, f := range edit {
		f(&o)
	}
	s, err := api.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	d.Server, d.socket = s, api.NewSocketClient(d.path)
	d.mesh, d.health = s.MeshAddr().String(), s.HealthAddr().String()
	d.agent, _ = b.(*apitest.Agent)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	d.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(10 * time.Second):
			return errors.New("Run does not end")
		}
	}
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// three runs three agents, of which the first leads.
func three(t *testing.T) (*apitest.Mesh, []*door) {
	m := apitest.New("n8n", "web")
	var ds []*door
	for i := range 3 {
		machine := fmt.Sprintf("m%d", i)
		ds = append(ds, serve(t, m.Agent(machine), machine))
	}
	m.Lead(ds[0].agent, ds[0].mesh)
	return m, ds
}

func TestEveryAgentAnswersForTheLeader(t *testing.T) {
	mesh, ds := three(t)
	ctx := t.Context()
	for i, d := range ds {
		st, err := d.socket.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if st.Leader == nil || st.Leader.Machine != "m0" || st.From != "m0" || len(st.Services) != 2 {
			t.Errorf("agent %d tells %+v", i, st)
		}
		v, err := d.socket.Why(ctx, "n8n")
		if err != nil || v.Service != "n8n" || len(v.Rules) != 1 {
			t.Errorf("agent %d: why n8n: %+v, %v", i, v, err)
		}
	}
	a, err := ds[2].socket.Scale(ctx, api.ScaleRequest{Service: "n8n", Delta: 2, Reason: "test", By: "ada"})
	if err != nil {
		t.Fatal(err)
	}
	if got := mesh.Running("n8n"); got != 3 {
		t.Errorf("n8n has %d machines after +2, want 3", got)
	}
	one := 1
	if _, err := ds[1].socket.Scale(ctx, api.ScaleRequest{Service: "n8n", Target: &one}); err != nil {
		t.Fatal(err)
	}
	if _, err := ds[1].socket.Pause(ctx, api.PauseRequest{Service: "web", For: time.Hour}); err != nil {
		t.Fatal(err)
	}
	if _, err := ds[0].socket.Resume(ctx, api.PauseRequest{Service: "web"}); err != nil {
		t.Fatal(err)
	}
	var first []state.Event
	for i, d := range ds {
		es, err := d.socket.Events(ctx, a.Index-1)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = es
		}
		if len(es) != 4 || fmt.Sprint(es) != fmt.Sprint(first) {
			t.Errorf("agent %d tells %d events, want the leader's 4: %+v", i, len(es), es)
		}
	}
	if e := first[0]; e.Kind != "scale" || e.By != "ada" || e.Reason != "test" || e.To != 3 {
		t.Errorf("the first event is %+v", e)
	}
	// The mesh port: what agents ask each other.
	peer := api.NewMeshClient(ds[1].mesh, tlsOf(t, 0, "m9"))
	res, err := peer.Propose(ctx, state.Command{By: "m9", Note: &state.Note{Kind: "hello", Reason: "x"}})
	if err != nil || res.Index == 0 {
		t.Errorf("propose: %+v, %v", res, err)
	}
	if b, err := peer.Windows(ctx); err != nil || !bytes.Contains(b, []byte(`"hello"`)) {
		t.Errorf("windows: %.80q, %v", b, err)
	}
}

func TestWithoutLeader(t *testing.T) {
	m := apitest.New("n8n")
	d := serve(t, m.Agent("m1"), "m1")
	st, err := d.socket.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if st.Leader != nil || st.From != "m1" || len(st.Warnings) != 1 || len(st.Machines) != 1 {
		t.Errorf("status without a leader: %+v", st)
	}
	_, err = d.socket.Scale(t.Context(), api.ScaleRequest{Service: "n8n", Delta: 1})
	if !errors.Is(err, api.ErrNoLeader) || !strings.Contains(err.Error(), "no leader for") || !strings.Contains(err.Error(), "machine m1 answers") {
		t.Errorf("scale without a leader: %v", err)
	}
	var re *api.ResponseError
	if !errors.As(err, &re) || re.Status != http.StatusServiceUnavailable || re.Code != api.CodeNoLeader {
		t.Errorf("scale without a leader: %+v", re)
	}
	// A mistake is told even so.
	if _, err := d.socket.Scale(t.Context(), api.ScaleRequest{Service: "n8n"}); errors.Is(err, api.ErrNoLeader) || err == nil {
		t.Errorf("a wrong request without a leader: %v", err)
	}
}

func TestLeaderThatIsGone(t *testing.T) {
	mesh, ds := three(t)
	if err := ds[0].stop(); err != nil {
		t.Fatal(err)
	}
	st, err := ds[1].socket.Status(t.Context())
	if err != nil || st.Leader != nil || st.From != "m1" {
		t.Fatalf("status: %+v, %v", st, err)
	}
	if w := st.Warnings[len(st.Warnings)-1]; !strings.Contains(w, "no leader answers at "+ds[0].mesh) {
		t.Errorf("warnings %q do not say that the leader is gone", st.Warnings)
	}
	if _, err := ds[1].socket.Events(t.Context(), 0); !errors.Is(err, api.ErrNoLeader) {
		t.Errorf("events: %v", err)
	}
	if _, err := ds[1].socket.Scale(t.Context(), api.ScaleRequest{Service: "n8n", Delta: 1}); !errors.Is(err, api.ErrNoLeader) {
		t.Errorf("scale: %v", err)
	}
	mesh.Lead(ds[2].agent, ds[2].mesh)
	if _, err := ds[1].socket.Scale(t.Context(), api.ScaleRequest{Service: "n8n", Delta: 1}); err != nil {
		t.Errorf("scale with the new leader: %v", err)
	}
}

// A leader that takes a command and breaks off may have carried it out.
func TestLostAnswerIsUnknown(t *testing.T) {
	conf := tlsOf(t, 0, "m0")
	conf.NextProtos = []string{"http/1.1"}
	l, err := tls.Listen("tcp", "127.0.0.1:0", conf)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.ReadAtLeast(c, make([]byte, 4096), 100)
			c.Close()
		}
	}()
	m := apitest.New("n8n")
	d := serve(t, m.Agent("m1"), "m1")
	m.Lead(m.Agent("m0"), l.Addr().String())
	_, err = d.socket.Scale(t.Context(), api.ScaleRequest{Service: "n8n", Delta: 1})
	var re *api.ResponseError
	if !errors.As(err, &re) || re.Code != api.CodeUnknown {
		t.Errorf("scale: %v", err)
	}
	if _, err := d.socket.Events(t.Context(), 0); !errors.Is(err, api.ErrNoLeader) {
		t.Errorf("events: %v", err)
	}
}

// A frozen leader keeps its connections. Who asked it asks the next one; what
// became of a command is not known.
func TestFrozenLeader(t *testing.T) {
	conf := withProto(tlsOf(t, 0, "m0"), "http/1.1")
	l, err := tls.Listen("tcp", "127.0.0.1:0", conf)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked := make(chan net.Conn, 3)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.ReadAtLeast(c, make([]byte, 4096), 100)
			asked <- c // and no answer
		}
	}()
	m := apitest.New("n8n")
	d, next := serve(t, m.Agent("m1"), "m1"), serve(t, m.Agent("m2"), "m2")
	m.Lead(m.Agent("m0"), l.Addr().String())
	fails := make(chan error, 3)
	go func() {
		st, err := d.socket.Status(t.Context())
		if err == nil && (st.Leader == nil || st.Leader.Machine != "m2") {
			err = fmt.Errorf("leader in the status: %+v", st.Leader)
		}
		fails <- err
	}()
	go func() {
		_, err := d.socket.Events(t.Context(), 0)
		fails <- err
	}()
	go func() {
		_, err := d.socket.Scale(t.Context(), api.ScaleRequest{Service: "n8n", Delta: 1})
		var re *api.ResponseError
		if errors.As(err, &re) && re.Code == api.CodeUnknown && strings.Contains(re.Error(), "another machine leads now") {
			err = nil
		} else {
			err = fmt.Errorf("scale: %w", err)
		}
		fails <- err
	}()
	for range cap(asked) {
		defer (<-asked).Close()
	}
	m.Lead(next.agent, next.mesh)
	for range cap(fails) {
		if err := <-fails; err != nil {
			t.Error(err)
		}
	}
}

// misled takes another machine for the leader, whoever leads.
type misled struct {
	*apitest.Agent
	addr string
}

func (m *misled) Route() (bool, string, bool) { return false, m.addr, true }

func TestRequestsDoNotGoRound(t *testing.T) {
	m := apitest.New("n8n")
	a, b := &misled{Agent: m.Agent("ma")}, &misled{Agent: m.Agent("mb")}
	da, db := serve(t, a, "ma"), serve(t, b, "mb")
	a.addr, b.addr = db.mesh, da.mesh
	if _, err := da.socket.Scale(t.Context(), api.ScaleRequest{Service: "n8n", Delta: 1}); !errors.Is(err, api.ErrNoLeader) {
		t.Errorf("scale: %v", err)
	}
	if st, err := da.socket.Status(t.Context()); err != nil || st.Leader != nil {
		t.Errorf("status: %+v, %v", st, err)
	}
	a.addr = da.mesh // itself
	if _, err := da.socket.Events(t.Context(), 0); !errors.Is(err, api.ErrNoLeader) {
		t.Errorf("events: %v", err)
	}
}

func TestDoorsShowWhatTheyShould(t *testing.T) {
	_, ds := three(t)
	conf := tlsOf(t, 0, "m9")
	clients := map[string]*http.Client{
		"health": {},
		"socket": {Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", ds[0].path)
		}}},
		"mesh": {Transport: &http.Transport{TLSClientConfig: withProto(conf, "http/1.1")}},
	}
	base := map[string]string{"health": "http://" + ds[0].health, "socket": "http://agent", "mesh": "https://" + ds[0].mesh}
	for _, c := range []struct {
		path                 string
		health, socket, mesh int
	}{
		{api.PathHealth, 200, 200, 200},
		{api.PathMetrics, 200, 200, 200},
		{api.PathStatus, 404, 200, 200},
		{api.PathWhy + "n8n", 404, 200, 200},
		{api.PathWhy, 404, 404, 404},
		{api.PathEvents, 404, 200, 200},
		{api.PathScale, 404, 405, 405},
		{api.PathPropose, 404, 404, 405},
		{api.PathWindows, 404, 404, 200},
		{api.PathDrain, 404, 404, 405},
		{api.PathAdmit, 404, 404, 405},
		{"/", 404, 404, 404},
	} {
		for name, want := range map[string]int{"health": c.health, "socket": c.socket, "mesh": c.mesh} {
			resp, err := clients[name].Get(base[name] + c.path)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("GET %s on %s: %d, want %d: %.100s", c.path, name, resp.StatusCode, want, b)
			}
		}
		for _, cl := range clients {
			cl.CloseIdleConnections()
		}
	}
	b, err := ds[0].socket.Metrics(t.Context())
	if err != nil || !bytes.Contains(b, []byte(`flymesh_api_requests_total{code="404",door="health",path="other"}`)) {
		t.Errorf("metrics do not count: %v\n%s", err, b)
	}
}

func withProto(c *tls.Config, p ...string) *tls.Config {
	c = c.Clone()
	c.NextProtos = p
	return c
}

func TestDrainAndHealth(t *testing.T) {
	_, ds := three(t)
	ctx, d := t.Context(), ds[1]
	peer := api.NewMeshClient(d.mesh, tlsOf(t, 0, "m0"))
	d.agent.SetInFlight(2)
	res, err := peer.Drain(ctx, api.DrainRequest{Deadline: 30 * time.Millisecond})
	if err != nil || res.Done || res.InFlight != 2 {
		t.Errorf("drain with work in flight: %+v, %v", res, err)
	}
	if h, ready, err := d.socket.Health(ctx); err != nil || ready || h.State != "draining" {
		t.Errorf("health: %+v, ready %v, %v", h, ready, err)
	}
	go func() {
		time.Sleep(50 * time.Millisecond)
		d.agent.SetInFlight(0)
	}()
	if res, err = peer.Drain(ctx, api.DrainRequest{Deadline: 10 * time.Second}); err != nil || !res.Done {
		t.Errorf("drain: %+v, %v", res, err)
	}
	if _, err := peer.Drain(ctx, api.DrainRequest{Undo: true}); err != nil {
		t.Fatal(err)
	}
	if _, ready, err := d.socket.Health(ctx); err != nil || !ready {
		t.Errorf("not ready after the drain was taken back: %v", err)
	}
	if err := peer.Admit(ctx, api.AdmitRequest{Boot: "b7"}); err != nil || d.agent.Admitted() != "b7" {
		t.Errorf("admit: %v; admitted is %q", err, d.agent.Admitted())
	}
}

func TestSocketFile(t *testing.T) {
	m := apitest.New("n8n")
	d := serve(t, m.Agent("m1"), "m1")
	fi, err := os.Stat(d.path)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("socket: %v, %v", fi.Mode(), err)
	}
	again := func(path string) error {
		s, err := api.NewServer(api.Options{Backend: m.Agent("m2"), Socket: path})
		if err == nil {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			s.Run(ctx)
		}
		return err
	}
	if err := again(d.path); err == nil || !strings.Contains(err.Error(), "another agent answers") {
		t.Errorf("a second agent on the socket: %v", err)
	}
	if _, err := d.socket.Status(t.Context()); err != nil {
		t.Errorf("the first agent was disturbed: %v", err)
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(d.path); !os.IsNotExist(err) {
		t.Errorf("the socket is left behind: %v", err)
	}
	if left, _ := os.ReadDir(filepath.Dir(d.path)); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	// What a killed agent leaves.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if err := again(d.path); err != nil {
		t.Errorf("a stale socket: %v", err)
	}
	if err := os.WriteFile(d.path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := again(d.path); err == nil {
		t.Error("a file was taken for a socket")
	}
	if b, err := os.ReadFile(d.path); err != nil || string(b) != "precious" {
		t.Errorf("the file is now %q, %v", b, err)
	}
	if err := again("/tmp/" + strings.Repeat("x", 120)); err == nil || !strings.Contains(err.Error(), "at most 100") {
		t.Errorf("a path that is too long: %v", err)
	}
}
