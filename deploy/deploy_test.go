// Package deploy holds the files that put the mesh onto Fly.io. Its test holds
// every fly.toml, Dockerfile and mesh.toml of the repository against each other.
package deploy

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"

	"flymesh/agent/config"
	"flymesh/agent/identity"
)

// fly is what may stand in a fly.toml here: https://fly.io/docs/reference/configuration/.
type fly struct {
	App         string            `toml:"app"`
	Region      string            `toml:"primary_region"`
	KillSignal  string            `toml:"kill_signal"`
	KillTimeout string            `toml:"kill_timeout"`
	Build       map[string]string `toml:"build"`
	Deploy      struct {
		Strategy       string  `toml:"strategy"`
		MaxUnavailable float64 `toml:"max_unavailable"`
	} `toml:"deploy"`
	Env       map[string]string `toml:"env"`
	Processes map[string]string `toml:"processes"`
	HTTP      *service          `toml:"http_service"`
	Services  []service         `toml:"services"`
	Checks    map[string]struct {
		Kind        string `toml:"kind"`
		Type        string `toml:"type"`
		Port        int    `toml:"port"`
		Method      string `toml:"method"`
		Path        string `toml:"path"`
		Interval    string `toml:"interval"`
		Timeout     string `toml:"timeout"`
		GracePeriod string `toml:"grace_period"`
	} `toml:"checks"`
	Metrics *struct {
		Port int    `toml:"port"`
		Path string `toml:"path"`
	} `toml:"metrics"`
	Mounts  map[string]string `toml:"mounts"`
	Restart []map[string]any  `toml:"restart"`
	VM      []map[string]any  `toml:"vm"`
}

type service struct {
	Protocol     string           `toml:"protocol"`
	InternalPort int              `toml:"internal_port"`
	ForceHTTPS   bool             `toml:"force_https"`
	AutoStop     any              `toml:"auto_stop_machines"`
	AutoStart    *bool            `toml:"auto_start_machines"`
	MinRunning   *int             `toml:"min_machines_running"`
	Ports        []map[string]any `toml:"ports"`
	Concurrency  map[string]any   `toml:"concurrency"`
}

// place is one app's directory as text.
type place struct{ path, fly, docker string }

// judge says what is wrong with an app's files beside mesh.toml.
func judge(p place, mesh *config.Config) (problems []string) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	var f fly
	md, err := toml.Decode(p.fly, &f)
	if err != nil {
		return []string{err.Error()}
	}
	for _, k := range md.Undecoded() {
		bad("unknown key %s", k)
	}
	for name := range f.Env {
		if regexp.MustCompile(`SECRET|TOKEN|PASSWORD|_KEY$`).MatchString(name) {
			bad("env holds the secret %s: name it in a comment, set it with fly secrets", name)
		}
	}
	if f.Build["dockerfile"] != "Dockerfile" {
		bad("build.dockerfile = %q", f.Build["dockerfile"])
	}
	services := slices.DeleteFunc(slices.Clone(mesh.Services), func(s config.Service) bool { return s.App != f.App })
	if len(services) == 0 {
		if f.HTTP != nil || len(f.Services)+len(f.VM)+len(f.Checks) > 0 {
			bad("app %q is no service of mesh.toml", f.App)
		}
		return problems // the app whose name the image has
	}
	groups := []string{}
	for _, s := range services {
		groups = append(groups, s.Group)
		if len(f.Processes) == 0 && s.Group != "app" {
			bad("service %s is process group %q: [processes] does not have it", s.Name, s.Group)
		} else if _, ok := f.Processes[s.Group]; len(f.Processes) > 0 && !ok {
			bad("service %s is process group %q: [processes] does not have it", s.Name, s.Group)
		}
	}
	for g := range f.Processes {
		if !slices.Contains(groups, g) {
			bad("process group %q is no service of mesh.toml", g)
		}
	}
	judgeMesh(f, mesh, bad)
	for _, s := range services {
		judgePorts(f, s, mesh, p.docker, bad)
		judgeSecrets(p.fly, s, mesh, bad)
	}
	judgeTimes(f, mesh, services, p.docker, bad)
	return problems
}

