package raftstore

import (
	"time"

	"github.com/hashicorp/raft"

	"flymesh/raftstore/state"
)

func scale(n int) state.Command {
	return state.Command{At: time.Now(), By: "test", Scale: &state.Scale{Service: "register", Target: n}}
}

// Transport is what a store gives to raft, over any network transport.
func Transport(t *raft.NetworkTransport) raft.Transport { return transport{t} }
