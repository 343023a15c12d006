package agent

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"flymesh/agent/api"
	"flymesh/probes/redis/redistest"
)

const redisMeshFile = `
[mesh]
name = "m"
report_every = "200ms"
profile = "fast"
discover = ["api"]
[service.redis]
app = "m-voters"
kind = "redis"
vote = true
pinned = true
baseline = 3
[service.redis.redis]
failover = "manual"
[[service.redis.probe]]
type = "redis"
addr = "${FLY_PRIVATE_IP}:6379"
`

// TestRedisInAMesh: three real agents, each beside a real Redis. A person moves
// the primary, then its agent dies and comes back.
func TestRedisInAMesh(t *testing.T) {
	t.Parallel()
	redistest.Path(t)
	m := newMeshOf(t, redisMeshFile)
	at := map[string]*redistest.Server{}
	for _, i := range m.server.Machines() {
		at[i.ID] = redistest.StartAt(t, net.JoinHostPort(i.PrivateIP, "6379"), standby...)
	}
	// roles waits for one primary and two linked replicas in the status.
	roles := func() (primary string) {
		m.await("one primary and two linked replicas", 60*time.Second, func() bool {
			st, ok := ask(m, func(ctx context.Context, c *api.Client) (api.Status, error) { return c.Status(ctx) })
			linked := 0
			primary = ""
			for _, x := range st.Machines {
				switch r := x.Replication; {
				case r == nil:
				case !r.Replica && x.Pinned:
					primary = x.ID
				case r.Replica && r.Linked:
					linked++
				}
			}
			return ok && primary != "" && linked == 2
		})
		return primary
	}
	old := roles()
	var addrs []string
	for _, s := range at {
		addrs = append(addrs, s.Addr)
	}
	w := redistest.Poll(t, addrs...)
	m.await("writes", 10*time.Second, func() bool { return w.By(at[old].Addr) > 50 })
	p, ok := ask(m, func(ctx context.Context, c *api.Client) (api.Promoted, error) {
		return c.PromoteRedis(ctx, api.PromoteRequest{Reason: "test", By: "ada"})
	})
	if !ok || p.From != old || !strings.Contains(p.Text, "none is lost") {
		t.Fatalf("promote: %+v, %v", p, ok)
	}
	m.await("writes at the new primary", 30*time.Second, func() bool { return w.By(at[p.To].Addr) > 50 })
	gap, taken, lost := w.Turn(t, at[old].Addr, at[p.To].Addr)
	t.Logf("promoted: no writes for %s, %d writes taken before it, %d lost", gap.Round(time.Millisecond), taken, lost)
	if lost != 0 || roles() != p.To {
		t.Errorf("%d writes lost; primary %s, want %s", lost, roles(), p.To)
	}
	for id := range at {
		if id != old && id != p.To && w.By(at[id].Addr) > 0 {
			t.Errorf("a third Redis took %d writes", w.By(at[id].Addr))
		}
	}

	// The agent of the primary dies: its Redis goes on, and so does the lock.
	w = redistest.Poll(t, addrs...)
	if err := m.server.Kill(p.To); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	if got := roles(); got != p.To {
		t.Errorf("primary %s after the death of its agent, want %s", got, p.To)
	}
	if w.By(at[p.To].Addr) == 0 || w.By(at[old].Addr) > 0 {
		t.Errorf("writes: %d at the primary, %d at the old one", w.By(at[p.To].Addr), w.By(at[old].Addr))
	}

	// Any machine answers what fills the memory, and the pin does not move by hand.
	if _, ok := ask(m, func(ctx context.Context, c *api.Client) ([]api.RedisAnswer, error) {
		x, err := c.Redis(ctx, api.RedisRequest{Pressure: true})
		if err == nil && (len(x) != 1 || x[0].Machine != p.To || x[0].Pressure.Keys < 50) {
			t.Errorf("pressure: %+v", x)
		}
		return x, err
	}); !ok {
		t.Error("nobody says what fills the memory")
	}
	if _, ok := ask(m, func(ctx context.Context, c *api.Client) (api.Accepted, error) {
		return c.Pin(ctx, api.PinRequest{Service: "redis", Machine: old, By: "ada"})
	}); ok {
		t.Error("the pin of a Redis moves without its data")
	}
}