// judgeMesh looks at the check, the metrics and the deploys.
func judgeMesh(f fly, mesh *config.Config, bad func(string, ...any)) {
	gates := 0
	for name, c := range f.Checks {
		if c.Kind != "readiness" {
			continue
		}
		gates++
		if c.Type != "http" || c.Port != mesh.Mesh.HealthPort || c.Path != "/health" || c.Method != "GET" {
			bad("checks.%s: %s %s on port %d, want http GET /health on %d", name, c.Type, c.Path, c.Port, mesh.Mesh.HealthPort)
		}
	}
	if gates != 1 {
		bad("%d readiness checks: want one, or Fly sends traffic to machines that are not ready", gates)
	}
	if m := f.Metrics; m == nil || m.Port != mesh.Mesh.HealthPort || m.Path != "/metrics" {
		bad("metrics are not those of port %d", mesh.Mesh.HealthPort)
	}
	if f.Deploy.Strategy != "rolling" || f.Deploy.MaxUnavailable != 1 {
		bad("deploy: want rolling with max_unavailable = 1: voters are replaced one at a time")
	}
	if len(f.Restart) != 1 || f.Restart[0]["policy"] == "no" {
		bad("restart: Fly restarts the machine when the app ends, so the policy must be given")
	}
}

// judgePorts compares what Fly routes to with what the probes ask.
func judgePorts(f fly, s config.Service, mesh *config.Config, docker string, bad func(string, ...any)) {
	listens := ""
	for _, p := range s.Probes {
		switch p.Type {
		case "n8n", "embeddings", "http":
			if u, err := url.Parse(p.URL); err == nil {
				listens = u.Port()
			}
		case "redis":
			_, listens, _ = strings.Cut(p.Addr, ":")
			if !strings.Contains(docker, "--port "+listens+" ") {
				bad("the redis probe asks port %s, the Dockerfile starts redis elsewhere", listens)
			}
		}
	}
	if s.Proxy.Listen != "" {
		listens = s.Proxy.Listen[strings.LastIndex(s.Proxy.Listen, ":")+1:]
	}
	all := f.Services
	if f.HTTP != nil {
		all = append(slices.Clone(all), *f.HTTP)
	}
	for _, v := range all {
		if fmt.Sprint(v.InternalPort) != listens {
			bad("internal_port %d, but service %s listens on %s", v.InternalPort, s.Name, listens)
		}
		if slices.Contains([]int{mesh.Mesh.GossipPort, mesh.Mesh.MeshPort, mesh.Mesh.HealthPort}, v.InternalPort) {
			bad("internal_port %d is the mesh's own", v.InternalPort)
		}
		if s.Owner == "mesh" && (v.AutoStop != "off" || v.AutoStart == nil || *v.AutoStart || v.MinRunning == nil || *v.MinRunning != 0) {
			bad("the mesh scales %s: auto_stop_machines must be \"off\", auto_start_machines false, min_machines_running 0", s.Name)
		}
	}
	for _, name := range []string{"PORT", "N8N_PORT"} {
		if v, ok := f.Env[name]; ok && v != listens {
			bad("env %s = %s, but the probes ask port %s", name, v, listens)
		}
	}
}

// judgeSecrets wants every secret that the machine needs named in a comment.
func judgeSecrets(text string, s config.Service, mesh *config.Config, bad func(string, ...any)) {
	var comments strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			comments.WriteString(line)
		}
	}
	need := []string{"FLYMESH_SECRET"}
	for _, p := range s.Probes {
		if p.PasswordEnv != "" {
			need = append(need, p.PasswordEnv)
		}
	}
	for _, app := range mesh.TokenApps() {
		name := identity.TokenEnv(app)
		if s.Vote {
			need = append(need, name)
		} else if strings.Contains(comments.String(), name) {
			bad("service %s cannot vote and must not hold %s", s.Name, name)
		}
	}
	for _, name := range need {
		if !regexp.MustCompile(`\b` + name + `\b`).MatchString(comments.String()) {
			bad("the comment does not name the secret %s", name)
		}
	}
}

