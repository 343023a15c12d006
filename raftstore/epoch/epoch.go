// Package epoch is the record outside raft that says which cluster is the
// mesh, and the rule of who may found the next one. PURE.
//
// The record is a last-writer-wins register in the Fly metadata of the anchor
// app's machines; the highest epoch found wins. It has no compare-and-set, so
// safety does not come from the lease around a write but from the record: a
// cluster that it does not name any more is deposed.
package epoch

import "time"

// MetadataKey is the machine metadata key that holds the record as JSON.
const MetadataKey = "flymesh_epoch"

// Record names the cluster that is the mesh. The zero Record means that none
// was ever founded.
type Record struct {
	Epoch   uint64    `json:"epoch"`
	Cluster string    `json:"cluster"` // "<epoch>-<founder's boot ID>"
	Founder Voter     `json:"founder"`
	Voters  []Voter   `json:"voters"` // voters of this epoch, kept up to date by its leader
	At      time.Time `json:"at"`
}

// Voter is one voting incarnation of a machine's agent.
type Voter struct {
	App     string    `json:"app"`
	Machine string    `json:"machine"`
	Boot    string    `json:"boot"`
	BootAt  time.Time `json:"boot_at"`
	// Pending marks a voter that is about to be promoted or removed: the
	// cluster's configuration may hold it or not.
	Pending bool `json:"pending,omitempty"`
	// Durable marks a voter whose log is on a volume: it comes back from a stop.
	Durable bool `json:"durable,omitempty"`
}

// Fate is what is known of a recorded voter.
type Fate string

// The fates. Only Stopped, Destroyed, Rebooted and Replaced prove that the
// recorded incarnation can never vote again; of a durable one only Destroyed
// and Replaced do.
const (
	Unknown   Fate = "unknown"
	Running   Fate = "running"
	Suspended Fate = "suspended" // comes back with its memory: not dead
	Stopped   Fate = "stopped"
	Destroyed Fate = "destroyed"
	Rebooted  Fate = "rebooted" // the machine runs, but started after the recorded boot
	Replaced  Fate = "replaced" // the machine's own agent says that it is another server now
)
