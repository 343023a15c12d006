// Package redis acts on the Redis beside the agent: its role in replication,
// what fills its memory, which old keys go, what it does when it is full.
//
// Every call has its own connection, ends with its context and is bounded in
// what it asks of the server: no KEYS, small batches, pauses between them.
// A Redis may be used from any goroutine; who may be primary is not its
// business but that of its caller.
package redis

import (
	"context"
	"errors"
	"fmt"
	"net"

	proberedis "flymesh/probes/redis"
	"flymesh/probes/report"
)

// Redis is one server.
type Redis struct {
	server proberedis.Server
	self   string   // host:port at which other machines reach it
	queues []string // key prefixes of queues that the mesh knows of, such as bull:jobs
}

// New returns the server. self is its address for other machines.
func New(server proberedis.Server, self string, queues []string) *Redis {
	return &Redis{server: server, self: self, queues: queues}
}

// State is where the server stands.
type State struct {
	report.Replication
	Writable bool   // clients may write
	Keys     int64  // in all databases
	Primary  string // host:port that a replica copies
}

// Nobody is an address at which no server is: a replica of it keeps what it
// has and takes no writes.
const Nobody = "127.0.0.1:1"

// State asks the server.
func (r *Redis) State(ctx context.Context) (State, error) {
	c, err := r.server.Open(ctx)
	if err != nil {
		return State{}, err
	}
	defer c.Close()
	return stateOf(ctx, c)
}

// StateOf asks another server of the same service.
func (r *Redis) StateOf(ctx context.Context, addr string) (State, error) {
	other := Redis{server: r.server}
	other.server.Addr = addr
	return other.State(ctx)
}

func stateOf(ctx context.Context, c *proberedis.Session) (State, error) {
	info, err := c.Info(ctx)
	if err != nil {
		return State{}, fmt.Errorf("info: %w", err)
	}
	at, ok := info.Replication()
	if !ok {
		return State{}, fmt.Errorf("info tells no role: %q", info["role"])
	}
	s := State{Replication: at}
	s.Writable, _ = info.Writable()
	keys, _ := info.Keyspace()
	s.Keys = int64(keys)
	if host, port := info.Primary(); host != "" {
		s.Primary = net.JoinHostPort(host, port)
	}
	return s, nil
}

// Promote lets the server take writes. It keeps what it has copied.
func (r *Redis) Promote(ctx context.Context) (State, error) {
	c, err := r.server.Open(ctx)
	if err != nil {
		return State{}, fmt.Errorf("promote: %w", err)
	}
	defer c.Close()
	before, err := stateOf(ctx, c)
	if err != nil {
		return State{}, fmt.Errorf("promote: %w", err)
	}
	if err := c.Do(ctx, "replicaof", "no", "one").Err(); err != nil {
		return State{}, fmt.Errorf("promote: %w", err)
	}
	after, err := stateOf(ctx, c)
	if err == nil && after.Replica {
		err = fmt.Errorf("it still copies %s", after.Primary)
	}
	if err != nil {
		return State{}, fmt.Errorf("promote: %w", err)
	}
	after.History, after.Offset = before.History, before.Offset // where it took over
	return after, nil
}

// Follow makes the server a replica: from the answer on it takes no writes.
func (r *Redis) Follow(ctx context.Context, primary string) (State, error) {
	c, err := r.server.Open(ctx)
	if err != nil {
		return State{}, fmt.Errorf("follow %s: %w", primary, err)
	}
	defer c.Close()
	s, err := r.follow(ctx, c, primary)
	if err != nil {
		return s, fmt.Errorf("follow %s: %w", primary, err)
	}
	return s, nil
}

func (r *Redis) follow(ctx context.Context, c *proberedis.Session, primary string) (State, error) {
	host, port, err := net.SplitHostPort(primary)
	if err != nil {
		return State{}, err
	}
	sets := [][2]string{{"replica-read-only", "yes"}}
	if own, ownPort, err := net.SplitHostPort(r.self); err == nil {
		sets = append(sets, [2]string{"replica-announce-ip", own}, [2]string{"replica-announce-port", ownPort})
	}
	if r.server.Password != "" {
		sets = append(sets, [2]string{"masterauth", r.server.Password})
	}
	if r.server.Username != "" {
		sets = append(sets, [2]string{"masteruser", r.server.Username})
	}
	for _, s := range sets {
		if err := c.ConfigSet(ctx, s[0], s[1]).Err(); err != nil {
			return State{}, fmt.Errorf("set %s: %w", s[0], err)
		}
	}
	was, err := stateOf(ctx, c)
	if err != nil {
		return State{}, err
	}
	if err := c.Do(ctx, "replicaof", host, port).Err(); err != nil {
		return State{}, err
	}
	s, err := stateOf(ctx, c)
	if err == nil && s.Writable {
		err = errors.New("it still takes writes")
	}
	if err == nil && was.Writable {
		// Clients that stay would only see their writes refused; those that
		// connect anew ask where the primary is.
		_ = c.Do(ctx, "client", "kill", "type", "normal", "skipme", "yes").Err()
	}
	return s, err
}
