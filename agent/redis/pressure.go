package redis

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	proberedis "flymesh/probes/redis"
)

// Pressure says what fills the memory of a server.
type Pressure struct {
	Machine string `json:"machine"`
	Role    string `json:"role"` // primary | replica

	Used          int64   `json:"used"`      // bytes, as maxmemory counts them
	Limit         int64   `json:"limit"`     // maxmemory; 0: none
	System        int64   `json:"system"`    // memory of the machine
	Peak          int64   `json:"peak"`      // of Used
	Uncounted     int64   `json:"uncounted"` // buffers of replicas and AOF, beside the limit
	Fragmentation int64   `json:"fragmentation"`
	Policy        string  `json:"policy"`
	Evicted       float64 `json:"evicted"` // keys, since the server started
	Refused       float64 `json:"refused"` // writes for want of memory, since the server started

	Keys    int64     `json:"keys"`
	Scanned int64     `json:"scanned"` // of Keys; the rest is an estimate
	Groups  []Group   `json:"groups"`  // by bytes, the largest first
	Biggest []Biggest `json:"biggest"`
	Queues  []Queue   `json:"queues"`
	Others  []int     `json:"others"` // databases beside 0 that hold keys
	Advice  []string  `json:"advice"`
}

// Group is the keys of one prefix.
type Group struct {
	Prefix  string  `json:"prefix"`
	Keys    float64 `json:"keys"`         // estimate
	Bytes   float64 `json:"bytes"`        // estimate
	Lasting float64 `json:"lasting"`      // share of its keys without a time to live
	Idle    float64 `json:"idle_seconds"` // median time since the last use; -1: not known under this policy
	Queue   bool    `json:"queue"`
	sample  int
	lasting int
	bytes   int64
	idles   []time.Duration
}

// Biggest is one large key.
type Biggest struct {
	Key   string  `json:"key"`
	Type  string  `json:"type"`
	Bytes int64   `json:"bytes"`
	TTL   float64 `json:"ttl_seconds"`  // -1: none
	Idle  float64 `json:"idle_seconds"` // -1: not known
}

const (
	mostGroups  = 12
	mostBiggest = 10
	full        = 0.7 // of the limit: from there on somebody should act
)

// Pressure samples the keys of database 0 for at most some seconds. The order
// of a scan is that of hashes, so what it has seen stands for the rest.
func (r *Redis) Pressure(ctx context.Context) (Pressure, error) {
	c, err := r.server.Open(ctx)
	if err != nil {
		return Pressure{}, err
	}
	defer c.Close()
	info, err := c.Info(ctx)
	if err != nil {
		return Pressure{}, fmt.Errorf("info: %w", err)
	}
	p := Pressure{Role: "primary", Groups: []Group{}, Biggest: []Biggest{}, Queues: []Queue{}, Others: []int{}, Advice: []string{}}
	if info["role"] == "slave" {
		p.Role = "replica"
	}
	whole := func(name string) int64 { x, _ := info.Number(name); return int64(x) } // absent: 0, an older server
	p.Used, p.Limit, p.System, p.Peak = whole("used_memory"), whole("maxmemory"), whole("total_system_memory"), whole("used_memory_peak")
	p.Uncounted, p.Fragmentation, p.Policy = whole("mem_not_counted_for_evict"), max(0, whole("mem_fragmentation_bytes")), info["maxmemory_policy"]
	p.Evicted, _ = info.Number("evicted_keys")
	p.Refused = info.Errors("OOM")
	for _, db := range databases(info) {
		if db != 0 {
			p.Others = append(p.Others, db)
		}
	}
	if p.Keys, err = c.DBSize(ctx).Result(); err != nil {
		return p, fmt.Errorf("count keys: %w", err)
	}
	if err := r.sample(ctx, c, &p); err != nil {
		return p, err
	}
	if p.Queues, _, err = r.queuesIn(ctx, c); err != nil {
		return p, err
	}
	for i, q := range p.Queues {
		for _, g := range p.Groups {
			if g.Prefix == q.Prefix+":*" {
				p.Queues[i].Bytes = int64(g.Bytes)
			}
		}
	}
	p.Advice = p.advise()
	return p, nil
}

