package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"flymesh/agent/api"
	"flymesh/leader"
	"flymesh/raftstore"
)

// leaderStore shows the raft adapter as the leader's port.
type leaderStore struct{ *raftstore.Store }

var _ leader.Store = leaderStore{}

// MayStop takes the machine's vote away first where it has one.
func (s leaderStore) MayStop(ctx context.Context, machine string) error {
	err := s.Store.MayStop(machine)
	if errors.Is(err, raftstore.ErrVoter) {
		return s.Demote(ctx, machine)
	}
	return err
}

// Roles says which machines vote and which one leads.
func (s leaderStore) Roles() (voters []string, lead string) {
	st := s.Store.Status()
	for _, v := range st.Voters {
		voters = append(voters, v.Machine)
	}
	return voters, st.Leader
}

// terms turns the adapter's leaderships into the leader's.
func terms(ctx context.Context, in <-chan raftstore.Term) <-chan leader.Term {
	out := make(chan leader.Term)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case t := <-in:
				select {
				case out <- leader.Term{Number: t.Number, Epoch: t.Epoch, Context: t.Context}:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out
}

// quorum tells the voters as this machine knows them.
func (a *agent) quorum() api.Quorum {
	st := a.store.Status()
	q := api.Quorum{Voters: []string{}, Healthy: st.Healthy}
	for _, v := range st.Voters {
		q.Voters = append(q.Voters, v.Machine)
	}
	slices.Sort(q.Voters)
	return q
}

func deadVoters(vs []raftstore.VoterStatus) []string {
	var out []string
	for _, v := range vs {
		if !v.Alive {
			out = append(out, v.Machine)
		}
	}
	return out
}

// agents reaches other machines' agents over the mesh API, and this one
// directly.
type agents struct{ a *agent }

var _ leader.Agents = agents{}

func (g agents) Drain(ctx context.Context, machine string, deadline time.Duration) (leader.DrainResult, error) {
	if machine == g.a.self.ID {
		return g.a.Drain(ctx, api.DrainRequest{Deadline: deadline})
	}
	c, err := g.to(machine)
	if err != nil {
		return leader.DrainResult{}, err
	}
	return c.Drain(ctx, api.DrainRequest{Deadline: deadline})
}

func (g agents) Undrain(ctx context.Context, machine string) error {
	if machine == g.a.self.ID {
		_, err := g.a.Drain(ctx, api.DrainRequest{Undo: true})
		return err
	}
	c, err := g.to(machine)
	if err != nil {
		return err
	}
	_, err = c.Drain(ctx, api.DrainRequest{Undo: true})
	return err
}

func (g agents) Admit(ctx context.Context, machine, boot string) error {
	return g.admit(ctx, machine, api.AdmitRequest{Boot: boot})
}

func (g agents) Revoke(ctx context.Context, machine, boot string) error {
	return g.admit(ctx, machine, api.AdmitRequest{Boot: boot, Revoke: true})
}

func (g agents) admit(ctx context.Context, machine string, r api.AdmitRequest) error {
	if machine == g.a.self.ID {
		return g.a.Admit(ctx, r)
	}
	c, err := g.to(machine)
	if err != nil {
		return err
	}
	return c.Admit(ctx, r)
}

func (g agents) to(machine string) (*api.Client, error) {
	m, ok := g.a.members()[machine]
	if !ok || !m.Alive {
		return nil, fmt.Errorf("reach agent of %s: it is not in the mesh now", machine)
	}
	return g.a.dial(m.MeshAddr), nil
}

// leaderKnown says whether somebody leads the mesh as far as this machine knows.
func (a *agent) leaderKnown() bool { return a.store != nil && a.store.LeaderKnown() }
