package flyapi

import (
	"maps"
	"slices"
	"strings"
	"time"

	fly "github.com/superfly/fly-go"

	"flymesh/leader"
)

// wireMachine is a machine as the API tells it, with the lease that fly-go
// does not decode.
type wireMachine struct {
	fly.Machine
	Lease *fly.MachineLeaseData `json:"lease"`
}

// reservedGroups is the prefix of the platform's own process groups: release
// command, console, test machine.
const reservedGroups = "fly_app_"

// toMachine reduces a machine of an app to what the leader uses.
func toMachine(app string, w wireMachine) leader.Machine {
	// While a machine's host does not answer, config is null and only an
	// incomplete one is there.
	cfg := w.GetConfig()
	if cfg == nil {
		cfg = &fly.MachineConfig{}
	}
	m := leader.Machine{
		ID: w.ID, Name: w.Name, App: app, Group: cfg.ProcessGroup(), Region: w.Region, State: w.State,
		InstanceID: w.InstanceID, PrivateIP: w.PrivateIP,
		Created: parseTime(w.CreatedAt), Started: newestStart(w.Events),
		Release:  cfg.Metadata[fly.MachineConfigMetadataKeyFlyReleaseVersion],
		Metadata: maps.Clone(cfg.Metadata),
		HostOK:   hostOK(&w.Machine),
		Cordoned: w.Cordoned,
		Mounts:   len(cfg.Mounts) > 0,
		Standby:  len(cfg.Standbys) > 0,
	}
	if m.Group == "" {
		m.Group = fly.MachineProcessGroupApp
	}
	if w.Lease != nil {
		m.LeaseOwner = w.Lease.Owner
	}
	// A scheduled or self-destroying machine is somebody's job, not a server.
	m.Special = strings.HasPrefix(m.Group, reservedGroups) || w.IsReleaseCommandMachine() || cfg.Schedule != "" || cfg.AutoDestroy
	//lint:ignore SA1019 machines of older configs still carry it
	off := cfg.DisableMachineAutostart != nil && *cfg.DisableMachineAutostart
	for _, s := range cfg.Services {
		m.Autostop = m.Autostop || s.Autostop != nil && *s.Autostop != fly.MachineAutostopOff
		m.Autostart = m.Autostart || s.Autostart != nil && *s.Autostart && !off
	}
	return m
}

func hostOK(m *fly.Machine) bool {
	return m.HostStatus == "" || m.HostStatus == fly.HostStatusOk
}

// parseTime reads an API time; what cannot be read is zero.
func parseTime(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}
	}
	return t.UTC()
}

// newestStart is the time of the newest start event, zero without one.
func newestStart(events []*fly.MachineEvent) time.Time {
	for _, e := range newestFirst(events) {
		if e.Type == "start" {
			return e.Time().UTC()
		}
	}
	return time.Time{}
}

// newestFirst returns the events in the order in which the API says that they
// are, and makes sure of it; events of one instant keep their order.
func newestFirst(events []*fly.MachineEvent) []*fly.MachineEvent {
	out := slices.DeleteFunc(slices.Clone(events), func(e *fly.MachineEvent) bool { return e == nil })
	slices.SortStableFunc(out, func(a, b *fly.MachineEvent) int {
		switch {
		case a.Timestamp > b.Timestamp:
			return -1
		case a.Timestamp < b.Timestamp:
			return 1
		}
		return 0
	})
	return out
}
