// Package bull measures a Bull queue in Redis, the queue between n8n's main
// and its workers (Bull 4: https://github.com/OptimalBits/bull): the depth is
// wait + paused. Its priority set holds the prioritised jobs of wait a second
// time and is not counted; active may hold jobs of workers that died.
//
// The depth is one number for the whole service. A missing list is an empty
// queue, except where Redis evicts any key it likes (allkeys-*): then the queue
// itself may be what was evicted, and the depth is unknown.
package bull

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"flymesh/probes"
	"flymesh/probes/redis"
	"flymesh/probes/report"
)

// DefaultPrefix is n8n's: QUEUE_BULL_PREFIX "bull" and its queue "jobs". With
// Redis Cluster it is "{bull}:jobs".
const DefaultPrefix = "bull:jobs"

// Options say which queue.
type Options struct {
	Name   string // default "bull"
	Prefix string // of its keys, default DefaultPrefix
	redis.Server
}

// Bull is the prober. It is used from one goroutine.
type Bull struct {
	options Options
	run     string // of the Redis process that evicted is of
	evicted float64
}

// New checks the options and returns the prober.
func New(o Options) (*Bull, error) {
	if o.Name == "" {
		o.Name = "bull"
	}
	if o.Prefix == "" {
		o.Prefix = DefaultPrefix
	}
	if err := o.Check(); err != nil {
		return nil, fmt.Errorf("make bull probe: %w", err)
	}
	return &Bull{options: o}, nil
}

var _ probes.Prober = (*Bull)(nil)

// Name returns the name of the probe.
func (b *Bull) Name() string { return b.options.Name }

// Fields returns the queue.
func (b *Bull) Fields() probes.Field { return probes.Queue }

// Probe reads the queue. It says nothing about readiness where Redis answers;
// a Redis that refuses is not ready.
func (b *Bull) Probe(ctx context.Context) (probes.Reading, error) {
	c, err := b.options.Open(ctx)
	if refusal := (*redis.Refusal)(nil); errors.As(err, &refusal) {
		m := probes.NotReady("redis: " + refusal.Text)
		m.Problems = []string{"queue: " + refusal.Text}
		return m, nil
	}
	if err != nil {
		return probes.Reading{}, fmt.Errorf("redis: %w", err)
	}
	defer c.Close()
	yes := true
	m := probes.Reading{Ready: &yes, QueueScope: report.QueueService}
	lists := map[string]float64{}
	for _, list := range []string{"wait", "paused", "active"} {
		n, err := c.LLen(ctx, b.options.Prefix+":"+list).Result()
		if err != nil {
			m.Problems = append(m.Problems, "queue: "+err.Error())
			return m, nil
		}
		lists[list] = float64(n)
	}
	if err := b.survived(ctx, c); err != nil {
		m.Problems = append(m.Problems, "queue: "+err.Error())
		return m, nil
	}
	m.Queue = report.Of(lists["wait"] + lists["paused"])
	m.Facts = []probes.Fact{{Name: "active_jobs", Value: report.Of(lists["active"])}}
	if age, ok := b.oldest(ctx, c, lists["wait"] > 0); ok {
		m.Facts = append(m.Facts, probes.Fact{Name: "oldest_wait_seconds", Value: report.Of(age)})
	}
	return m, nil
}

// survived says why an empty list may be a lost one: Redis evicted keys since
// the last look, under a policy that spares none.
func (b *Bull) survived(ctx context.Context, c *redis.Session) error {
	info, err := c.Info(ctx)
	if err != nil {
		return err
	}
	evicted, err := info.Number("evicted_keys")
	if err != nil {
		return err
	}
	run, before := b.run, b.evicted
	b.run, b.evicted = info["run_id"], evicted
	if run != b.run {
		before = 0 // all evictions of this process may have hit the queue
	}
	policy := info["maxmemory_policy"]
	if n := evicted - before; n > 0 && strings.HasPrefix(policy, "allkeys-") {
		return fmt.Errorf("redis evicted %.0f keys under %s: jobs may be among them", n, policy)
	}
	return nil
}

// oldest returns how long the job that is next has waited, by the clock of
// Redis; the job's own stamp is that of the machine which enqueued it. It is
// unknown where the job vanished between two calls.
func (b *Bull) oldest(ctx context.Context, c *redis.Session, waiting bool) (seconds float64, ok bool) {
	if !waiting {
		return 0, true
	}
	id, err := c.LIndex(ctx, b.options.Prefix+":wait", -1).Result()
	if err != nil {
		return 0, errors.Is(err, goredis.Nil) // taken meanwhile: nobody waits
	}
	stamp, err := c.HGet(ctx, b.options.Prefix+":"+id, "timestamp").Result()
	if err != nil {
		return 0, false
	}
	ms, err := strconv.ParseFloat(stamp, 64)
	if err != nil {
		return 0, false
	}
	now, err := c.Time(ctx).Result()
	if err != nil {
		return 0, false
	}
	return max(0, float64(now.UnixMilli())-ms) / 1000, true
}
