package gossip

import (
	"context"
	"fmt"

	"github.com/hashicorp/memberlist"

	"flymesh/probes/report"
)

// kindReport is the first byte of a user message that carries a report.
const kindReport = 1

const (
	inboxSize = 1024 // reports heard and not yet delivered; above that they are dropped
	maxUrgent = 16   // urgent sends at once; above that they are sent as the others
)

// Report sends the report to every living member that hears reports, as one
// packet each, and hands it to OnReport. An urgent one is also sent over a
// stream, which fails only if the receiver is not reached. Report does not
// wait; it fails only when the report cannot be encoded.
func (g *Gossip) Report(r report.Report, urgent bool) error {
	b, err := r.Encode()
	if err != nil {
		return fmt.Errorf("send report: %w", err)
	}
	g.take(r)
	msg := append([]byte{kindReport}, b...)
	for _, n := range g.members.hearers() {
		if urgent {
			g.sendUrgent(n, msg)
			continue
		}
		g.sendPacket(n, msg)
	}
	return nil
}

func (g *Gossip) sendPacket(n *memberlist.Node, msg []byte) {
	if err := g.list.SendBestEffort(n, msg); err != nil {
		g.metrics.sent.WithLabelValues("failed").Inc()
		g.log.Debug("report not sent", "member", n.Name, "error", err)
		return
	}
	g.metrics.sent.WithLabelValues("packet").Inc()
}

// sendUrgent sends over a stream in a goroutine of its own, or as a packet
// when too many are under way. The transport puts a deadline on the stream.
func (g *Gossip) sendUrgent(n *memberlist.Node, msg []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return
	}
	select {
	case g.urgent <- struct{}{}:
	default:
		g.sendPacket(n, msg)
		return
	}
	g.sends.Add(1)
	go func() {
		defer g.sends.Done()
		defer func() { <-g.urgent }()
		if err := g.list.SendReliable(n, msg); err != nil {
			g.metrics.sent.WithLabelValues("failed").Inc()
			g.log.Warn("urgent report not sent", "member", n.Name, "error", err)
			return
		}
		g.metrics.sent.WithLabelValues("stream").Inc()
	}()
}

// take queues a report for OnReport and drops it if nobody keeps up.
func (g *Gossip) take(r report.Report) {
	select {
	case g.inbox <- r:
	default:
		g.metrics.dropped.WithLabelValues("inbox_full").Inc()
	}
}

// deliver calls OnReport, never from within memberlist.
func (g *Gossip) deliver(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-g.inbox:
			if g.opts.OnReport != nil {
				g.opts.OnReport(r)
			}
		}
	}
}

// delegate is what memberlist calls for Meta and user messages.
type delegate struct{ g *Gossip }

var _ memberlist.Delegate = (*delegate)(nil)

// NodeMeta implements memberlist.Delegate. Open and Update let nothing pass
// that is longer than memberlist's limit.
func (d *delegate) NodeMeta(int) []byte { return d.g.members.selfRaw() }

// NotifyMsg implements memberlist.Delegate. The buffer belongs to memberlist;
// Decode copies what it keeps. It never blocks: that would hold up the probes.
func (d *delegate) NotifyMsg(b []byte) {
	if len(b) < 1 || len(b) > 1+report.MaxSize || b[0] != kindReport {
		d.g.metrics.dropped.WithLabelValues("garbage").Inc()
		return
	}
	r, err := report.Decode(append([]byte(nil), b[1:]...))
	if err != nil || r.Machine == "" {
		d.g.metrics.dropped.WithLabelValues("garbage").Inc()
		d.g.log.Debug("report dropped", "error", err)
		return
	}
	d.g.metrics.received.Inc()
	d.g.take(r)
}

// GetBroadcasts implements memberlist.Delegate: nothing is broadcast.
func (d *delegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState implements memberlist.Delegate: members alone are synchronised.
func (d *delegate) LocalState(bool) []byte { return nil }

// MergeRemoteState implements memberlist.Delegate.
func (d *delegate) MergeRemoteState([]byte, bool) {}
