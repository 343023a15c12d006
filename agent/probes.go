package agent

import (
	"fmt"
	"os"
	"strings"
)

// expand puts FLY_* facts of this machine into a probe's address, so that one
// mesh.toml serves every machine: "http://${FLY_PRIVATE_IP}:8080/metrics".
func expand(s string) (string, error) {
	var missing []string
	out := os.Expand(s, func(name string) string {
		v := os.Getenv(name)
		if !strings.HasPrefix(name, "FLY_") || v == "" {
			missing = append(missing, name)
			return ""
		}
		if name == "FLY_PRIVATE_IP" && strings.Contains(v, ":") {
			return "[" + v + "]"
		}
		return v
	})
	if len(missing) > 0 {
		return "", fmt.Errorf("expand %q: %s is not set (only FLY_* variables are known here)", s, strings.Join(missing, ", "))
	}
	return out, nil
}
