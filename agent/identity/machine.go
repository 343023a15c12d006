// Package identity says who this process is: the facts Fly gives a machine,
// the boot ID, the keys that follow from the mesh's one secret, the Fly
// tokens, and whether the clock has jumped.
//
// Secret and Token never print themselves, whichever way they are printed.
// Everything but WatchClock is a plain call that any goroutine may make.
package identity

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
)

// Machine is what Fly says about the machine that this process runs on.
type Machine struct {
	ID         string // FLY_MACHINE_ID
	App        string // FLY_APP_NAME
	Group      string // FLY_PROCESS_GROUP, "app" if not set
	Region     string // FLY_REGION
	PrivateIP  string // FLY_PRIVATE_IP: its 6PN address
	InstanceID string // FLY_MACHINE_VERSION: changes with each update; may be empty
	Image      string // FLY_IMAGE_REF; may be empty
	Burst      bool   // FLYMESH_BURST=1: created by the mesh above the baseline, so never a voter
	Special    string // non-empty: why this process must run its command and not join the mesh
}

// FromEnv reads the FLY_* environment. A special machine is returned without
// an error even where facts are missing, because it must still run its command.
func FromEnv(getenv func(string) string) (Machine, error) {
	m := Machine{
		ID:         getenv("FLY_MACHINE_ID"),
		App:        getenv("FLY_APP_NAME"),
		Group:      getenv("FLY_PROCESS_GROUP"),
		Region:     getenv("FLY_REGION"),
		PrivateIP:  getenv("FLY_PRIVATE_IP"),
		InstanceID: getenv("FLY_MACHINE_VERSION"),
		Image:      getenv("FLY_IMAGE_REF"),
		Burst:      getenv("FLYMESH_BURST") == "1",
		Special:    special(getenv),
	}
	if m.Group == "" {
		m.Group = "app"
	}
	ip, badIP := netip.ParseAddr(m.PrivateIP)
	if badIP == nil {
		m.PrivateIP = ip.String() // one spelling on every agent
	}
	if m.Special != "" {
		return m, nil
	}
	var missing []string
	for _, f := range [...]struct{ name, value string }{
		{"FLY_MACHINE_ID", m.ID}, {"FLY_APP_NAME", m.App}, {"FLY_REGION", m.Region}, {"FLY_PRIVATE_IP", m.PrivateIP},
	} {
		if f.value == "" {
			missing = append(missing, f.name)
		}
	}
	if len(missing) > 0 {
		return m, fmt.Errorf("read machine facts: %s not set: Fly sets them on every machine", strings.Join(missing, ", "))
	}
	if badIP != nil {
		return m, fmt.Errorf("read machine facts: FLY_PRIVATE_IP: %w", badIP)
	}
	return m, nil
}

// special names the temporary machines that flyctl starts from the app's own
// image: they run the same entrypoint but are not part of the fleet.
func special(getenv func(string) string) string {
	if getenv("RELEASE_COMMAND") == "1" {
		return "release command (RELEASE_COMMAND=1)"
	}
	if getenv("FLY_TEST_MACHINE_IP") != "" {
		return "test machine (FLY_TEST_MACHINE_IP is set)"
	}
	switch g := getenv("FLY_PROCESS_GROUP"); g {
	case "fly_app_release_command", "fly_app_console", "fly_app_test_machine_command":
		return "temporary machine (process group " + g + ")"
	}
	return ""
}

// NewBoot returns a new boot ID: 128 random bits as 32 hex digits. Each start
// of an agent makes one, because a machine that was stopped has lost its disk
// and must not be taken for the one that ran before.
func NewBoot() string {
	var b [16]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return hex.EncodeToString(b[:])
}
