package main

import (
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"flymesh/agent/api/apitest"
	"flymesh/agent/redis"
	proberedis "flymesh/probes/redis"
	"flymesh/probes/redis/redistest"
)

// TestRedisScripts runs the commands of Redis against a real one that holds
// chats and a queue of 20 jobs, from an agent beside it and from another.
func TestRedisScripts(t *testing.T) {
	server := redistest.Start(t, "--maxmemory", "5632kb")
	c := server.Client(t)
	redistest.Enqueue(t, c, "bull:jobs", 20, 100, time.Now())
	for _, k := range strings.Fields("chat:ada chat:bob chat:eve") {
		if err := c.LPush(t.Context(), k, strings.Repeat("x", 1_000_000)).Err(); err != nil {
			t.Fatal(err)
		}
	}
	c.Set(t.Context(), "session:1", "x", time.Hour)
	redistest.Age(t, c, "chat:*", 2*time.Hour)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/redis",
		Setup: func(e *testscript.Env) error {
			m := &mesh{apitest.New("redis"), map[string]*served{}}
			m.Agent("redis-0").ServeRedis(redis.New(proberedis.Server{Addr: server.Addr}, server.Addr, nil))
			e.Values[meshKey{}] = m
			e.Defer(func() {
				if err := m.stop(); err != nil {
					t.Error(err)
				}
			})
			e.Setenv("USER", "ada")
			e.Setenv("SUDO_USER", "")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"mesh": cmdMesh, "exits": cmdExits},
	})
	if wait, jobs := server.CLI(t, "LLEN", "bull:jobs:wait"), server.CLI(t, "EXISTS", "bull:jobs:1", "bull:jobs:20"); wait != "20" || jobs != "2" {
		t.Errorf("after all of it %s jobs wait, %s of 2 are there", wait, jobs)
	}
}
