package flytest

import (
	"net/http"

	"github.com/superfly/fly-go/flaps"
)

// org is the organization of every app.
const org = "flytest"

// wireApp is the JSON of an app.
type wireApp struct {
	ID           string            `json:"id"`
	Name         string            `json:"name"`
	Status       string            `json:"status"`
	MachineCount int               `json:"machine_count"`
	VolumeCount  int               `json:"volume_count"`
	Network      string            `json:"network"`
	Organization map[string]string `json:"organization"`
}

func (a *app) wire() wireApp {
	return wireApp{
		ID: a.name, Name: a.name, Status: "deployed", MachineCount: len(a.machines), Network: "default",
		Organization: map[string]string{"name": org, "slug": org},
	}
}

func (s *Server) createApp(c *call) (reply, error) {
	var in flaps.CreateAppRequest
	if err := c.read(&in); err != nil {
		return reply{}, err
	}
	if in.Name == "" {
		return reply{}, failf(http.StatusBadRequest, "invalid_argument: app name is required")
	}
	s.fleet.mu.Lock()
	defer s.fleet.mu.Unlock()
	if s.fleet.apps[in.Name] != nil {
		return reply{}, failf(http.StatusUnprocessableEntity, "Validation failed: Name has already been taken")
	}
	return reply{code: http.StatusCreated, body: s.fleet.addApp(in.Name).wire()}, nil
}

func (s *Server) getApp(c *call) (reply, error) {
	s.fleet.mu.Lock()
	defer s.fleet.mu.Unlock()
	a := s.fleet.apps[c.app]
	if a == nil {
		return reply{}, notFound("app not found")
	}
	return ok(a.wire())
}

func (s *Server) volumes(c *call) (reply, error) {
	s.fleet.mu.Lock()
	defer s.fleet.mu.Unlock()
	if s.fleet.apps[c.app] == nil {
		return reply{}, notFound("app not found")
	}
	return ok([]struct{}{})
}

func (s *Server) regions(*call) (reply, error) {
	type region struct{ Code, Name string }
	out := struct {
		Regions []region
		Nearest string
	}{Nearest: s.opts.Regions[0]}
	for _, r := range s.opts.Regions {
		out.Regions = append(out.Regions, region{r, r})
	}
	return ok(out)
}

func (s *Server) placements(*call) (reply, error) {
	var out flaps.GetPlacementsResponse
	for _, r := range s.opts.Regions {
		out.Regions = append(out.Regions, flaps.RegionPlacement{Region: r, Count: 100, Concurrency: 10})
	}
	return ok(out)
}
