package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"
	"time"
)

type raftCmd struct {
	Members  raftMembersCmd  `cmd:"" help:"show the voters as this machine knows them"`
	Epoch    raftEpochCmd    `cmd:"" help:"show the epoch, the cluster and the leader as this machine knows them"`
	Transfer raftTransferCmd `cmd:"" help:"have the leader hand over to another voter"`
	Recover  raftRecoverCmd  `cmd:"" help:"found the next epoch on this machine, without proof that the old one is dead"`
}

type raftMembersCmd struct {
	JSON bool `help:"print JSON"`
}

// Run prints the voters.
func (c *raftMembersCmd) Run(s *session) error {
	r, err := s.client.Raft(s.ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return json.NewEncoder(s.out).Encode(r)
	}
	t := tabwriter.NewWriter(s.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "VOTER\tBOOT\tALIVE\tLEADS")
	for _, m := range r.Members {
		leads := r.Leader != nil && r.Leader.Machine == m.Machine
		fmt.Fprintf(t, "%s\t%.8s\t%s\t%s\n", m.Machine, m.Boot, yes(m.Alive), yes(leads))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if r.Leader == nil && r.Reason != "" {
		_, err = fmt.Fprintf(s.out, "no leader: %s\n", r.Reason)
	}
	return err
}

type raftEpochCmd struct {
	JSON bool `help:"print JSON"`
}

// Run prints the epoch.
func (c *raftEpochCmd) Run(s *session) error {
	r, err := s.client.Raft(s.ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return json.NewEncoder(s.out).Encode(r)
	}
	lead := "nobody"
	if r.Leader != nil {
		lead = r.Leader.Machine
	}
	since := "-"
	if r.Since != nil {
		since = time.Since(*r.Since).Round(time.Second).String()
	}
	_, err = fmt.Fprintf(s.out, "epoch %d, cluster %s, term %d; %s leads for %s; machine %s is %s\n",
		r.Epoch, r.Cluster, r.Term, lead, since, r.Machine, r.Role)
	return err
}

type raftTransferCmd struct{}

// Run hands leadership over.
func (c *raftTransferCmd) Run(s *session) error {
	a, err := s.client.RaftTransfer(s.ctx)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(s.out, a.Text)
	return err
}

type raftRecoverCmd struct {
	Yes bool `help:"I know that the old voters will never come back; what only they remember is lost"`
}

// Run founds the next epoch.
func (c *raftRecoverCmd) Run(s *session) error {
	if !c.Yes {
		return usage("raft recover: this founds a new epoch without proof that the old voters are dead; what only they remember (pauses, cooldowns, events) is lost. Say --yes if that is what you want")
	}
	a, err := s.client.RaftRecover(s.ctx)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(s.out, a.Text)
	return err
}
