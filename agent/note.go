package agent

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"flymesh/agent/supervise"
)

// note is what one mesh half leaves for the next on the same machine: whether
// the app was ready. It counts only for the same life of the same app; the
// root filesystem that it lies on ends with the machine's.
type note struct {
	path string // empty: nobody supervises, and nothing outlives this process
	now  noted
	have bool // now is what the file says
}

type noted struct {
	Supervisor int  `json:"supervisor_pid"`
	App        int  `json:"app_pid"`
	Ready      bool `json:"ready"`
}

// noteOf reads the note beside the socket.
func noteOf(socket string, child *supervise.Child) note {
	if child == nil || socket == "" {
		return note{}
	}
	n := note{path: filepath.Join(filepath.Dir(socket), "readiness.json")}
	b, err := os.ReadFile(n.path)
	var was noted
	self := noted{Supervisor: os.Getppid(), App: child.AppPID()}
	if err == nil && json.Unmarshal(b, &was) == nil && self.App > 0 && was.Supervisor == self.Supervisor && was.App == self.App {
		n.now, n.have = was, true
		return n
	}
	n.now = self
	return n
}

// ready says whether the app was ready when the last mesh half ended.
func (n *note) ready() bool { return n.have && n.now.Ready }

// wants says whether the file should say something else.
func (n *note) wants(ready bool) bool {
	return n.path != "" && (!n.have || n.now.Ready != ready)
}

// write replaces the file.
func (n *note) write(ready bool) error {
	n.now.Ready, n.have = ready, true // tried once for each change
	b, err := json.Marshal(n.now)
	if err != nil {
		return fmt.Errorf("encode note: %w", err)
	}
	tmp := n.path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("write note: %w", err)
	}
	return os.Rename(tmp, n.path)
}
