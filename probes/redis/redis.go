// Package redis measures a Redis server by PING and INFO
// (https://redis.io/commands/info/): CPU as the share of one core, because
// Redis runs commands on one thread; memory against maxmemory or, without a
// limit, against the machine's; and as facts what memory alone hides once a
// limit is reached: evictions and refused writes a second, the role, the
// replication link and its lag, the round trip of PING.
package redis

import (
	"context"
	"errors"
	"fmt"

	"flymesh/probes"
	"flymesh/probes/report"
)

// Options say which server.
type Options struct {
	Name string // default "redis"
	Server
}

// Redis is the prober. It is used from one goroutine.
type Redis struct {
	options Options
	last    sample
	trips   []float64 // seconds of the newest PINGs, newest last
}

// sample is what the counters of one server process said.
type sample struct {
	run                         string  // run_id: another one is another process
	cpu, wall                   float64 // seconds by the server's own clocks
	evicted, refused, connects  float64
	haveEvicted, haveConnection bool
}

// New checks the options and returns the prober.
func New(o Options) (*Redis, error) {
	if o.Name == "" {
		o.Name = "redis"
	}
	if err := o.Check(); err != nil {
		return nil, fmt.Errorf("make redis probe: %w", err)
	}
	return &Redis{options: o}, nil
}

var _ probes.Prober = (*Redis)(nil)

// Name returns the name of the probe.
func (r *Redis) Name() string { return r.options.Name }

// Fields returns CPU and memory.
func (r *Redis) Fields() probes.Field { return probes.CPU | probes.Memory }

// Probe connects, asks and disconnects. A server that answers with an error
// (LOADING, NOAUTH) is not ready, with that reason, and neither is a replica
// that has lost its primary: what it holds is old.
func (r *Redis) Probe(ctx context.Context) (probes.Reading, error) {
	c, err := r.options.Open(ctx)
	if refusal := (*Refusal)(nil); errors.As(err, &refusal) {
		m := probes.NotReady(refusal.Text)
		m.Problems = []string{refusal.Text}
		return m, nil
	}
	if err != nil {
		return probes.Reading{}, err
	}
	defer c.Close()
	yes := true
	m := probes.Reading{Ready: &yes}
	m.Facts = append(m.Facts, r.roundTrip(c.Trip))
	info, err := c.Info(ctx)
	if err != nil {
		m.Problems = append(m.Problems, "info: "+err.Error())
		return m, nil
	}
	r.read(info, &m)
	return m, nil
}

// read turns one INFO into a reading, with the rates since the last one.
func (r *Redis) read(info Info, m *probes.Reading) {
	now := sample{run: info["run_id"]}
	last, rateErr := r.last, r.clock(info, &now)
	var err error
	if m.CPU, err = cpu(info, last, &now, rateErr); err != nil {
		m.Problems = append(m.Problems, "cpu: "+err.Error())
	}
	if m.Memory, err = memory(info); err != nil {
		m.Problems = append(m.Problems, "memory: "+err.Error())
	}
	m.Facts = append(m.Facts, pressure(info, last, &now, rateErr)...)
	role, link, reason := replication(info)
	m.Replication = role
	m.Facts = append(m.Facts, link...)
	if reason != "" {
		no := false
		m.Ready, m.Reason = &no, reason
	}
	r.last = now
}

// clock reads the server's wall clock and says why there is no rate since the
// last sample, if there is none.
func (r *Redis) clock(info Info, now *sample) error {
	micros, err := info.Number("server_time_usec")
	if err != nil {
		now.run = "" // the next sample has nothing to compare with either
		return err
	}
	now.wall = micros / 1e6
	switch last := r.last; {
	case last.run == "":
		return errors.New("the first sample has no rate")
	case last.run != now.run:
		return errors.New("the server restarted: no rate yet")
	case now.wall <= last.wall:
		return errors.New("the server's clock stepped back")
	}
	return nil
}

// cpu returns the share of one core since the last sample: sys + user of all
// threads over the server's own clock. The time of saves (children) is not in
// it.
func cpu(info Info, last sample, now *sample, rateErr error) (report.Value, error) {
	for _, name := range []string{"used_cpu_sys", "used_cpu_user"} {
		x, err := info.Number(name)
		if err != nil {
			now.run = ""
			return report.Value{}, err
		}
		now.cpu += x
	}
	if rateErr != nil {
		return report.Value{}, rateErr
	}
	if now.cpu < last.cpu {
		return report.Value{}, errors.New("the server's CPU time fell")
	}
	return report.Of((now.cpu - last.cpu) / (now.wall - last.wall)), nil
}

// memory is used_memory, which is what maxmemory limits, over that limit.
func memory(info Info) (report.Value, error) {
	used, err := info.Number("used_memory")
	if err != nil {
		return report.Value{}, err
	}
	for _, name := range []string{"maxmemory", "total_system_memory"} { // maxmemory 0: no limit
		if limit, err := info.Number(name); err == nil && limit > 0 {
			return report.Of(used / limit), nil
		}
	}
	return report.Value{}, errors.New("info has neither maxmemory nor total_system_memory")
}
