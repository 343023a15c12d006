package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	fly "github.com/superfly/fly-go"

	"flymesh/agent/api"
	"flymesh/agent/identity"
	"flymesh/cmd/agentctl/emulator"
	"flymesh/leader/flyapi/flytest"
)

// nsConfig is a mesh of three machines that vote.
var nsConfig = config[:strings.Index(config, "[service.site]")]

// nsFleet is a fleet on a fabric.
type nsFleet struct {
	server *flytest.Server
	dir    string
}

// startNS starts the machines of nsConfig on a fabric.
func startNS(t *testing.T, f *fabric) *nsFleet {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "mesh.toml")
	if err := os.WriteFile(path, []byte(nsConfig), 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	procs, err := flytest.NewProcesses(flytest.ProcessOptions{Dir: dir, NoCgroups: true})
	if err != nil {
		t.Fatal(err)
	}
	tokens, secrets := map[string]string{}, map[string]map[string]string{}
	env := map[string]string{"FLYMESH_SECRET": identity.NewSecret()}
	for _, s := range services[:3] {
		app := "e2e-" + s
		tokens[app] = identity.NewSecret()
		env[identity.TokenEnv(app)] = tokens[app]
		secrets[app] = env
	}
	n := &nsFleet{dir: dir}
	if n.server, err = flytest.New(flytest.Options{Launcher: machines{procs, f}, Tokens: tokens, Secrets: secrets}); err != nil {
		t.Fatal(err)
	}
	canListen(t, f.host)
	if err := n.server.Listen(net.JoinHostPort(f.host, "0")); err != nil {
		t.Fatal(err)
	}
	for _, s := range services[:3] {
		signal := "SIGTERM"
		_, err := n.server.Seed(flytest.Spec{App: "e2e-" + s, Start: true, Config: fly.MachineConfig{
			Image:      "registry.fly.io/e2e:1",
			Init:       fly.MachineInit{Exec: []string{agentBinary(t), "run", "--config", path, "--", self, "demo-app", "--kind", "web", "--listen", "[$FLY_PRIVATE_IP]:8080"}},
			StopConfig: &fly.StopConfig{Signal: &signal}, Guest: &fly.MachineGuest{CPUKind: "shared", CPUs: 1, MemoryMB: 256},
		}})
		if err != nil {
			t.Fatal(err)
		}
	}
	return n
}

func (n *nsFleet) Machines() (out []emulator.Machine) {
	for _, i := range n.server.Machines() {
		out = append(out, emulator.Machine{MachineInfo: i, Service: strings.TrimPrefix(i.App, "e2e-"), Addr: net.JoinHostPort(i.PrivateIP, "8080")})
	}
	return out
}

func (n *nsFleet) Server() *flytest.Server     { return n.server }
func (n *nsFleet) Requests() []flytest.Request { return n.server.Requests() }
func (n *nsFleet) State() string               { return n.dir }
func (n *nsFleet) SecretFile() string          { return "" }
func (n *nsFleet) App(service string) string   { return "e2e-" + service }
func (n *nsFleet) Proxy(string) string         { return "" }
func (n *nsFleet) Close() error                { return n.server.Close() }

// TestPartitions: machines with networks as on Fly, cut from each other in
// one direction or both. Whoever is in the minority does nothing.
func TestPartitions(t *testing.T) {
	long(t)
	f := newFabric(t)
	wire := f.sniff(t)
	m := watched(t, startNS(t, f))
	m.settle(60 * time.Second)
	for i, tc := range []struct {
		name string
		cut  func(t *testing.T, leader int, others []int)
	}{
		{"leader's packets do not reach its followers", func(t *testing.T, l int, others []int) {
			for _, o := range others {
				f.cut(t, l, o)
			}
		}},
		{"leader alone, with the API", func(t *testing.T, l int, others []int) {
			for _, o := range others {
				f.cut(t, l, o)
				f.cut(t, o, l)
			}
		}},
		{"leader alone, without the API", func(t *testing.T, l int, others []int) {
			for _, o := range append(others, 0) {
				f.cut(t, l, o)
				f.cut(t, o, l)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m.t = t
			before := m.settle(60 * time.Second)
			history := m.events()
			x, _ := m.pick("leader", before.Leader.Machine)
			var others []int
			for _, y := range m.others(x) {
				others = append(others, f.place(y.ID))
			}
			// One machine more is due at the moment of the cut.
			grown := services[i]
			if _, err := client(m.others(x)[0]).Scale(t.Context(), api.ScaleRequest{Service: grown, Delta: 1, Reason: "e2e", By: "e2e"}); err != nil {
				t.Fatal(err)
			}
			at, calls := time.Now(), len(m.Requests())
			tc.cut(t, f.place(x.ID), others)
			m.until("the others have a leader", 30*time.Second, func() bool {
				all, errs := ask(t.Context(), m.others(x), 3*time.Second, status)
				for i, s := range all {
					if errs[i] != nil || s.Leader == nil || s.Leader.Machine == x.ID {
						return false
					}
				}
				return true
			})
			gap := m.watch.gap(at)
			// The one that is alone is told to scale; nobody else is. It must not.
			quiet := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
			_, err := client(x).Scale(ctx, api.ScaleRequest{Service: "api", Delta: 1, Reason: "e2e", By: "e2e"})
			cancel()
			if err == nil {
				t.Error("the minority accepts a command")
			}
			if s, err := client(x).Status(t.Context()); err == nil && s.Leader != nil && s.Leader.Machine == x.ID {
				t.Error("the minority names itself leader")
			} else if err != nil && !errors.Is(err, context.DeadlineExceeded) {
				t.Logf("status of the minority: %v", err)
			}
			time.Sleep(3 * time.Second)
			for _, r := range m.Requests()[calls:] {
				if r.From == x.PrivateIP && r.Method != "GET" && r.Committed && r.At.After(quiet) {
					t.Errorf("the minority has sent %s %s", r.Method, r.Path)
				}
			}
			f.heal(t)
			after := m.settleWith(90*time.Second, func(s api.Status) string { return sized(s, grown, 2) })
			m.mustKeep(history)
			m.actedOnce("e2e-"+grown, 1)
			table.add(row{scenario: "partition: " + tc.name, gap: gap, from: before.Epoch, to: after.Epoch, note: "+1 on the way: " + m.acts("e2e-"+grown)})
		})
	}
	n, largest, fragments := wire.seen()
	if n < 100 || largest > 1280 || fragments > 0 {
		t.Errorf("%d gossip datagrams, the largest IPv6 packet has %d bytes, %d fragments", n, largest, fragments)
	}
	table.add(row{scenario: "gossip on the wire", note: fmt.Sprintf("%d datagrams, largest IPv6 packet %d bytes, %d fragments", n, largest, fragments)})
}
