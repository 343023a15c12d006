package config

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// Load reads a mesh.toml. A file with anything wrong gives Problems, and no
// Config.
func Load(path string) (*Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	return Parse(filepath.Base(path), data)
}

// Parse is Load for a file that is in memory already; name is what problems
// call it.
func Parse(name string, data []byte) (*Config, error) {
	c, f := parse(name, data)
	if err := f.problems.err(); err != nil {
		return nil, err
	}
	return c, nil
}

func parse(name string, data []byte) (*Config, *file) {
	f := &file{name: name, schema: map[string]string{}}
	tree := map[string]any{}
	md, err := toml.Decode(string(data), &tree)
	if err != nil {
		f.syntax(err)
		return nil, f
	}
	f.lines = scanLines(string(data))

	c := Default()
	root := f.table("", "", tree)
	c.Mesh = readMesh(root.sub("mesh"), c.Mesh)
	c.Alerts = readAlerts(root.sub("alerts"), c.Alerts)
	services := root.sub("service")
	services.free = true
	for _, name := range names(md, "service") {
		t := services.named(name)
		if !serviceName.MatchString(name) {
			f.bad(t.path, "", "service names are lower-case letters, digits and dashes, at most 30, and begin with a letter")
		}
		c.Services = append(c.Services, readService(t, name, c.Mesh))
	}
	jobs := root.sub("job")
	jobs.free = true
	for _, name := range names(md, "job") {
		c.Jobs = append(c.Jobs, readJob(jobs.named(name), name, &c))
	}
	checkMesh(f, &c)
	f.unknown()
	c.hash = hash(tree)
	return &c, f
}

var (
	serviceName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,29}$`)
	jobName     = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]{0,62}$`)
	meshName    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)
)

// syntax notes a text that is not TOML.
func (f *file) syntax(err error) {
	p := Problem{File: f.name, Message: "is not TOML: " + err.Error()}
	if pe := (toml.ParseError{}); errors.As(err, &pe) {
		p.Line, p.Key, p.Message = pe.Position.Line, pe.LastKey, "is not TOML: "+pe.Message
	}
	f.problems = append(f.problems, p)
}

// names returns the names under a top-level table in file order.
func names(md toml.MetaData, top string) []string {
	var list []string
	for _, k := range md.Keys() {
		if len(k) >= 2 && k[0] == top && !slices.Contains(list, k[1]) {
			list = append(list, k[1])
		}
	}
	return list
}

// named reads the sub-table of a free name.
func (t *table) named(name string) *table {
	values, ok := t.values[name].(map[string]any)
	if !ok {
		t.bad(name, "must be a table, e.g. [%s]", t.at("NAME"))
	}
	return t.f.table(t.at(name), t.at("*"), values)
}

