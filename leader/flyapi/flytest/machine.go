package flytest

import (
	"maps"
	"slices"
	"time"

	fly "github.com/superfly/fly-go"
)

// States that fly-go has no constant for.
const (
	stateStarting   = "starting"
	stateStopping   = "stopping"
	stateSuspending = "suspending"
	stateRestarting = "restarting"
	stateReplacing  = "replacing"
)

// machine is one machine of the fleet. The fleet's lock guards it. A config is
// never changed in place, so that a view may share it.
type machine struct {
	view
	app   string
	group string

	turn     chan struct{} // holds one token while the launcher works on the machine
	lease    *lease
	inst     Instance  // of the current run, nil without one
	gen      int       // grows with each sequence; an older sequence gives up when it sees a newer one
	restarts int       // by the restart policy since the last start through the API
	settled  time.Time // start is refused before
	since    time.Time // in this state
	moving   bool      // to another host: a new address at the next boot
	hidden   time.Time // listings lack it until then
	past     []snapshot
}

// view is what the API tells of a machine.
type view struct {
	id         string
	name       string
	state      string
	region     string
	instanceID string
	privateIP  string
	config     *fly.MachineConfig
	created    time.Time
	updated    time.Time
	events     []event // newest first
	host       fly.HostStatus
	cordoned   bool
	checks     []fly.MachineCheckStatus
}

// snapshot is a view that a lagging listing still shows.
type snapshot struct {
	at time.Time
	view
}

// event is a machine event with the ID that fly-go does not decode.
type event struct {
	ID        string              `json:"id"`
	Type      string              `json:"type"`
	Status    string              `json:"status"`
	Source    string              `json:"source"`
	Timestamp int64               `json:"timestamp"`
	Request   *fly.MachineRequest `json:"request,omitempty"`
}

// wireMachine is the JSON of a machine. It differs from fly.Machine where the
// client leaves out what the API says.
type wireMachine struct {
	ID               string                   `json:"id"`
	Name             string                   `json:"name"`
	State            string                   `json:"state"`
	Region           string                   `json:"region"`
	ImageRef         fly.MachineImageRef      `json:"image_ref"`
	InstanceID       string                   `json:"instance_id"`
	PrivateIP        string                   `json:"private_ip"`
	CreatedAt        string                   `json:"created_at"`
	UpdatedAt        string                   `json:"updated_at"`
	Config           *fly.MachineConfig       `json:"config"`
	IncompleteConfig *fly.MachineConfig       `json:"incomplete_config,omitempty"`
	Events           []event                  `json:"events"`
	Checks           []fly.MachineCheckStatus `json:"checks,omitempty"`
	Nonce            string                   `json:"nonce,omitempty"`
	HostStatus       fly.HostStatus           `json:"host_status"`
	Cordoned         bool                     `json:"cordoned"`
	Lease            *leaseData               `json:"lease,omitempty"`
}

func (v view) wire() wireMachine {
	w := wireMachine{
		ID: v.id, Name: v.name, State: v.state, Region: v.region,
		ImageRef:   imageRef(v.config.Image),
		InstanceID: v.instanceID, PrivateIP: v.privateIP,
		CreatedAt:  v.created.UTC().Format(time.RFC3339Nano),
		UpdatedAt:  v.updated.UTC().Format(time.RFC3339Nano),
		Config:     v.config,
		Events:     slices.Clone(v.events),
		Checks:     v.checks,
		HostStatus: v.host,
		Cordoned:   v.cordoned,
	}
	if w.Events == nil {
		w.Events = []event{}
	}
	if v.host != fly.HostStatusOk {
		w.Config, w.IncompleteConfig = nil, &fly.MachineConfig{
			Metadata: v.config.Metadata, Image: v.config.Image, Guest: v.config.Guest,
		}
	}
	return w
}

// withMetadata returns a config with one metadata key set, or removed where
// the value is empty.
func withMetadata(c *fly.MachineConfig, key, value string) *fly.MachineConfig {
	d := *c
	d.Metadata = maps.Clone(c.Metadata)
	if d.Metadata == nil {
		d.Metadata = make(map[string]string)
	}
	if value == "" {
		delete(d.Metadata, key)
	} else {
		d.Metadata[key] = value
	}
	return &d
}

func groupOf(c *fly.MachineConfig) string {
	if g := c.ProcessGroup(); g != "" {
		return g
	}
	return fly.MachineProcessGroupApp
}

// transient reports whether a state passes by itself.
func transient(state string) bool {
	switch state {
	case fly.MachineStateCreated, stateStarting, stateStopping, stateSuspending, stateRestarting, stateReplacing, fly.MachineStateDestroying:
		return true
	}
	return false
}

// counts reports whether a machine in the state runs, is about to, or still
// does: what a cap has to count.
func counts(state string) bool {
	switch state {
	case fly.MachineStateCreated, stateStarting, fly.MachineStateStarted, stateStopping, stateRestarting, stateReplacing, stateSuspending:
		return true
	}
	return false
}
