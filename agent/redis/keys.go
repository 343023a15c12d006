package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"

	proberedis "flymesh/probes/redis"
)

const (
	batch   = 100 // keys that are asked about at once; only their names: ten times as many
	workFor = 2500 * time.Millisecond
	rest    = 3 // pauses between two batches: this many times what one took, so that others get most of the server
)

// key is what is known of one key without touching it: none of the questions
// counts as a use.
type key struct {
	name  string
	kind  string
	bytes int64
	ttl   time.Duration // negative: none
	idle  time.Duration // negative: not known under this policy
}

// scan asks for keys from a cursor on, batch by batch, until f says no, the
// time is over or all were seen (cursor 0).
func scan(ctx context.Context, c *proberedis.Session, cursor uint64, match, kind string, count int64, limit time.Duration, f func([]string) (bool, error)) (uint64, error) {
	for end := time.Now().Add(limit); ; {
		begin := time.Now()
		var names []string
		var err error
		if kind == "" {
			names, cursor, err = c.Scan(ctx, cursor, match, count).Result()
		} else {
			names, cursor, err = c.ScanType(ctx, cursor, match, count, kind).Result()
		}
		if err != nil {
			return cursor, fmt.Errorf("scan: %w", err)
		}
		more, err := f(names)
		if err != nil {
			return cursor, err
		}
		if !more || cursor == 0 || time.Now().After(end) {
			return cursor, nil
		}
		select {
		case <-ctx.Done():
			return cursor, ctx.Err()
		case <-time.After(min(rest*time.Since(begin), 50*time.Millisecond)):
		}
	}
}

// look asks about keys. Those that are gone meanwhile are left out.
func look(ctx context.Context, c *proberedis.Session, names []string) ([]key, error) {
	type asked struct {
		kind  *goredis.StatusCmd
		bytes *goredis.IntCmd
		ttl   *goredis.DurationCmd
		idle  *goredis.DurationCmd
	}
	p := c.Pipeline()
	list := make([]asked, len(names))
	for i, n := range names {
		list[i] = asked{p.Type(ctx, n), p.MemoryUsage(ctx, n), p.PTTL(ctx, n), p.ObjectIdleTime(ctx, n)}
	}
	// Errors are each answer's own: a key that is gone, a policy without idle times.
	if _, err := p.Exec(ctx); err != nil && !isAnswer(err) {
		return nil, fmt.Errorf("look at keys: %w", err)
	}
	var keys []key
	for i, a := range list {
		if a.bytes.Err() != nil {
			continue
		}
		k := key{name: names[i], kind: a.kind.Val(), bytes: a.bytes.Val(), ttl: a.ttl.Val(), idle: a.idle.Val()}
		if a.idle.Err() != nil {
			k.idle = -1
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// isAnswer says whether an error is the server's answer and not the lack of one.
func isAnswer(err error) bool {
	var e goredis.Error
	return errors.As(err, &e)
}

// prefixes of queues and of n8n's own keys: nothing here removes them.
var reserved = []string{"bull:", "{bull}:", "n8n:"}

// kept says whether a key is a queue's or n8n's own.
func (r *Redis) kept(name string) bool {
	return slices.ContainsFunc(reserved, func(p string) bool { return strings.HasPrefix(name, p) }) || r.ofQueue(name)
}

// ofQueue says whether a key belongs to a queue that mesh.toml names.
func (r *Redis) ofQueue(name string) bool {
	return slices.ContainsFunc(r.queues, func(p string) bool { return strings.HasPrefix(name, p+":") })
}

// Queue is one Bull queue.
type Queue struct {
	Prefix string `json:"prefix"`
	Jobs   int64  `json:"jobs"`  // waiting, paused, active and delayed
	Bytes  int64  `json:"bytes"` // of all its keys; -1: not measured
}

// queuesIn returns the queues of the database that the session is in: those
// that mesh.toml names, and what begins as Bull's keys do. complete is false
// if there may be more.
func (r *Redis) queuesIn(ctx context.Context, c *proberedis.Session) (list []Queue, complete bool, err error) {
	found := map[string]bool{}
	for _, p := range r.queues {
		found[p] = true
	}
	cursor, err := scan(ctx, c, 0, "*bull*:*:*", "", 10*batch, workFor/2, func(names []string) (bool, error) {
		for _, n := range names {
			if parts := strings.SplitN(n, ":", 3); parts[0] == "bull" || parts[0] == "{bull}" {
				found[parts[0]+":"+parts[1]] = true
			}
		}
		return true, nil
	})
	if err != nil {
		return nil, false, err
	}
	for p := range found {
		q := Queue{Prefix: p, Bytes: -1}
		exists := false
		for _, list := range []string{"wait", "paused", "active"} {
			n, err := c.LLen(ctx, p+":"+list).Result()
			if err != nil && !isAnswer(err) {
				return nil, false, err
			}
			q.Jobs += n
		}
		n, err := c.ZCard(ctx, p+":delayed").Result()
		if err != nil && !isAnswer(err) {
			return nil, false, err
		}
		q.Jobs += n
		for _, k := range []string{":id", ":meta", ":wait"} {
			n, err := c.Exists(ctx, p+k).Result()
			if err != nil {
				return nil, false, err
			}
			exists = exists || n > 0
		}
		if exists || q.Jobs > 0 {
			list = append(list, q)
		}
	}
	slices.SortFunc(list, func(a, b Queue) int { return strings.Compare(a.Prefix, b.Prefix) })
	return list, cursor == 0, nil
}

// databases lists those that hold keys: db0:keys=3,expires=1,...
func databases(info proberedis.Info) (all []int) {
	for name := range info {
		if n, err := strconv.Atoi(strings.TrimPrefix(name, "db")); err == nil && strings.HasPrefix(name, "db") {
			all = append(all, n)
		}
	}
	slices.Sort(all)
	return all
}

// in puts the session into a database.
func in(ctx context.Context, c *proberedis.Session, db int) error {
	if err := c.Do(ctx, "select", db).Err(); err != nil {
		return fmt.Errorf("select database %d: %w", db, err)
	}
	return nil
}