// judgeTimes holds Fly's patience against the agent's and the mesh's.
func judgeTimes(f fly, mesh *config.Config, services []config.Service, docker string, bad func(string, ...any)) {
	kill, err := time.ParseDuration(f.KillTimeout)
	if err != nil || kill > 300*time.Second {
		bad("kill_timeout = %q: want a duration of at most 300s", f.KillTimeout)
	}
	if f.KillSignal != "SIGTERM" && f.KillSignal != "SIGINT" {
		bad("kill_signal = %q does not begin a drain", f.KillSignal)
	}
	var entry []string
	for line := range strings.Lines(docker) {
		if rest, ok := strings.CutPrefix(line, "ENTRYPOINT "); ok && json.Unmarshal([]byte(rest), &entry) != nil {
			bad("ENTRYPOINT is not in JSON form")
		}
	}
	if len(entry) < 5 || filepath.Base(entry[0]) != "agent" || entry[1] != "run" || entry[2] != "-kill-timeout" || entry[len(entry)-1] != "--" {
		bad("ENTRYPOINT %q is not agent run -kill-timeout D --", entry)
		return
	}
	judgeRoles(f, services, entry, docker, bad)
	own, err := time.ParseDuration(entry[3])
	if err != nil || own > kill {
		bad("the agent takes %s to end, Fly's kill_timeout is %s", entry[3], f.KillTimeout)
	}
	if own/2 < mesh.Mesh.DrainTimeout {
		bad("half of the agent's %s is less than mesh.drain_timeout (%s)", entry[3], mesh.Mesh.DrainTimeout)
	}
	for _, want := range []string{"\nFROM ${FLYMESH} AS flymesh\n", "\nCOPY --from=flymesh /agent /agentctl /usr/local/bin/\n", "\nCOPY deploy/mesh.toml /etc/flymesh/mesh.toml\n"} {
		if !strings.Contains(docker, want) {
			bad("the Dockerfile lacks %q", strings.TrimSpace(want))
		}
	}
}

// repository finds every mesh.toml and fly.toml.
func repository(t *testing.T) (meshes []string, places []place) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "node_modules" || strings.HasPrefix(d.Name(), ".") && d.Name() != "..") {
			return filepath.SkipDir
		}
		switch d.Name() {
		case "mesh.toml":
			meshes = append(meshes, path)
		case "fly.toml":
			f, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			docker, err := os.ReadFile(filepath.Join(filepath.Dir(path), "Dockerfile"))
			if err != nil {
				return err
			}
			places = append(places, place{path, string(f), string(docker)})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return meshes, places
}

