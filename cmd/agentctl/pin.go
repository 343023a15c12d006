package main

import "flymesh/agent/api"

type pinCmd struct {
	Service string `arg:"" help:"name in mesh.toml, one with pinned = true"`
	Machine string `arg:"" help:"ID of one of its started machines"`
	Reason  string `placeholder:"T" help:"why, for the events"`
}

// Run moves the primary.
func (c *pinCmd) Run(s *session) error {
	a, err := s.client.Pin(s.ctx, api.PinRequest{Service: c.Service, Machine: c.Machine, Reason: c.Reason, By: who()})
	return s.accepted(a, err)
}
