package e2e

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	fly "github.com/superfly/fly-go"

	"flymesh/agent/api"
	"flymesh/agent/identity"
	"flymesh/leader/flyapi/flytest"
)

// TestDeploys: every app gets a new release at the same time, by each strategy.
func TestDeploys(t *testing.T) {
	long(t)
	m := newMesh(t, config)
	for _, strategy := range []string{"rolling", "bluegreen", "immediate"} {
		t.Run(strategy, func(t *testing.T) {
			m.t = t
			before := m.settle(10 * time.Second)
			old := map[string]bool{}
			for _, x := range m.running() {
				old[x.ID] = true
			}
			routed := load(t, m.routed()...)
			at := time.Now()
			m.deployAll(strategy, func(app string, c *fly.MachineConfig) { c.Image = "registry.fly.io/" + app + ":" + strategy })
			took := time.Since(at)
			after := m.settle(120 * time.Second)
			asked, failed, causes := routed()
			for _, s := range services {
				if n := len(m.of(s)); n != 1 {
					t.Errorf("%s has %d machines", s, n)
				}
				m.actedOnce(m.App(s), 0)
			}
			for _, x := range m.running() {
				if old[x.ID] != (strategy != "bluegreen") {
					t.Errorf("machine %s of %s: old %t", x.ID, x.Service, old[x.ID])
				}
			}
			if strategy == "bluegreen" && failed > asked/10 {
				t.Errorf("%d of %d requests failed during a blue-green deploy: %v", failed, asked, causes)
			}
			table.add(row{scenario: "deploy all apps, " + strategy, gap: m.watch.gap(at), from: before.Epoch, to: after.Epoch, asked: asked, failed: failed,
				note: fmt.Sprintf("the deploys took %.0f s; requests went through the proxy", took.Seconds())})
		})
	}
}

// deployAll deploys every app at the same time.
func (m *mesh) deployAll(strategy string, change func(app string, c *fly.MachineConfig)) {
	m.t.Helper()
	var wg sync.WaitGroup
	errs := make([]error, len(services))
	for i, s := range services {
		wg.Go(func() {
			errs[i] = m.Server().Deploy(m.t.Context(), m.App(s), flytest.Deploy{Strategy: strategy, Timeout: time.Minute, Config: func(c fly.MachineConfig) fly.MachineConfig {
				change(m.App(s), &c)
				return c
			}})
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			m.t.Error(err)
		}
	}
}

// TestRotateSecret gives the mesh another secret in three deploys of all apps;
// after each of them every agent hears every other, and in the end the old
// secret opens nothing.
func TestRotateSecret(t *testing.T) {
	long(t)
	m := newMesh(t, config)
	before := m.settle(10 * time.Second)
	b, err := os.ReadFile(m.SecretFile())
	if err != nil {
		t.Fatal(err)
	}
	was, next := strings.TrimSpace(string(b)), identity.NewSecret()
	at := time.Now()
	var after api.Status
	for _, secret := range []string{was + "," + next, next + "," + was, next} {
		m.deployAll("rolling", func(_ string, c *fly.MachineConfig) {
			c.Env = map[string]string{"FLYMESH_SECRET": secret}
		})
		after = m.settle(120 * time.Second)
	}
	for _, x := range m.running() {
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", m.procs(x).mesh))
		if err != nil || strings.Contains(string(env), was) {
			t.Errorf("machine %s still has the old secret (%v)", x.ID, err)
		}
	}
	table.add(row{scenario: "rotate the secret: three deploys of all apps", gap: m.watch.gap(at), from: before.Epoch, to: after.Epoch})
}
