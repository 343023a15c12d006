package redis

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"

	proberedis "flymesh/probes/redis"
)

// Trim says which old keys go. Of Idle and TTLUnder at least one is set; a key
// must meet each that is.
type Trim struct {
	Match    string        `json:"match"`     // pattern of SCAN, such as chat:*
	Type     string        `json:"type"`      // list, string, ...; empty: any
	Idle     time.Duration `json:"idle"`      // not used for so long
	TTLUnder time.Duration `json:"ttl_under"` // would end within it anyway
	Expire   time.Duration `json:"expire"`    // give it this much longer instead of removing it now
	Do       bool          `json:"do"`        // false: only count
	Cursor   uint64        `json:"cursor"`    // where the last answer stopped
}

// Trimmed is what one call has done; Cursor 0: it was the last one.
type Trimmed struct {
	Cursor  uint64 `json:"cursor"`
	Matched int64  `json:"matched"`
	Old     int64  `json:"old"`
	Bytes   int64  `json:"bytes"`  // of the old ones
	Done    int64  `json:"done"`   // removed, or given an end
	Kept    int64  `json:"kept"`   // matched, but are a queue's or n8n's own
	Before  int64  `json:"before"` // memory in use before this call
	Used    int64  `json:"used"`   // and afterwards
	Keys    int64  `json:"keys"`
}

// ErrRefused says that what was asked for would do harm, or makes no sense.
var ErrRefused = errors.New("refused")

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrRefused}, args...)...)
}

// Check says what is wrong with a request.
func (t Trim) Check(r *Redis) error {
	if t.Match == "" {
		return refuse("nothing says which keys are chats: --match 'chat:*', or chat_keys in [service.NAME.redis] of mesh.toml")
	}
	if fixed := t.Match[:strings.IndexAny(t.Match+"*", "*?[\\")]; r.kept(fixed+":") || r.kept(fixed) {
		return refuse("%s are keys of a queue or of n8n itself: they are never trimmed", t.Match)
	}
	switch {
	case t.Idle < 0 || t.TTLUnder < 0 || t.Expire < 0:
		return refuse("a duration is negative")
	case t.Idle == 0 && t.TTLUnder == 0:
		return refuse("nothing says what is old: --idle 168h (not used for a week) or --ttl-under 1h (ends within the hour anyway)")
	}
	return nil
}

// Trim removes old keys, batch by batch, for at most some seconds: call it again
// with the cursor of the answer. A key that is written between the look at it
// and its end is not removed.
func (r *Redis) Trim(ctx context.Context, t Trim) (Trimmed, error) {
	if err := t.Check(r); err != nil {
		return Trimmed{}, err
	}
	c, err := r.server.Open(ctx)
	if err != nil {
		return Trimmed{}, err
	}
	defer c.Close()
	var out Trimmed
	if out.Before, err = used(ctx, c); err != nil {
		return out, err
	}
	out.Cursor, err = scan(ctx, c, t.Cursor, t.Match, t.Type, batch, workFor, func(names []string) (bool, error) {
		var mine []string
		for _, n := range names {
			if out.Matched++; r.kept(n) {
				out.Kept++
				continue
			}
			mine = append(mine, n)
		}
		if len(mine) == 0 {
			return true, nil
		}
		return true, trimBatch(ctx, c, t, mine, &out)
	})
	if err != nil {
		return out, err
	}
	if out.Used, err = used(ctx, c); err != nil {
		return out, err
	}
	out.Keys, err = c.DBSize(ctx).Result()
	return out, err
}

// used is the memory in use as maxmemory counts it.
func used(ctx context.Context, c *proberedis.Session) (int64, error) {
	info, err := c.Info(ctx)
	if err != nil {
		return 0, fmt.Errorf("info: %w", err)
	}
	x, err := info.Number("used_memory")
	return int64(x), err
}

func trimBatch(ctx context.Context, c *proberedis.Session, t Trim, names []string, out *Trimmed) error {
	watch := []any{"watch"}
	for _, n := range names {
		watch = append(watch, n)
	}
	if err := c.Do(ctx, watch...).Err(); err != nil {
		return fmt.Errorf("watch keys: %w", err)
	}
	keys, err := look(ctx, c, names)
	if err != nil {
		return err
	}
	var old []key
	for _, k := range keys {
		is, err := t.old(k)
		if err != nil {
			return err
		}
		if is {
			old = append(old, k)
		}
	}
	// An empty transaction, of a count or of young keys, ends the watch as well.
	_, err = c.TxPipelined(ctx, func(p goredis.Pipeliner) error {
		p.Ping(ctx)
		for _, k := range old {
			switch {
			case !t.Do:
			case t.Expire > 0:
				p.PExpire(ctx, k.name, t.Expire)
			default:
				p.Unlink(ctx, k.name)
			}
		}
		return nil
	})
	if errors.Is(err, goredis.TxFailedErr) {
		return nil // one was written meanwhile: the batch is left for the next time
	}
	if err != nil {
		return fmt.Errorf("trim: %w", err)
	}
	for _, k := range old {
		out.Old++
		out.Bytes += k.bytes
	}
	if t.Do {
		out.Done += int64(len(old))
	}
	return nil
}

func (t Trim) old(k key) (bool, error) {
	if t.Idle > 0 {
		if k.idle < 0 {
			return false, refuse("this Redis keeps no idle times (an LFU policy): use --ttl-under, or first agentctl redis eviction volatile-lru")
		}
		if k.idle < t.Idle {
			return false, nil
		}
	}
	if t.TTLUnder > 0 && (k.ttl < 0 || k.ttl >= t.TTLUnder) {
		return false, nil
	}
	return t.Expire == 0 || k.ttl < 0 || k.ttl > t.Expire, nil
}
