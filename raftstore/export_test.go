package raftstore

import (
	"time"

	"flymesh/raftstore/state"
)

func scale(n int) state.Command {
	return state.Command{At: time.Now(), By: "test", Scale: &state.Scale{Service: "register", Target: n}}
}
