package agent

import (
	"context"
	"fmt"

	"flymesh/agent/api"
	"flymesh/raftstore"
)

var _ api.Raft = (*agent)(nil)

// RaftStatus tells what this machine knows of the agreement.
func (a *agent) RaftStatus() api.RaftStatus {
	st := a.store.Status()
	r := api.RaftStatus{
		Machine: a.self.ID, Role: string(st.Role), Epoch: st.Epoch, Cluster: st.Cluster, Term: st.Term,
		Healthy: st.Healthy, Members: []api.RaftMember{}, Reason: st.Reason,
	}
	if st.Leader != "" {
		r.Leader = &api.LeaderRef{Machine: st.Leader}
	}
	if since := st.LeaderSince; !since.IsZero() && st.Leader != "" {
		r.Since = ptr(since.UTC())
	} else if !st.NoLeaderSince.IsZero() {
		r.Since = ptr(st.NoLeaderSince.UTC())
	}
	for _, v := range st.Voters {
		r.Members = append(r.Members, api.RaftMember{Machine: v.Machine, Boot: v.Boot, Alive: v.Alive})
	}
	return r
}

// RaftTransfer hands leadership to another voter.
func (a *agent) RaftTransfer(ctx context.Context) (api.Accepted, error) {
	if a.store.Status().Role != raftstore.Leader {
		return api.Accepted{}, api.ErrNoLeader
	}
	if err := a.store.Transfer(ctx); err != nil {
		return api.Accepted{}, err
	}
	return api.Accepted{Text: fmt.Sprintf("machine %s has handed over", a.self.ID)}, nil
}

// RaftRecover founds the next epoch here by a person's order.
func (a *agent) RaftRecover(ctx context.Context) (api.Accepted, error) {
	if !a.eligible() {
		return api.Accepted{}, badRequest("recover on machine %s: it may not vote; run this on a machine of a service with vote = true that holds the tokens", a.self.ID)
	}
	if l := a.store.Status().Leader; l != "" {
		return api.Accepted{}, badRequest("recover on machine %s: machine %s leads the mesh; there is nothing to recover", a.self.ID, l)
	}
	if err := a.store.Recover(ctx); err != nil {
		return api.Accepted{}, err
	}
	st := a.store.Status()
	return api.Accepted{Text: fmt.Sprintf("machine %s has founded epoch %d", a.self.ID, st.Epoch)}, nil
}
