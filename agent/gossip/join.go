package gossip

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// joinsAtOnce bounds the joins under way: an address that swallows packets
// must not hold up the others.
const joinsAtOnce = 4

// seedName stands for the unknown name of a member that is joined by address:
// memberlist wants a name, and only probes compare it.
const seedName = "seed"

// keepJoined looks for members that should be there and are not, until ctx
// ends: quickly while this agent is alone or has not yet exchanged state with
// anybody, else every rejoinEvery. memberlist itself gives a dead member up
// after a while, so that without this two halves of a long partition would
// never find each other again.
func (g *Gossip) keepJoined(ctx context.Context) {
	wait, joined := joinBackoff, false
	for {
		n, tried := g.join(ctx, !joined)
		joined = joined || n > 0
		if ctx.Err() != nil {
			return
		}
		pause := time.Duration((0.75 + rand.Float64()/2) * float64(rejoinEvery)) // not in step with others: the API's limit is one for all
		if g.alone() || !joined {
			pause = wait
			wait = min(2*wait, joinBackoffMax)
			g.log.Debug("nobody found yet", "tried", tried, "retry_in", pause)
		} else {
			wait = joinBackoff
		}
		if n > 0 {
			g.log.Info("joined", "reached", n, "members", len(g.members.living()))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// join exchanges state with the seeds and the missing members that are not
// known alive, and returns how many were reached and tried. One success
// usually makes the rest of the list known, so that few exchanges happen. With
// first, members that are known alive are as good, and so is whoever sends
// packets: an agent without seeds that restarts, quicker than it is missed, is
// probed at once, but is told of the others only at memberlist's next exchange,
// half a minute later.
func (g *Gossip) join(ctx context.Context, first bool) (reached, tried int) {
	seedCtx, cancel := context.WithTimeout(ctx, seedTimeout)
	defer cancel()
	_, port, _ := net.SplitHostPort(g.Addr().String())
	todo := resolve(seedCtx, net.DefaultResolver, g.opts.Seeds(seedCtx), port)
	todo = append(todo, g.members.missing()...)
	self := g.Addr()
	if first {
		for a := range g.members.living() {
			todo = append(todo, a)
		}
		todo = append(todo, g.net.heardFrom()...)
	}
	rand.Shuffle(len(todo), func(i, j int) { todo[i], todo[j] = todo[j], todo[i] })

	var mu sync.Mutex // guards seen, reached, tried
	seen := map[netip.AddrPort]bool{}
	var group errgroup.Group
	group.SetLimit(joinsAtOnce)
	for _, a := range todo {
		group.Go(func() error {
			mu.Lock()
			skip := seen[a] || ctx.Err() != nil || a == self || (g.members.living()[a] && !(first && reached == 0))
			seen[a] = true
			if !skip {
				tried++
			}
			mu.Unlock()
			if skip {
				return nil
			}
			if _, err := g.list.Join([]string{seedName + "/" + a.String()}); err != nil {
				g.metrics.joins.WithLabelValues("failed").Inc()
				g.log.Debug("join failed", "address", a.String(), "error", err)
				return nil
			}
			g.metrics.joins.WithLabelValues("ok").Inc()
			mu.Lock()
			reached++
			mu.Unlock()
			return nil
		})
	}
	group.Wait() // the functions return no error
	return reached, tried
}

// resolve turns host[:port] into addresses; names that do not resolve are left
// out. memberlist must not see names: it would ask a DNS server over TCP for
// ANY first.
func resolve(ctx context.Context, r *net.Resolver, seeds []string, port string) []netip.AddrPort {
	var as []netip.AddrPort
	for _, s := range seeds {
		host, p := splitHostPort(s, port)
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			continue
		}
		if ip, err := netip.ParseAddr(host); err == nil {
			as = append(as, netip.AddrPortFrom(ip.Unmap(), uint16(n)))
			continue
		}
		ips, err := r.LookupNetIP(ctx, "ip", host)
		if err != nil {
			continue
		}
		for _, ip := range ips {
			as = append(as, netip.AddrPortFrom(ip.Unmap(), uint16(n)))
		}
	}
	return as
}

// splitHostPort accepts host, host:port, IPv6 with and without brackets.
func splitHostPort(s, port string) (string, string) {
	if _, err := netip.ParseAddr(s); err == nil {
		return s, port
	}
	if h, p, err := net.SplitHostPort(s); err == nil {
		return h, p
	}
	return s, port
}