func TestFilesAgree(t *testing.T) {
	meshes, places := repository(t)
	for _, path := range meshes {
		if _, err := config.Load(path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	mesh, err := config.Load("mesh.toml")
	if err != nil {
		t.Fatal(err)
	}
	apps := map[string]string{}
	for _, p := range places {
		for _, problem := range judge(p, mesh) {
			t.Errorf("%s: %s", p.path, problem)
		}
		var f fly
		if _, err := toml.Decode(p.fly, &f); err != nil {
			t.Fatal(err)
		}
		if other, taken := apps[f.App]; taken {
			t.Errorf("%s: app %s is that of %s already", p.path, f.App, other)
		}
		apps[f.App] = p.path
	}
	for _, app := range mesh.Apps() {
		if apps[app] == "" {
			t.Errorf("app %s of mesh.toml has no fly.toml", app)
		}
	}
	if len(places) < 5 || len(meshes) == 0 {
		t.Errorf("only %d fly.toml and %d mesh.toml found", len(places), len(meshes))
	}
}

// Each promise is broken once, and must be noticed.
func TestDisagreementIsNoticed(t *testing.T) {
	_, places := repository(t)
	reference, err := os.ReadFile("mesh.toml")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ app, file, from, to, want string }{
		{"n8n", "fly", "internal_port = 5678", "internal_port = 80", "internal_port 80"},
		{"n8n", "fly", `N8N_PORT = "5678"`, `N8N_PORT = "80"`, "env N8N_PORT"},
		{"n8n", "fly", "kill_timeout = \"90s\"", "kill_timeout = \"80s\"", "takes 85s to end"},
		{"n8n", "fly", "kill_timeout = \"90s\"", "", "want a duration"},
		{"n8n", "fly", "  port = 9470\n  method", "  port = 9471\n  method", "want http GET /health on 9470"},
		{"n8n", "fly", `path = "/health"`, `path = "/healthz"`, "want http GET /health"},
		{"n8n", "fly", `kind = "readiness"`, `kind = "informational"`, "0 readiness checks"},
		{"n8n", "fly", `path = "/metrics"`, `path = "/"`, "metrics are not"},
		{"n8n", "fly", `strategy = "rolling"`, `strategy = "immediate"`, "want rolling"},
		{"n8n", "fly", `auto_stop_machines = "off"`, `auto_stop_machines = "stop"`, "the mesh scales n8n"},
		{"n8n", "fly", "auto_start_machines = false", "auto_start_machines = true", "the mesh scales n8n"},
		{"n8n", "fly", "[env]", "[env]\n  N8N_ENCRYPTION_KEY = \"hush\"", "env holds the secret"},
		{"n8n", "fly", "QUEUE_BULL_REDIS_PASSWORD  that", "that", "does not name the secret QUEUE_BULL"},
		{"n8n", "fly", "FLYMESH_TOKEN_ACME_N8N", "FLYMESH_TOKEN", "does not name the secret FLYMESH_TOKEN_ACME_N8N"},
		{"n8n", "fly", "[env]", "[processes]\n  worker = \"n8n worker\"\n[env]", "[processes] does not have it"},
		{"n8n", "fly", `app = "acme-n8n"`, `app = "acme-n9n"`, "is no service"},
		{"n8n", "fly", "[metrics]", "[metricks]", "unknown key"},
		{"n8n", "fly", `kill_signal = "SIGTERM"`, `kill_signal = "SIGKILL"`, "does not begin a drain"},
		{"n8n", "mesh", `url = "http://127.0.0.1:5678"`, `url = "http://127.0.0.1:5679"`, "listens on 5679"},
		{"n8n", "mesh", "health_port = 9470", "health_port = 9471", "want http GET /health on 9471"},
		{"n8n", "mesh", "drain_timeout = \"30s\"", "drain_timeout = \"45s\"", "less than mesh.drain_timeout"},
		{"n8n", "fly", `QUEUE_HEALTH_CHECK_PORT = "5679"`, `QUEUE_HEALTH_CHECK_PORT = "5680"`, "asks workers at"},
		{"n8n", "fly", `QUEUE_HEALTH_CHECK_PORT = "5679"`, `QUEUE_HEALTH_CHECK_PORT = "5678"`, "open on workers too"},
		{"n8n", "docker", `"-primary", "/docker-entrypoint.sh start", "-replica", "/docker-entrypoint.sh worker --concurrency=10", `, "", "the n8n probe's role"},
		{"n8n", "docker", `"-replica"`, `"-other"`, "has more than"},
		{"redis", "docker", "\nCMD [", "\n#CMD [", "either CMD or"},
		{"n8n", "docker", `"agent", "run"`, `"agent", "walk"`, "is not agent run"},
		{"n8n", "docker", "COPY deploy/mesh.toml", "COPY mesh.toml", "lacks"},
		{"embeddings", "fly", `PORT = "3000"`, `PORT = "80"`, "env PORT"},
		{"redis", "docker", "--port 6379", "--port 6380", "starts redis elsewhere"},
		{"redis", "fly", "REDIS_PASSWORD", "PASSWORD", "does not name the secret REDIS_PASSWORD"},
		{"web", "fly", "#   FLYMESH_SECRET", "#   FLYMESH_TOKEN_ACME_N8N, FLYMESH_SECRET", "must not hold"},
	} {
		i := slices.IndexFunc(places, func(p place) bool {
			return strings.Contains(p.path, "/"+tt.app+"/") || strings.HasPrefix(p.path, tt.app+"/")
		})
		if i < 0 {
			t.Fatalf("no fly.toml of %s", tt.app)
		}
		p, text := places[i], string(reference)
		part := map[string]*string{"fly": &p.fly, "docker": &p.docker, "mesh": &text}[tt.file]
		changed := strings.Replace(*part, tt.from, tt.to, 1)
		if tt.file == "docker" {
			changed = strings.Replace(*part, strings.Replace(tt.from, `"agent"`, `"/usr/local/bin/agent"`, 1), tt.to, 1)
		}
		if changed == *part && tt.want != "" {
			t.Errorf("%s %s: %q is not there to be broken", tt.app, tt.file, tt.from)
			continue
		}
		*part = changed
		mesh, err := config.Parse("mesh.toml", []byte(text))
		if err != nil {
			if tt.want != "" {
				t.Errorf("%s: %v", tt.from, err)
			}
			continue
		}
		if got := strings.Join(judge(p, mesh), "\n"); !strings.Contains(got, tt.want) {
			t.Errorf("%s with %q for %q: got %q, want %q", p.path, tt.to, tt.from, got, tt.want)
		}
	}
}
