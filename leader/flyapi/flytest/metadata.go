package flytest

import (
	"maps"
	"net/http"
)

func (s *Server) metadata(c *call) (reply, error) {
	out := map[string]string{}
	err := s.with(c, func(m *machine) error {
		maps.Copy(out, m.config.Metadata)
		return nil
	})
	return reply{code: http.StatusOK, body: out}, err
}

func (s *Server) setMetadata(c *call) (reply, error) {
	var in struct {
		Value string `json:"value"`
	}
	if err := c.read(&in); err != nil {
		return reply{}, err
	}
	return s.writeMetadata(c, func(m *machine) { m.config = withMetadata(m.config, c.key, in.Value) })
}

func (s *Server) deleteMetadata(c *call) (reply, error) {
	return s.writeMetadata(c, func(m *machine) { m.config = withMetadata(m.config, c.key, "") })
}

// writeMetadata changes metadata, which makes no new version and asks no lease.
func (s *Server) writeMetadata(c *call, write func(*machine)) (reply, error) {
	err := s.with(c, func(m *machine) error {
		write(m)
		m.group = groupOf(m.config)
		s.fleet.changedMachine(m)
		return nil
	})
	return reply{code: http.StatusNoContent}, err
}

// metadataInput is the body of PUT and PATCH. updated_at is not documented
// and has no effect here.
type metadataInput struct {
	MachineVersion string             `json:"machine_version"`
	UpdatedAt      string             `json:"updated_at"`
	Metadata       map[string]*string `json:"metadata"`
}

func (s *Server) putMetadata(c *call) (reply, error)   { return s.mergeMetadata(c, true) }
func (s *Server) patchMetadata(c *call) (reply, error) { return s.mergeMetadata(c, false) }

func (s *Server) mergeMetadata(c *call, replace bool) (reply, error) {
	var in metadataInput
	if err := c.read(&in); err != nil {
		return reply{}, err
	}
	err := s.with(c, func(m *machine) error {
		if in.MachineVersion != "" && in.MachineVersion != m.instanceID {
			return preconditionf("machine version mismatch: expected %s, current %s", in.MachineVersion, m.instanceID)
		}
		if replace {
			d := *m.config
			d.Metadata = nil
			m.config = &d
		}
		for k, v := range in.Metadata {
			value := ""
			if v != nil {
				value = *v
			}
			m.config = withMetadata(m.config, k, value)
		}
		m.group = groupOf(m.config)
		s.fleet.changedMachine(m)
		return nil
	})
	return reply{code: http.StatusNoContent}, err
}
