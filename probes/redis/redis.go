// Package redis measures a Redis server by PING and INFO
// (https://redis.io/commands/info/): CPU as the share of one core, because
// Redis runs commands on one thread, memory against maxmemory or, without a
// limit, against the machine's. It can also read the depth of a Bull queue:
// wait + paused. Bull's priority set holds prioritised jobs of wait a second
// time and is not counted.
package redis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"flymesh/probes"
	"flymesh/probes/report"
)

// Options say which server and which queue.
type Options struct {
	Name     string // default "redis"
	Addr     string // host:port
	Username string
	Password string
	// Bull is the key prefix of a Bull queue, as "bull:jobs"; "": no queue.
	Bull string
	// QueueOnly leaves CPU and memory out, for a probe beside an app that uses
	// a Redis on another machine.
	QueueOnly bool
}

// Redis is the prober. It is used from one goroutine.
type Redis struct {
	options Options
	last    usage
}

// usage is the CPU time of one server process.
type usage struct {
	run       string  // run_id: another one is another process
	cpu, wall float64 // seconds by the server's own clocks
}

// New checks the options and returns the prober.
func New(o Options) (*Redis, error) {
	if o.Name == "" {
		o.Name = "redis"
	}
	if _, _, err := net.SplitHostPort(o.Addr); err != nil {
		return nil, fmt.Errorf("make redis probe: %w", err)
	}
	if o.QueueOnly && o.Bull == "" {
		return nil, errors.New("make redis probe: queue only, but no queue")
	}
	return &Redis{options: o}, nil
}

var _ probes.Prober = (*Redis)(nil)

// Name returns the name of the probe.
func (r *Redis) Name() string { return r.options.Name }

// Fields returns what the options ask for.
func (r *Redis) Fields() probes.Field {
	var f probes.Field
	if !r.options.QueueOnly {
		f |= probes.CPU | probes.Memory
	}
	if r.options.Bull != "" {
		f |= probes.Queue
	}
	return f
}

// Probe connects, asks and disconnects: nothing is held that a restarted
// server would have to be told apart from. A server that answers with an error
// (LOADING, NOAUTH) is not ready, with that reason.
func (r *Redis) Probe(ctx context.Context) (probes.Reading, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", r.options.Addr)
	if err != nil {
		return probes.Reading{}, err
	}
	// Dialled above, because the library's pool prints failures to stderr.
	dialled := make(chan net.Conn, 1)
	dialled <- conn
	c := redis.NewClient(&redis.Options{
		Dialer: func(context.Context, string, string) (net.Conn, error) {
			select {
			case conn := <-dialled:
				return conn, nil
			default:
				return nil, net.ErrClosed
			}
		},
		Username: r.options.Username, Password: r.options.Password,
		Protocol: 2, DisableIdentity: true, ContextTimeoutEnabled: true,
		MaxRetries: -1, DialerRetries: 1, PoolSize: 1,
	})
	defer func() {
		_ = c.Close()
		select {
		case conn := <-dialled:
			_ = conn.Close()
		default:
		}
	}()

	if err := c.Ping(ctx).Err(); err != nil {
		var answer redis.Error
		if !errors.As(err, &answer) {
			return probes.Reading{}, fmt.Errorf("ping: %w", err)
		}
		m := probes.NotReady(answer.Error())
		m.Problems = []string{answer.Error()}
		return m, nil
	}
	yes := true
	m := probes.Reading{Ready: &yes}
	if !r.options.QueueOnly {
		r.info(ctx, c, &m)
	}
	if r.options.Bull != "" {
		r.queue(ctx, c, &m)
	}
	return m, nil
}

func (r *Redis) info(ctx context.Context, c *redis.Client, m *probes.Reading) {
	text, err := c.Info(ctx).Result() // the default sections: Redis 6 takes no list
	if err != nil {
		m.Problems = append(m.Problems, "info: "+err.Error())
		return
	}
	info := fields(text)
	if m.CPU, err = r.cpu(info); err != nil {
		m.Problems = append(m.Problems, "cpu: "+err.Error())
	}
	if m.Memory, err = memory(info); err != nil {
		m.Problems = append(m.Problems, "memory: "+err.Error())
	}
}

// cpu returns the share of one core since the last call. The time of saves
// (children) is not in it.
func (r *Redis) cpu(info map[string]string) (report.Value, error) {
	now := usage{run: info["run_id"]}
	micros, err := strconv.ParseFloat(info["server_time_usec"], 64)
	if err != nil {
		return report.Value{}, errors.New("info has no server_time_usec")
	}
	now.wall = micros / 1e6
	for _, name := range []string{"used_cpu_sys", "used_cpu_user"} {
		x, err := strconv.ParseFloat(info[name], 64)
		if err != nil {
			return report.Value{}, fmt.Errorf("info has no %s", name)
		}
		now.cpu += x
	}
	last := r.last
	r.last = now
	switch {
	case last.run == "":
		return report.Value{}, errors.New("the first sample has no rate")
	case last.run != now.run:
		return report.Value{}, errors.New("the server restarted: no rate yet")
	case now.wall <= last.wall || now.cpu < last.cpu:
		return report.Value{}, errors.New("the server's clock stepped back")
	}
	return report.Of((now.cpu - last.cpu) / (now.wall - last.wall)), nil
}

func memory(info map[string]string) (report.Value, error) {
	used, err := strconv.ParseFloat(info["used_memory"], 64)
	if err != nil {
		return report.Value{}, errors.New("info has no used_memory")
	}
	for _, name := range []string{"maxmemory", "total_system_memory"} { // maxmemory 0: no limit
		if limit, err := strconv.ParseFloat(info[name], 64); err == nil && limit > 0 {
			return report.Of(used / limit), nil
		}
	}
	return report.Value{}, errors.New("info has neither maxmemory nor total_system_memory")
}

func (r *Redis) queue(ctx context.Context, c *redis.Client, m *probes.Reading) {
	depth := int64(0)
	for _, list := range []string{"wait", "paused"} {
		n, err := c.LLen(ctx, r.options.Bull+":"+list).Result() // a missing list is empty
		if err != nil {
			m.Problems = append(m.Problems, "queue: "+err.Error())
			return
		}
		depth += n
	}
	m.Queue, m.QueueScope = report.Of(float64(depth)), report.QueueService
}

// fields reads the lines name:value of INFO.
func fields(text string) map[string]string {
	all := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			all[name] = value
		}
	}
	return all
}
