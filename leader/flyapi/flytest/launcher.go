package flytest

import (
	"context"
	"net/http"
	"time"

	fly "github.com/superfly/fly-go"
)

// Launcher is what the emulator runs machines on. Its methods are called from
// many goroutines, but never two for one machine at a time.
type Launcher interface {
	// Address returns the private address of a new machine.
	Address(id string) string
	// Start boots a machine and returns once its main process runs.
	Start(ctx context.Context, b Boot) (Instance, error)
	// Wipe empties the root filesystem of a machine that does not run.
	Wipe(id string) error
	// Remove forgets a destroyed machine and all that it left.
	Remove(id string) error
	// Accounting says how CPU is limited and measured: cgroup-v1, cgroup-v2, process-tree or none.
	Accounting() string
	// Close ends every running instance and removes what the launcher made.
	Close() error
}

// Instance is one run of one machine, from boot to end.
type Instance interface {
	// Stop sends the signal to the main process, kills what is left after the
	// timeout, and returns when nothing runs any more.
	Stop(signal string, timeout time.Duration)
	// Kill ends everything at once and returns when nothing runs any more.
	Kill()
	// Signal sends a signal to the main process.
	Signal(signal string) error
	// Freeze stops everything in its tracks, Thaw lets it go on.
	Freeze() error
	Thaw() error
	// Done is closed when nothing of the instance runs any more.
	Done() <-chan struct{}
	// Exit tells how the main process ended; valid once Done is closed.
	Exit() Exit
	// Processes lists what runs.
	Processes() []fly.ProcessStat
	// Details describes the instance for people and tests. It must not block.
	Details() Details
}

// Boot is what a machine is booted with.
type Boot struct {
	ID         string
	App        string
	Group      string
	Name       string
	Region     string
	InstanceID string
	PrivateIP  string
	Env        map[string]string  // secrets, config.env and FLY_*
	Config     *fly.MachineConfig // not to be changed
	API        http.Handler       // what the machine's /.fly/api answers
}

// Exit is how a main process ended.
type Exit struct {
	Code   int
	Signal int // 0: it ended by itself
}

// Failed reports whether the restart policy on-failure applies.
func (e Exit) Failed() bool { return e.Code != 0 || e.Signal != 0 }

// Details describes a running instance.
type Details struct {
	PID       int     `json:"pid,omitempty"`       // of the main process
	Rootfs    string  `json:"rootfs,omitempty"`    // directory
	Socket    string  `json:"socket,omitempty"`    // FLYMESH_SOCKET of the machine
	API       string  `json:"api,omitempty"`       // /.fly/api of the machine
	Log       string  `json:"log,omitempty"`       // file with stdout and stderr
	Allowance float64 `json:"allowance,omitempty"` // cores that the machine may use
	Cgroup    string  `json:"cgroup,omitempty"`    // directory of its cpu cgroup; empty: none
}
