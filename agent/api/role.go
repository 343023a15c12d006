package api

import (
	"context"
	"net/http"
	"net/url"

	"flymesh/probes/report"
)

// Paths of role-aware commands.
const (
	PathRole    = "/v1/role"    // POST RoleRequest -> RoleAnswer, on the unix socket alone
	PathPrimary = "/v1/primary" // GET ?service=NAME -> Primary
)

// RoleEnv is the variable in which a program of a role-aware command finds
// which one it is: primary or replica.
const RoleEnv = "FLYMESH_ROLE"

// RoleLock names the lock under which a service's primary runs.
func RoleLock(service string) string { return "role/" + service }

// RoleRequest tells the agent what the role-aware command runs, and asks what
// it should.
type RoleRequest struct {
	Role report.AppRole `json:"role"`
}

// RoleAnswer says who should run the primary of this machine's service.
type RoleAnswer struct {
	Self    string  `json:"self"` // this machine
	Lock    string  `json:"lock"` // to be held meanwhile
	Primary Primary `json:"primary"`
}

// Primary is the machine that is pinned as its service's primary.
type Primary struct {
	Service string `json:"service"`
	Machine string `json:"machine"` // empty: none is chosen yet
}

// roleRoutes adds the handlers of roles to a door.
func (s *Server) roleRoutes(door string, handle func(method, path string, h http.HandlerFunc)) {
	b := s.o.Locks
	handle("GET", PathPrimary, s.leading(maxBody, func(r *http.Request, _ []byte) (work, error) {
		name := r.URL.Query().Get("service")
		if name == "" {
			return nil, badRequest("service is missing: %s?service=NAME", PathPrimary)
		}
		return func(ctx context.Context) (any, error) { return b.Primary(ctx, name) }, nil
	}))
	if door == "socket" {
		handle("POST", PathRole, local(s, func(ctx context.Context, q RoleRequest) (any, error) { return b.Role(ctx, q) }))
	}
}

// Role tells the agent what runs, and asks what should.
func (c *Client) Role(ctx context.Context, r RoleRequest) (RoleAnswer, error) {
	return post[RoleAnswer](ctx, c, PathRole, r)
}

// Primary asks who is a service's primary.
func (c *Client) Primary(ctx context.Context, service string) (Primary, error) {
	return get[Primary](ctx, c, PathPrimary+"?"+url.Values{"service": {service}}.Encode())
}
