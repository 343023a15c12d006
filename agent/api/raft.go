package api

import (
	"context"
	"net/http"
	"time"
)

// Paths of the agreement itself, on the unix socket; the transfer is also on
// the mesh port, for forwarding.
const (
	PathRaft         = "/v1/raft"          // GET -> RaftStatus, this machine's own view
	PathRaftTransfer = "/v1/raft/transfer" // POST -> Accepted, by the leader
	PathRaftRecover  = "/v1/raft/recover"  // POST -> Accepted, by this machine
)

// RaftStatus is `agentctl raft members --json`: what one machine knows of the
// agreement.
type RaftStatus struct {
	Machine string       `json:"machine"` // whose view it is
	Role    string       `json:"role"`    // leader | voter | nonvoter | candidate | none
	Epoch   uint64       `json:"epoch"`
	Cluster string       `json:"cluster"`
	Term    uint64       `json:"term"`
	Leader  *LeaderRef   `json:"leader"`
	Since   *time.Time   `json:"since"` // since when there is this leader, or none
	Healthy bool         `json:"healthy"`
	Members []RaftMember `json:"members"`
	Reason  string       `json:"reason,omitempty"` // without a leader: what it waits for
}

// RaftMember is one voter.
type RaftMember struct {
	Machine string `json:"machine"`
	Boot    string `json:"boot"`
	Alive   bool   `json:"alive"`
}

// Raft is what the handlers need of the agreement.
type Raft interface {
	RaftStatus() RaftStatus
	// RaftTransfer hands leadership to another voter; only the leader can.
	RaftTransfer(ctx context.Context) (Accepted, error)
	// RaftRecover founds the next epoch on this machine by a person's order,
	// without proof that the old one is dead.
	RaftRecover(ctx context.Context) (Accepted, error)
}

// raftRoutes adds the paths of the agreement to one door.
func (s *Server) raftRoutes(door string, handle func(method, path string, h http.HandlerFunc)) {
	if s.o.Raft == nil {
		return
	}
	handle("POST", PathRaftTransfer, s.leading(maxBody, func(*http.Request, []byte) (work, error) {
		return func(ctx context.Context) (any, error) { return s.o.Raft.RaftTransfer(ctx) }, nil
	}))
	if door != "socket" {
		return
	}
	handle("GET", PathRaft, func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, s.o.Raft.RaftStatus())
	})
	handle("POST", PathRaftRecover, func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), workTimeout)
		defer cancel()
		a, err := s.o.Raft.RaftRecover(ctx)
		if err != nil {
			writeProblem(w, problemOf(err))
			return
		}
		writeJSON(w, http.StatusOK, a)
	})
}

// Raft asks the agent for its view of the agreement.
func (c *Client) Raft(ctx context.Context) (RaftStatus, error) {
	return get[RaftStatus](ctx, c, PathRaft)
}

// RaftTransfer asks the leader to hand over.
func (c *Client) RaftTransfer(ctx context.Context) (Accepted, error) {
	return post[Accepted](ctx, c, PathRaftTransfer, struct{}{})
}

// RaftRecover orders the agent to found the next epoch.
func (c *Client) RaftRecover(ctx context.Context) (Accepted, error) {
	return post[Accepted](ctx, c, PathRaftRecover, struct{}{})
}
