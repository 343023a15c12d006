package leader_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	fly "github.com/superfly/fly-go"

	"flymesh/leader"
	"flymesh/leader/flyapi/flytest"
)

// What goes wrong besides in the newer random runs: others who use the API as
// they please, and an API that is wrong for minutes. It has a source of chance
// of its own, so that the seeds of the older runs stay what they were.

func (c *chaos) worse() {
	switch c.more.IntN(8) {
	case 0, 1:
		c.proxy()
	case 2:
		c.outage()
	case 3:
		c.unlisted()
	case 4:
		c.destroyed()
	case 5:
		c.changed()
	case 6:
		c.leased()
	case 7:
		c.unaware()
	}
}

// machine picks one; ok is false where there is none.
func (c *chaos) machine() (m flytest.MachineInfo, ok bool) {
	ms := c.machines()
	if len(ms) == 0 {
		return m, false
	}
	return ms[c.more.IntN(len(ms))], true
}

// proxy has a deploy give the machines to Fly Proxy, or take them back: it
// stops and starts them as it sees fit, and the mesh must not fight.
func (c *chaos) proxy() {
	c.proxied = !c.proxied
	var services []fly.MachineService
	every := time.Duration(0)
	if c.proxied {
		stop, start := pick(c.more, fly.MachineAutostopStop, fly.MachineAutostopSuspend), c.more.IntN(3) > 0
		services = []fly.MachineService{{Protocol: "tcp", InternalPort: 8080, Autostop: &stop, Autostart: &start}}
		every = 20*time.Second + time.Duration(c.more.IntN(100))*time.Second
		c.sum.proxies++
	}
	c.oracle.note("proxy: %v every %s", c.proxied, every)
	c.api.AutostopBy(appName, every, c.inFlight)
	c.oracle.deploying(flytest.Deploy{Strategy: pick(c.more, "rolling", "immediate", "bluegreen"), Timeout: 2 * time.Minute,
		Config: func(old fly.MachineConfig) fly.MachineConfig { old.Services = services; return old }}, c.sum)
}

// inFlight is the load as the proxy sees it: 20 requests are a machine's worth.
func (c *chaos) inFlight() map[string]int {
	ids := c.started()
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]int{"": 1}
	for _, id := range ids {
		out[id] = int(20 * c.load["n8n"] / float64(len(ids)))
	}
	return out
}

// owned takes every machine back from the proxy.
func (c *chaos) owned() {
	c.api.AutostopBy(appName, 0, nil)
	c.await("the machines to be the mesh's", time.Hour, func() bool {
		c.oracle.om.Lock()
		c.oracle.deploysN++
		c.oracle.om.Unlock()
		c.oracle.deployBy(flytest.Deploy{Strategy: "immediate", Timeout: 2 * time.Minute,
			Config: func(old fly.MachineConfig) fly.MachineConfig { old.Services = nil; return old }})
		time.Sleep(15 * time.Second) // until listings show it
		ms, err := c.person.List(context.Background(), appName)
		return err == nil && !slices.ContainsFunc(ms, func(m leader.Machine) bool { return m.Autostop || m.Autostart })
	})
}

// outage makes every call fail for minutes.
func (c *chaos) outage() {
	f := pick(c.more, flytest.Fault{Status: 429}, flytest.Fault{Status: 500}, flytest.Fault{Status: 502, Drop: "after"},
		flytest.Fault{Delay: flytest.Delay(40 * time.Second), Late: true}, flytest.Fault{Drop: "after"})
	c.sum.faults++
	c.oracle.note("for minutes: %s", f)
	c.fault(f)
	time.Sleep(time.Minute + time.Duration(c.more.IntN(300))*time.Second)
	c.api.ClearFaults()
}

// unlisted lets listings lack a machine for minutes.
func (c *chaos) unlisted() {
	if m, ok := c.machine(); ok {
		d := time.Duration(1+c.more.IntN(8)) * time.Minute
		c.oracle.note("listings lack %s (%s) for %s", m.ID, m.State, d)
		c.sum.odd++
		_ = c.api.Hide(m.ID, d) // a deploy may just have replaced it
	}
}

// destroyed is a person who destroys a machine, whatever it does.
func (c *chaos) destroyed() {
	if m, ok := c.machine(); ok && len(c.machines()) > 2 { // the last one is what others are copied from
		c.oracle.note("somebody destroys %s (%s)", m.ID, m.State)
		c.sum.odd++
		c.send(http.MethodDelete, "/"+m.ID+"?force=true", nil)
	}
}

// changed is a person who changes a machine's config, which restarts it.
func (c *chaos) changed() {
	if m, ok := c.machine(); ok {
		c.oracle.note("somebody changes %s (%s)", m.ID, m.State)
		c.sum.odd++
		cfg := fly.MachineConfig{Image: "n8n", Env: map[string]string{"CHANGED": time.Now().String()},
			Metadata: map[string]string{"fly_process_group": "app", "fly_platform_version": "v2"}}
		c.oracle.started()
		c.send(http.MethodPost, "/"+m.ID, map[string]any{"config": cfg})
	}
}

// leased is somebody who takes a machine's lease and does not give it back.
func (c *chaos) leased() {
	if m, ok := c.machine(); ok {
		c.oracle.note("somebody leases %s (%s)", m.ID, m.State)
		c.sum.odd++
		nonce, err := c.api.HoldLease(appName, m.ID, "somebody@example.com", 24*time.Hour)
		if err == nil {
			c.oracle.later(time.Duration(1+c.more.IntN(20))*time.Minute, func() { _ = c.api.DropLease(appName, m.ID, nonce) }) // it may be gone
		}
	}
}

// unaware elects another leader while the old one goes on as if nothing had
// happened, until it hears of it or is elected again.
func (c *chaos) unaware() {
	c.sum.leaders++
	wake := c.raft.unaware()
	c.oracle.note("the leader stands still")
	c.lead(fmt.Sprintf("v%d", c.more.IntN(3)))
	c.oracle.later(time.Duration(200+c.more.IntN(4000))*time.Millisecond, wake) // raft's leader lease ends within a second or two
}

// send is a call that fly-go has no method for, or not as a person makes it.
func (c *chaos) send(method, path string, in any) {
	body, err := json.Marshal(in)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, c.api.URL()+"/v1/apps/"+appName+"/machines"+path, bytes.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	r.Header.Set("User-Agent", "person")
	if resp, err := c.api.Transport().RoundTrip(r); err == nil { // an armed fault may hit it
		resp.Body.Close()
	}
}