func readMesh(t *table, d Mesh) Mesh {
	m := Mesh{
		Name:          t.need("name", "acme"),
		AnchorApp:     t.str("anchor_app", ""),
		ReportEvery:   t.span("report_every", d.ReportEvery, 200*time.Millisecond, 30*time.Second),
		Profile:       t.str("profile", d.Profile, "fast", "default", "wide"),
		Peers:         t.list("peers", d.Peers, literal(d.Peers)),
		Discover:      t.list("discover", d.Discover, literal(d.Discover)),
		NoLeaderGrace: t.span("no_leader_grace", d.NoLeaderGrace, time.Second, time.Hour),
		DrainTimeout:  t.span("drain_timeout", d.DrainTimeout, time.Second, time.Hour),
		StartTimeout:  t.span("start_timeout", d.StartTimeout, time.Second, time.Hour),
		ReadyTimeout:  t.span("ready_timeout", d.ReadyTimeout, time.Second, time.Hour),
		PinGrace:      t.span("pin_grace", d.PinGrace, time.Second, 24*time.Hour),
		GossipPort:    t.count("gossip_port", d.GossipPort, 1, 65535),
		MeshPort:      t.count("mesh_port", d.MeshPort, 1, 65535),
		HealthPort:    t.count("health_port", d.HealthPort, 1, 65535),
		Socket:        t.str("socket", d.Socket),
	}
	t.f.schema[t.at("anchor_app")] = "the app of the first service with vote = true"
	if m.Name != "" && !meshName.MatchString(m.Name) {
		t.bad("name", "must be lower-case letters, digits and inner dashes, at most 32")
	}
	for i, p := range m.Peers {
		if !isHostPort(p) {
			t.f.bad(fmt.Sprintf("%s[%d]", t.at("peers"), i), literal(p), `must be "host:port", e.g. "[fdaa::3]:7946"`)
		}
	}
	ways := []string{"dns", "api", "peers"}
	for i, w := range m.Discover {
		at := fmt.Sprintf("%s[%d]", t.at("discover"), i)
		if !slices.Contains(ways, w) {
			t.f.bad(at, literal(w), "must be %s%s", oneOf(ways), didYouMean(w, ways))
		} else if slices.Index(m.Discover, w) != i {
			t.f.bad(at, literal(w), "is listed twice")
		}
	}
	if len(m.Discover) == 0 {
		t.bad("discover", "must name a way: %s", oneOf(ways))
	}
	if len(m.Peers) == 0 && len(m.Discover) == 1 && m.Discover[0] == "peers" {
		t.bad("discover", "names peers alone, but peers is empty: no agent could find another")
	}
	for _, pair := range [][2]string{{"gossip_port", "mesh_port"}, {"gossip_port", "health_port"}, {"mesh_port", "health_port"}} {
		ports := map[string]int{"gossip_port": m.GossipPort, "mesh_port": m.MeshPort, "health_port": m.HealthPort}
		if ports[pair[0]] == ports[pair[1]] {
			t.f.bad(t.at(pair[1]), strconv.Itoa(ports[pair[1]]), "must differ from %s", pair[0])
		}
	}
	// Linux allows 107 bytes in the address of a unix socket.
	if m.Socket == "" || len(m.Socket) > 107 {
		t.bad("socket", "must be a path of 1 to 107 bytes")
	}
	return m
}

// checkMesh holds the parts of the file against each other.
func checkMesh(f *file, c *Config) {
	if len(c.Services) == 0 {
		f.bad("service", "", "at least one service is needed, e.g. [service.web]")
		return
	}
	places := map[string]string{} // app and group -> service
	for _, s := range c.Services {
		place := s.App + " " + s.Group
		if other, taken := places[place]; taken && s.App != "" {
			f.bad("service."+s.Name+".app", literal(s.App), "process group %q of this app is already service %s; give one of them its own app or group", s.Group, other)
		}
		places[place] = s.Name
	}
	voter := slices.IndexFunc(c.Services, func(s Service) bool { return s.Vote })
	if voter < 0 {
		f.bad("service", "", "no service has vote = true: nobody could lead the mesh; set it where the Fly tokens are")
	}
	if c.Mesh.AnchorApp == "" && voter >= 0 {
		c.Mesh.AnchorApp = c.Services[voter].App
	} else if c.Mesh.AnchorApp != "" && !slices.Contains(c.Apps(), c.Mesh.AnchorApp) {
		f.bad("mesh.anchor_app", literal(c.Mesh.AnchorApp), "must be the app of a service%s", didYouMean(c.Mesh.AnchorApp, c.Apps()))
	}
	seen := map[string]string{}
	for _, j := range c.Jobs {
		low := strings.ToLower(j.Name)
		if other, taken := seen[low]; taken {
			f.bad("job."+j.Name, "", "differs from job %s in upper and lower case alone; rename one", other)
		}
		seen[low] = j.Name
	}
}

func isHostPort(s string) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" {
		return false
	}
	n, err := strconv.Atoi(port)
	return err == nil && n >= 1 && n <= 65535
}

// hash is over the tree, not the text, so that it stands for what the file
// says; JSON writes the keys of a map in order.
func hash(tree map[string]any) string {
	canonical, err := json.Marshal(tree)
	if err != nil { // nan and inf, which no key accepts
		return ""
	}
	sum := sha256.Sum256(canonical)
	return hex.EncodeToString(sum[:])[:8]
}
