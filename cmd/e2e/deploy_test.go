package e2e

import (
	"fmt"
	"sync"
	"testing"
	"time"

	fly "github.com/superfly/fly-go"

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
			var wg sync.WaitGroup
			errs := make([]error, len(services))
			for i, s := range services {
				wg.Go(func() {
					errs[i] = m.Server().Deploy(t.Context(), m.App(s), flytest.Deploy{Strategy: strategy, Timeout: time.Minute, Config: func(c fly.MachineConfig) fly.MachineConfig {
						c.Image = "registry.fly.io/" + m.App(s) + ":" + strategy
						return c
					}})
				})
			}
			wg.Wait()
			for _, err := range errs {
				if err != nil {
					t.Error(err)
				}
			}
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
