package deploy

import (
	"fmt"
	"strings"

	"flymesh/agent/config"
)

// judgeRoles looks at what an image runs: one command, or two of which one
// machine of a pinned service runs the first.
func judgeRoles(f fly, services []config.Service, entry []string, docker string, bad func(string, ...any)) {
	roles := len(entry) == 9 && entry[4] == "-primary" && entry[6] == "-replica"
	if len(entry) != 5 && !roles {
		bad("ENTRYPOINT %q has more than -primary CMD -replica CMD", entry)
	}
	if roles == strings.Contains(docker, "\nCMD [") {
		bad("the Dockerfile needs either CMD or -primary and -replica")
	}
	for _, s := range services {
		if roles && !s.Policy.Pinned {
			bad("service %s has two roles and is not pinned: nobody would be its primary", s.Name)
		}
		for _, p := range s.Probes {
			if p.Type != "n8n" {
				continue
			}
			if (p.Role == "auto") != roles {
				bad("the n8n probe's role is %q, the ENTRYPOINT is %q", p.Role, entry)
			}
			if _, port, _ := strings.Cut(strings.TrimPrefix(p.WorkerURL, "http://"), ":"); port != f.Env["QUEUE_HEALTH_CHECK_PORT"] && roles {
				bad("the probe asks workers at %q, env QUEUE_HEALTH_CHECK_PORT is %q", port, f.Env["QUEUE_HEALTH_CHECK_PORT"])
			}
			if f.HTTP != nil && fmt.Sprint(f.HTTP.InternalPort) == f.Env["QUEUE_HEALTH_CHECK_PORT"] {
				bad("internal_port %d is open on workers too: they would get webhooks", f.HTTP.InternalPort)
			}
		}
	}
}
