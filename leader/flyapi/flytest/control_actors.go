package flytest

import (
	"encoding/json"
	"io"
	"net/http"
	"time"

	fly "github.com/superfly/fly-go"
)

// controlDeploy begins a deploy and answers at once: GET deploys tells its end.
func (s *Server) controlDeploy(r *http.Request) (reply, error) {
	var in struct {
		App            string          `json:"app"`
		Strategy       string          `json:"strategy"`
		MaxUnavailable float64         `json:"max_unavailable"`
		Timeout        Delay           `json:"timeout"`
		Config         json.RawMessage `json:"config"` // fields of the config that change
	}
	if err := readControl(r, &in); err != nil {
		return reply{}, err
	}
	s.fleet.mu.Lock()
	known := s.fleet.apps[in.App] != nil
	s.fleet.mu.Unlock()
	if !known {
		return reply{}, notFound("app not found")
	}
	d := Deploy{Strategy: in.Strategy, MaxUnavailable: in.MaxUnavailable, Timeout: time.Duration(in.Timeout)}
	if in.Config != nil {
		if err := json.Unmarshal(in.Config, new(fly.MachineConfig)); err != nil {
			return reply{}, failf(http.StatusBadRequest, "config: %v", err)
		}
		d.Config = func(c fly.MachineConfig) fly.MachineConfig {
			_ = json.Unmarshal(in.Config, &c) // it could be read before
			return c
		}
	}
	id, err := s.beginDeploy(in.App, d)
	if err != nil {
		return reply{}, failf(http.StatusBadRequest, "%v", err)
	}
	s.fleet.mu.Lock()
	s.fleet.spawn(func() {
		if err := s.runDeploy(s.fleet.ctx, in.App, d, id); err != nil {
			s.log.Warn("deploy failed", "error", err)
		}
	})
	s.fleet.mu.Unlock()
	return reply{code: http.StatusAccepted, body: s.Deploys()[id-1]}, nil
}

// controlAutostop starts or, with an every of 0, ends the proxy's loop over an app.
func (s *Server) controlAutostop(r *http.Request) (reply, error) {
	var in struct {
		App   string `json:"app"`
		Every Delay  `json:"every"`
	}
	if err := readControl(r, &in); err != nil {
		return reply{}, err
	}
	if len(s.routesOf(in.App)) == 0 {
		return reply{}, failf(http.StatusNotFound, "app %q has no route", in.App)
	}
	s.Autostop(in.App, time.Duration(in.Every))
	return done(nil)
}

func readControl(r *http.Request, v any) error {
	d := json.NewDecoder(io.LimitReader(r.Body, 1<<20))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return failf(http.StatusBadRequest, "%v", err)
	}
	return nil
}
