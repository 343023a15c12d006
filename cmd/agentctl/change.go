package main

import (
	"cmp"
	"fmt"
	"os"
	"strconv"
	"time"

	"flymesh/agent/api"
)

type scaleCmd struct {
	Service string `arg:"" help:"name in mesh.toml"`
	Size    string `arg:"" optional:"" help:"+N or -N machines, or N machines in all"`
	Fewer   string `hidden:""`
	Reason  string `placeholder:"T" help:"why, for the events"`
}

// Run asks for a size and prints what will happen.
func (c *scaleCmd) Run(s *session) error {
	r := api.ScaleRequest{Service: c.Service, Reason: c.Reason, By: who()}
	size := cmp.Or(c.Size, c.Fewer)
	if c.Size != "" && c.Fewer != "" {
		return usage("scale %s %s %s: give one size", c.Service, c.Size, c.Fewer)
	}
	n, err := strconv.Atoi(size)
	switch {
	case size == "":
		return usage("scale %s: the size is missing; use +1, -1 or 3", c.Service)
	case err != nil || n < -1000 || n > 1000 || n == 0 && size != "0":
		return usage("scale %s %s: %q is not a size; use +1, -1 or 3", c.Service, size, size)
	case size[0] == '+' || size[0] == '-':
		r.Delta = n
	default:
		r.Target = &n
	}
	a, err := s.client.Scale(s.ctx, r)
	return s.accepted(a, err)
}

type pauseCmd struct {
	Service string `arg:"" help:"name in mesh.toml"`
	For     string `default:"30m" placeholder:"30m" help:"how long; a pause always has an end"`
	Reason  string `placeholder:"T" help:"why, for the events"`
}

// Run stops scaling of a service for a while.
func (c *pauseCmd) Run(s *session) error {
	d, err := time.ParseDuration(c.For)
	if err != nil || d <= 0 {
		return usage("pause %s --for %s: %q is not a duration above 0; use 30m, 2h or 90s", c.Service, c.For, c.For)
	}
	a, err := s.client.Pause(s.ctx, api.PauseRequest{Service: c.Service, For: d, Reason: c.Reason, By: who()})
	return s.accepted(a, err)
}

type resumeCmd struct {
	Service string `arg:"" help:"name in mesh.toml"`
	Reason  string `placeholder:"T" help:"why, for the events"`
}

// Run ends a pause.
func (c *resumeCmd) Run(s *session) error {
	a, err := s.client.Resume(s.ctx, api.PauseRequest{Service: c.Service, Reason: c.Reason, By: who()})
	return s.accepted(a, err)
}

func (s *session) accepted(a api.Accepted, err error) error {
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(s.out, "%s (event %d)\n", a.Text, a.Index)
	return err
}

// who is the person, for the events: the name where there is one, else the
// number. It is a courtesy, not a proof: the socket's mode says who may ask.
func who() string {
	return cmp.Or(os.Getenv("SUDO_USER"), os.Getenv("USER"), fmt.Sprintf("uid %d", os.Getuid()))
}
