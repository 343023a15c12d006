package flytest

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	fly "github.com/superfly/fly-go"
)

// MachineInfo is a machine as the emulator sees it, of any app.
type MachineInfo struct {
	ID         string `json:"id"`
	Name       string `json:"name"`
	App        string `json:"app"`
	Group      string `json:"group"`
	Region     string `json:"region"`
	State      string `json:"state"`
	InstanceID string `json:"instance_id"`
	PrivateIP  string `json:"private_ip"`
	Host       string `json:"host"` // ok | unknown | unreachable
	Cordoned   bool   `json:"cordoned"`
	Op         string `json:"op,omitempty"` // metadata flymesh_op: the operation that created it
	Accounting string `json:"accounting"`   // how its CPU is limited and measured

	Metadata map[string]string `json:"metadata"`
	Details
}

// Machines returns every machine that is not destroyed, by app and age.
func (s *Server) Machines() []MachineInfo {
	f := s.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for name := range f.apps {
		names = append(names, name)
	}
	slices.Sort(names)
	out := []MachineInfo{}
	for _, name := range names {
		for _, m := range f.apps[name].sorted() {
			if m.state != fly.MachineStateDestroyed {
				out = append(out, s.info(m))
			}
		}
	}
	return out
}

func (s *Server) info(m *machine) MachineInfo {
	i := MachineInfo{
		ID: m.id, Name: m.name, App: m.app, Group: m.group, Region: m.region, State: m.state,
		InstanceID: m.instanceID, PrivateIP: m.privateIP, Host: string(m.host), Cordoned: m.cordoned,
		Op: m.config.Metadata["flymesh_op"], Accounting: s.Accounting(),
		Metadata: maps.Clone(m.config.Metadata),
	}
	if m.inst != nil {
		i.Details = m.inst.Details()
	}
	return i
}

// Kill ends everything on a machine at once, as a host failure would. The
// restart policy applies.
func (s *Server) Kill(id string) error {
	return s.instance("kill", id, func(i Instance) error { i.Kill(); return nil })
}

// Freeze stops everything on a machine in its tracks; the API goes on to call it started.
func (s *Server) Freeze(id string) error { return s.instance("freeze", id, Instance.Freeze) }

// Thaw lets a frozen machine go on.
func (s *Server) Thaw(id string) error { return s.instance("thaw", id, Instance.Thaw) }

func (s *Server) instance(verb, id string, fn func(Instance) error) error {
	s.fleet.mu.Lock()
	var inst Instance
	m := s.fleet.byID(id)
	if m != nil {
		inst = m.inst
	}
	s.fleet.mu.Unlock()
	switch {
	case m == nil:
		return fmt.Errorf("%s machine %s: %w", verb, id, notFound("machine not found"))
	case inst == nil:
		return fmt.Errorf("%s machine %s: %w", verb, id, failf(http.StatusConflict, "machine does not run"))
	}
	if err := fn(inst); err != nil {
		return fmt.Errorf("%s machine %s: %w", verb, id, err)
	}
	return nil
}

// serveControl answers /_emulator/. It asks no token: listen on loopback.
func (s *Server) serveControl(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.Trim(strings.TrimPrefix(r.URL.Path, "/_emulator/"), "/"), "/")
	rep, err := s.control(r, parts)
	if err != nil {
		rep = *errorReply(err, new(answer))
	}
	rep.write(w)
}

func (s *Server) control(r *http.Request, parts []string) (reply, error) {
	switch r.Method + " " + parts[0] {
	case "GET requests":
		after, _ := strconv.Atoi(r.URL.Query().Get("after")) // absent or nonsense: all
		lines := s.Requests()
		return ok(lines[min(max(0, after), len(lines)):])
	case "GET machines":
		return ok(s.Machines())
	case "GET usage":
		return ok(s.Usage())
	case "GET routes":
		return ok(s.Routes())
	case "GET faults":
		return ok(s.Faults())
	case "DELETE faults":
		s.ClearFaults()
		return done(nil)
	case "POST faults":
		b, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, 1<<20))
		if err != nil {
			return reply{}, failf(http.StatusBadRequest, "read body: %v", err)
		}
		var list []Fault
		if err := json.Unmarshal(b, &list); err != nil {
			return reply{}, failf(http.StatusBadRequest, "%v", err)
		}
		if err := s.AddFaults(list...); err != nil {
			return reply{}, failf(http.StatusBadRequest, "%v", err)
		}
		return ok(s.Faults())
	case "GET oidc":
		if len(parts) == 3 && parts[1] == ".well-known" {
			return s.controlOIDC(parts[2])
		}
	case "GET deploys":
		return ok(s.Deploys())
	case "POST deploys":
		return s.controlDeploy(r)
	case "POST autostop":
		return s.controlAutostop(r)
	case "POST machines":
		if len(parts) == 3 {
			return s.controlMachine(parts[1], parts[2])
		}
	}
	return reply{}, failf(http.StatusNotFound, "no such control: %s %s", r.Method, r.URL.Path)
}

func (s *Server) controlMachine(id, verb string) (reply, error) {
	var err error
	switch verb {
	case "kill":
		err = s.Kill(id)
	case "freeze":
		err = s.Freeze(id)
	case "thaw":
		err = s.Thaw(id)
	case "discard":
		err = s.Discard(id)
	case "migrate":
		err = s.Migrate(id)
	case "fail":
		err = s.FailHost(id)
	case "restore":
		err = s.RestoreHost(id)
	default:
		err = failf(http.StatusNotFound, "no such control: %s", verb)
	}
	if err != nil {
		return reply{}, err
	}
	s.fleet.mu.Lock()
	defer s.fleet.mu.Unlock()
	return ok(s.info(s.fleet.byID(id)))
}

// ArmedFault is a fault in force and how often it has hit.
type ArmedFault struct {
	Fault Fault `json:"fault"`
	Hits  int   `json:"hits"`
}

// Faults returns the faults in force.
func (s *Server) Faults() []ArmedFault {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	out := []ArmedFault{}
	for _, a := range s.faults.list {
		out = append(out, ArmedFault{a.Fault, a.hits})
	}
	return out
}