func (r *Redis) sample(ctx context.Context, c *proberedis.Session, p *Pressure) error {
	groups := map[string]*Group{}
	var biggest []key
	_, err := scan(ctx, c, 0, "*", "", batch, workFor, func(names []string) (bool, error) {
		keys, err := look(ctx, c, names)
		for _, k := range keys {
			p.Scanned++
			name := r.group(k.name)
			g := groups[name]
			if g == nil {
				g = &Group{Prefix: name, Queue: r.ofQueue(k.name) || strings.HasPrefix(name, "bull:") || strings.HasPrefix(name, "{bull}:")}
				groups[name] = g
			}
			g.add(k)
		}
		biggest = append(biggest, keys...)
		slices.SortFunc(biggest, func(a, b key) int { return cmp.Or(cmp.Compare(b.bytes, a.bytes), strings.Compare(a.name, b.name)) })
		biggest = biggest[:min(len(biggest), mostBiggest)]
		return true, err
	})
	if err != nil {
		return err
	}
	scale := 1.0
	if p.Scanned > 0 {
		scale = max(1, float64(p.Keys)/float64(p.Scanned))
	}
	for _, g := range groups {
		p.Groups = append(p.Groups, g.sum(scale))
	}
	slices.SortFunc(p.Groups, func(a, b Group) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), strings.Compare(a.Prefix, b.Prefix))
	})
	p.Groups = p.Groups[:min(len(p.Groups), mostGroups)]
	for _, k := range biggest {
		p.Biggest = append(p.Biggest, Biggest{Key: k.name, Type: k.kind, Bytes: k.bytes, TTL: seconds(k.ttl), Idle: seconds(k.idle)})
	}
	return nil
}

// group is the pattern that a key belongs to: a queue's keys together, of the
// others all up to the first colon.
func (r *Redis) group(name string) string {
	for _, q := range r.queues {
		if strings.HasPrefix(name, q+":") {
			return q + ":*"
		}
	}
	first, tail, ok := strings.Cut(name, ":")
	if !ok {
		return "(no prefix)"
	}
	if second, _, ok := strings.Cut(tail, ":"); ok && (first == "bull" || first == "{bull}") {
		return first + ":" + second + ":*"
	}
	return first + ":*"
}

const idlesKept = 1000 // of a group, for the median

func (g *Group) add(k key) {
	g.sample++
	g.bytes += k.bytes
	if k.ttl < 0 {
		g.lasting++
	}
	if k.idle >= 0 && len(g.idles) < idlesKept {
		g.idles = append(g.idles, k.idle)
	}
}

func (g *Group) sum(scale float64) Group {
	out := Group{Prefix: g.Prefix, Queue: g.Queue, Idle: -1}
	out.Keys, out.Bytes, out.Lasting = scale*float64(g.sample), scale*float64(g.bytes), float64(g.lasting)/float64(g.sample)
	if n := len(g.idles); n > 0 {
		slices.Sort(g.idles)
		out.Idle = g.idles[n/2].Seconds()
	}
	return out
}

// seconds is -1 for what is not there.
func seconds(d time.Duration) float64 {
	if d < 0 {
		return -1
	}
	return d.Seconds()
}

// advise says what would help, in the order in which to do it.
func (p Pressure) advise() []string {
	advice := []string{}
	say := func(format string, args ...any) { advice = append(advice, fmt.Sprintf(format, args...)) }
	if strings.HasPrefix(p.Policy, "allkeys-") && len(p.Queues) > 0 {
		say("%s may evict jobs of %s: agentctl redis eviction volatile-lru", p.Policy, p.Queues[0].Prefix)
	}
	if p.Limit == 0 {
		say("there is no maxmemory: the kernel ends Redis when the machine is full; start it with --maxmemory below the machine's memory")
	} else if share := float64(p.Used) / float64(p.Limit); share > full {
		for _, g := range p.Groups {
			if !g.Queue && g.Lasting > 0.5 && g.Prefix != "(no prefix)" {
				say("%s takes %.0f %% and most of it never ends: agentctl redis trim --match '%s' --idle 168h", g.Prefix, 100*g.Bytes/float64(p.Used), g.Prefix)
				break
			}
		}
		say("memory is at %.0f %% of its limit; if nothing can go, a larger machine is the way: more machines do not share it", 100*share)
	}
	if p.Policy == "volatile-lru" && p.lasting() > 0.95 {
		say("%s evicts keys with a time to live alone, and almost none has one: it acts as noeviction", p.Policy)
	}
	if p.Refused > 0 {
		say("%.0f writes were refused for want of memory since Redis started", p.Refused)
	}
	return advice
}

// lasting is the share of all keys without a time to live.
func (p Pressure) lasting() float64 {
	all, lasting := 0.0, 0.0
	for _, g := range p.Groups {
		all, lasting = all+g.Keys, lasting+g.Keys*g.Lasting
	}
	if all == 0 {
		return 0
	}
	return lasting / all
}
