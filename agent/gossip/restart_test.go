package gossip

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"
)

// TestRestartWithoutSeeds: an agent that nobody tells where the others are
// starts again at once, as after kill -9, so that nobody has missed it. It
// knows all the others again before long, and is heard.
func TestRestartWithoutSeeds(t *testing.T) {
	life := func(boot string) *Gossip {
		g, err := Open(Options{
			Meta: Meta{Machine: "m34", Boot: boot, BootAt: time.Now(), Role: Agent},
			Bind: "127.0.0.34", Port: 7931, Loopback: true, Label: "flymesh-test",
			Keys: func(time.Time) [][]byte { return key(1) }, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	first := life("b1") // without Run, so that it can end without a word
	var others []*Gossip
	for last := byte(31); last < 34; last++ {
		g, _ := real(t, last, func(o *Options) {
			o.Port = 7931
			o.Seeds = func(context.Context) []string {
				return []string{"127.0.0.31", "127.0.0.32", "127.0.0.33", "127.0.0.34"}
			}
		})
		others = append(others, g)
	}
	for i, g := range append(others, first) {
		poll(t, fmt.Sprintf("agent %d knows all", i), func() bool { return living(g) == 4 })
	}
	if err := first.list.Shutdown(); err != nil {
		t.Fatal(err)
	}
	again := life("b2")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- again.Run(ctx) }()
	defer func() { cancel(); <-done }()
	began := time.Now()
	poll(t, "the one that is back knows all", func() bool { return living(again) == 4 })
	poll(t, "the others know that it is back", func() bool {
		for _, g := range others {
			for _, m := range g.Members() {
				if m.Machine == "m34" && (m.Boot != "b2" || !m.Alive) {
					return false
				}
			}
		}
		return true
	})
	t.Logf("back after %s", time.Since(began).Round(time.Millisecond))
}
