package raftstore

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"context"
	"net"

	"flymesh/raftstore/raftnet"
)

// FuzzHandshake feeds both decoders: no panic, nothing large allocated, and
// what decodes encodes to the same bytes.
func FuzzHandshake(f *testing.F) {
	r := request{kind: kindRaft, epoch: 3, mesh: "mesh", cluster: "3-b", target: "m1.b1", own: "m2.b2.1"}
	good, err := r.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(append(bytes.Clone(good), 0))
	f.Add([]byte{0xff, 0xff})
	f.Add(reply{otherCluster, 9, "9-x"}.encode())
	f.Add([]byte(`{"machine":"m1","server":"m1.b"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := readRequest(bytes.NewReader(b)); err == nil {
			again, err := r.encode()
			if err != nil {
				t.Fatalf("encode what was decoded: %v", err)
			}
			if n := 2 + int(binary.BigEndian.Uint16(b)); !bytes.Equal(again, b[:n]) {
				t.Fatalf("decoded %x encodes to %x", b[:n], again)
			}
		}
		if a, err := readReply(bytes.NewReader(b)); err == nil {
			if again := a.encode(); !bytes.Equal(again, b[:len(again)]) {
				t.Fatalf("reply %x encodes to %x", b, again)
			}
		}
		if v, err := decodeSight(b); err == nil && machineOf(v.Server) != v.Machine {
			t.Fatalf("sight of %q says it is %q", v.Machine, v.Server)
		}
	})
}

func TestHandshakeRoundTrip(t *testing.T) {
	want := request{kind: kindLeave, nonce: [nonceLen]byte{1, 2}, epoch: 1 << 60, mesh: "m", target: strings.Repeat("x", maxField), own: "o"}
	b, err := want.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := readRequest(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(request{})); d != "" {
		t.Error(d)
	}
	want.own = strings.Repeat("x", maxField+1)
	if _, err := want.encode(); err == nil {
		t.Error("a field that is too long was encoded")
	}
}

// TestHeartbeatsAreNotAsynchronous: raft hands its transport a function that
// handles heartbeats beside the main loop. The plain transport calls it; ours
// sends them to the main loop.
func TestHeartbeatsAreNotAsynchronous(t *testing.T) {
	for _, plain := range []bool{true, false} {
		n := raftnet.New(0)
		dial := func(h *raftnet.Host) func(context.Context, string, string) (net.Conn, error) {
			return func(ctx context.Context, hostport, _ string) (net.Conn, error) { return h.Dial(ctx, hostport) }
		}
		ha, hb := n.Listen("a"), n.Listen("b")
		sa, sb := newStream(addressOf("a", "a.1"), dial(ha)), newStream(addressOf("b", "b.1"), dial(hb))
		go func() {
			for {
				c, err := hb.Accept()
				if err != nil {
					return
				}
				sb.deliver(c, "a.1")
			}
		}()
		from, to := newTransport(sa, hclog.NewNullLogger()), newTransport(sb, hclog.NewNullLogger())
		beside := make(chan bool, 1)
		handler := func(rpc raft.RPC) {
			beside <- true
			rpc.Respond(&raft.AppendEntriesResponse{}, nil)
		}
		if plain {
			to.NetworkTransport.SetHeartbeatHandler(handler)
		} else {
			to.SetHeartbeatHandler(handler)
		}
		go func() {
			select {
			case rpc := <-to.Consumer():
				beside <- false
				rpc.Respond(&raft.AppendEntriesResponse{}, nil)
			case <-time.After(5 * time.Second):
			}
		}()
		beat := &raft.AppendEntriesRequest{Term: 1, RPCHeader: raft.RPCHeader{Addr: []byte("a")}}
		if err := from.AppendEntries("b.1", addressOf("b", "b.1"), beat, &raft.AppendEntriesResponse{}); err != nil {
			t.Fatal(err)
		}
		if got := <-beside; got != plain {
			t.Errorf("plain transport %v: heartbeat handled beside the main loop: %v", plain, got)
		}
		from.Close()
		to.Close()
		ha.Close()
		hb.Close()
	}
}
