package emulator

import "flymesh/leader/flyapi/flytest"

// Server is the emulated Machines API itself: its faults, deploys and hosts.
func (e *Emulator) Server() *flytest.Server { return e.server }
