package gossip

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Discovery finds the addresses of other agents: by an explicit list, by the
// private DNS of the apps and, when DNS names nobody but this machine, by the
// Machines API, whose rate is limited.
type Discovery struct {
	Apps     []string                                    // looked up as <app>.internal
	Peers    []string                                    // host or host:port
	Lookup   func(ctx context.Context) ([]string, error) // by the Machines API: host or host:port; nil: not asked
	Port     int                                         // gossip port of addresses without one; 0: left to the member list
	Self     string                                      // own IP address: left out, and does not count as somebody
	Resolver *net.Resolver                               // nil: the system's
	Logger   *slog.Logger
}

// lookupTimeout bounds DNS, whose names are asked for at the same time, and
// then the API.
const lookupTimeout = 2 * time.Second

// Seeds returns host:port (or host) of all that is found, sorted, each once. A source
// that fails is logged and left out. DNS lags behind the truth: a machine just
// started may be missing, one just stopped present.
func (d Discovery) Seeds(ctx context.Context) []string {
	r := d.Resolver
	if r == nil {
		r = net.DefaultResolver
	}
	log := d.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	var mu sync.Mutex // guards found
	var found []string
	var wg sync.WaitGroup
	for _, app := range d.Apps {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
			defer cancel()
			ips, err := r.LookupNetIP(ctx, "ip", app+".internal.")
			if err != nil {
				log.Debug("lookup failed", "app", app, "error", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for _, ip := range ips {
				found = append(found, ip.Unmap().String())
			}
		})
	}
	wg.Wait()
	if d.Lookup != nil && len(d.merge(found)) == 0 {
		ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
		defer cancel()
		byAPI, err := d.Lookup(ctx)
		if err != nil {
			log.Debug("lookup by API failed", "error", err)
		}
		found = append(found, byAPI...)
	}
	return d.merge(append(found, d.Peers...))
}

// merge adds missing ports, drops this machine and repeats, and sorts.
func (d Discovery) merge(found []string) []string {
	port := ""
	if d.Port > 0 {
		port = strconv.Itoa(d.Port)
	}
	var seeds []string
	for _, s := range found {
		host, p := splitHostPort(s, port)
		switch {
		case host == "" || host == d.Self && p == port:
		case p == "":
			seeds = append(seeds, host)
		default:
			seeds = append(seeds, net.JoinHostPort(host, p))
		}
	}
	slices.Sort(seeds)
	return slices.Compact(seeds)
}
