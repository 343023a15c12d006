package raftstore

import (
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"flymesh/raftstore/raftnet"
	"flymesh/raftstore/stranger/logtest"
)

type noPeers struct{}

func (noPeers) Peers() []Peer { return nil }

// lone runs one store that has founded epoch 1 by itself; edit changes its options.
func lone(t *testing.T, n *raftnet.Net, log io.Writer, edit func(*Options)) (*Store, func()) {
	o := Options{
		Mesh: "mesh", Founder: true, Network: n.Listen("m1:1"), Peers: noPeers{}, Logger: slog.New(slog.NewTextHandler(log, nil)),
		Self: Self{Machine: "m1", Boot: "b1", Addr: "m1:1", BootAt: time.Now(), Eligible: true},
	}
	if edit != nil {
		edit(&o)
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return s, func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	}
}

// TestStrangersAreRefused: whoever is not meant is refused, which is logged
// once and leaves nothing behind.
func TestStrangersAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, log := raftnet.New(0), &logtest.Log{}
		s, stop := lone(t, n, log, nil)
		time.Sleep(10 * time.Second)
		in := s.member()
		if s.leading() == nil {
			t.Fatal("does not lead")
		}
		h := n.Listen("stranger:1")
		good := request{kind: kindRaft, mesh: "mesh", epoch: 1, cluster: in.cluster, target: in.server, own: "m2.b2"}
		// talk returns the answer to a request; replay keeps the request's own nonce.
		talk := func(r request, replay bool) (reply, error) {
			c, err := h.Dial(context.Background(), "m1:1")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(5 * time.Second))
			var hello [len(magic) + nonceLen]byte
			if _, err := io.ReadFull(c, hello[:]); err != nil {
				t.Fatal(err)
			}
			if !replay {
				copy(r.nonce[:], hello[len(magic):])
			}
			b, err := r.encode()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write(b); err != nil {
				return reply{}, err
			}
			return readReply(c)
		}
		if a, err := talk(good, false); err != nil || a.refusal != accepted {
			t.Fatalf("a good handshake: %+v, %v", a, err)
		}
		edit := func(f func(*request)) request {
			r := good
			f(&r)
			return r
		}
		for _, tc := range []struct {
			want   refusal
			r      request
			replay bool
		}{
			{otherMesh, edit(func(r *request) { r.mesh = "other" }), false},
			{otherTarget, edit(func(r *request) { r.target = "m1.b0" }), false},
			{otherCluster, edit(func(r *request) { r.cluster = "1-other" }), false},
			{oldEpoch, edit(func(r *request) { r.epoch = 0 }), false},
			{badNonce, good, true},
			{notLeading, edit(func(r *request) { r.kind, r.target = kindLeave, "m3.b3" }), false},
		} {
			for range 50 {
				if a, err := talk(tc.r, tc.replay); err != nil || a.refusal != tc.want {
					t.Errorf("got %+v, %v, want %s", a, err, tc.want)
				}
			}
			if got := log.Count("reason=" + string(tc.want)); got != 1 {
				t.Errorf("%s: logged %d times", tc.want, got)
			}
		}

		synctest.Wait()
		before := runtime.NumGoroutine()
		r := rand.New(rand.NewPCG(1, 2))
		for range 10_000 {
			c, err := h.Dial(context.Background(), "m1:1")
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, r.IntN(200))
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			c.SetDeadline(time.Now().Add(time.Second))
			go io.Copy(io.Discard, c)
			c.Write(b)
			c.Close()
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if after := runtime.NumGoroutine(); after > before+10 {
			t.Errorf("%d goroutines before, %d after", before, after)
		}
		if s.leading() == nil || s.member() != in {
			t.Error("strangers ended the leadership")
		}
		stop()
		time.Sleep(10 * time.Minute)
	})
}

// TestSilentStrangers: connections that say nothing are closed, and do not
// keep others out for longer than a handshake may take.
func TestSilentStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := raftnet.New(0)
		s, stop := lone(t, n, io.Discard, nil)
		time.Sleep(10 * time.Second)
		h := n.Listen("stranger:1")
		var conns []net.Conn
		for range 3 * maxOpening {
			if c, err := h.Dial(context.Background(), "m1:1"); err == nil {
				conns = append(conns, c)
			}
		}
		time.Sleep(handshakeTimeout + time.Second)
		a := newAsker(func(ctx context.Context, hostport string) (net.Conn, error) {
			c, err := h.Dial(ctx, hostport)
			if err == nil {
				err = s.greet(c, request{kind: kindQuery, own: "m2.b2"})
			}
			return c, err
		})
		if v, err := a.ask(context.Background(), "m1:1"); err != nil || !v.Leading {
			t.Errorf("after the strangers: %+v, %v", v, err)
		}
		a.close()
		for _, c := range conns {
			c.Close()
		}
		stop()
		time.Sleep(10 * time.Minute)
	})
}

// TestRestartInPlace: the watchdogs' restart keeps log, vote and server ID.
func TestRestartInPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stop := lone(t, raftnet.New(0), io.Discard, nil)
		term := <-s.Terms()
		for i := range 600 { // past a snapshot
			if _, err := s.Propose(t.Context(), scale(i)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * time.Minute)
		id, index := s.Status().Server, s.State().Index
		s.restart(t.Context(), s.member(), "test")
		if s.State().Index != index {
			t.Errorf("the state went back from %d to %d", index, s.State().Index)
		}
		if term.Context.Err() == nil {
			t.Error("the old term goes on")
		}
		again := <-s.Terms()
		if got := s.State().Service("register").Manual; again.Number <= term.Number || s.Status().Server != id || got == nil || got.Target != 599 {
			t.Errorf("after the restart: term %d, server %s, register %+v", again.Number, s.Status().Server, got)
		}
		if _, err := s.Propose(t.Context(), scale(1000)); err != nil {
			t.Errorf("propose after the restart: %v", err)
		}
		stop()
		time.Sleep(10 * time.Minute)
	})
}
