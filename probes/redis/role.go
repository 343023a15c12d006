package redis

import (
	"fmt"
	"strconv"
	"strings"

	"flymesh/probes"
	"flymesh/probes/report"
)

// Replication is where the server stands in its history of writes; false: it
// does not say.
func (i Info) Replication() (report.Replication, bool) {
	c := report.Replication{Replica: i["role"] == "slave"}
	offset, err := strconv.ParseUint(i["master_repl_offset"], 10, 64)
	if err != nil || !c.Replica && i["role"] != "master" {
		return c, false
	}
	c.Offset = offset
	if id := i["master_replid"]; len(id) >= 8 {
		history, _ := strconv.ParseUint(id[:8], 16, 32) // 0 is no history: nothing is equal to it
		c.History = uint32(history)
	}
	if c.Replica {
		c.Linked = i["master_link_status"] == "up"
		if x, err := i.Number("master_last_io_seconds_ago"); err == nil && x >= 0 { // -1: the link is down
			c.LagSeconds = report.Of(x)
		} else if x, err := i.Number("master_link_down_since_seconds"); err == nil && x >= 0 {
			c.LagSeconds = report.Of(x)
		}
		return c, true
	}
	if online, behind, silent := i.replicas(); online > 0 {
		c.Linked, c.LagBytes, c.LagSeconds = true, report.Of(behind), report.Of(silent)
	}
	return c, true
}

// replicas is how many a primary feeds, how many bytes the last of them is
// behind and how long ago the most silent one was heard.
func (i Info) replicas() (online, behind, silent float64) {
	head, _ := i.Number("master_repl_offset")
	n, _ := i.Number("connected_slaves") // absent: none
	for k := range int(n) {
		s := i.sub("slave" + strconv.Itoa(k))
		if s["state"] != "online" {
			continue
		}
		online++
		offset, err1 := strconv.ParseFloat(s["offset"], 64)
		lag, err2 := strconv.ParseFloat(strings.TrimSpace(s["lag"]), 64)
		if err1 == nil && err2 == nil {
			behind, silent = max(behind, head-offset), max(silent, lag)
		}
	}
	return online, behind, silent
}

// Primary returns the address that a replica copies.
func (i Info) Primary() (host, port string) { return i["master_host"], i["master_port"] }

// Writable says whether the server takes writes of clients; why is what makes
// it so.
func (i Info) Writable() (yes bool, why string) {
	switch {
	case i["role"] != "slave":
		return true, "its role is " + i["role"]
	case i["slave_read_only"] != "1":
		return true, "replica-read-only is off"
	}
	return false, ""
}

// replication tells the role as facts, and on a replica the link to its
// primary, on a primary the lag of the replica that is furthest behind. A
// replica without its link is not ready: reason says since when.
func replication(info Info) (c *report.Replication, facts []probes.Fact, reason string) {
	r, ok := info.Replication()
	if !ok {
		return nil, nil, ""
	}
	if !r.Replica {
		facts = append(facts, word("role", "primary"))
		n, err := info.Number("connected_slaves")
		if err != nil {
			return &r, facts, ""
		}
		facts = append(facts, fact("replicas_connected", n))
		if n > 0 {
			online, _, _ := info.replicas()
			facts = append(facts, fact("replicas_online", online))
		}
		if r.Linked {
			facts = append(facts, fact("replica_lag_bytes", r.LagBytes.X), fact("replica_lag_seconds", r.LagSeconds.X))
		}
		return &r, facts, ""
	}
	up := 0.0
	if r.Linked {
		up = 1
	}
	facts = append(facts, word("role", "replica"), fact("primary_link_up", up))
	switch {
	case r.Linked:
		if r.LagSeconds.OK {
			facts = append(facts, fact("primary_silent_seconds", r.LagSeconds.X))
		}
		return &r, facts, ""
	case info["master_sync_in_progress"] == "1":
		return &r, facts, "replica copies its primary"
	}
	reason = "replica has no link to its primary"
	if r.LagSeconds.OK {
		reason += fmt.Sprintf(" for %.0fs", r.LagSeconds.X)
		facts = append(facts, fact("primary_link_down_seconds", r.LagSeconds.X))
	}
	return &r, facts, reason
}
