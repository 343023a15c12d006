package redis

import (
	"context"
	"errors"
	"fmt"
	"time"

	proberedis "flymesh/probes/redis"
)

const (
	pauseFor  = 3 * time.Second       // how long the server holds writes back, if nobody ends it
	levelIn   = 2 * time.Second       // of these, for the replica to have everything
	levelTick = 10 * time.Millisecond // between two looks at both
	nearly    = 1 << 20               // bytes: a replica that is further behind is not waited for
)

// HandOver makes a primary the replica of its own replica without losing a
// write: writes wait until the replica has them all, at most for pauseFor.
// After an error the server is what it was, unless the connection broke.
func (r *Redis) HandOver(ctx context.Context, to string) (State, error) {
	s, err := r.handOver(ctx, to)
	if err != nil {
		return s, fmt.Errorf("hand over to %s: %w", to, err)
	}
	return s, nil
}

func (r *Redis) handOver(ctx context.Context, to string) (State, error) {
	own, err := r.server.Open(ctx)
	if err != nil {
		return State{}, err
	}
	defer own.Close()
	server := r.server
	server.Addr = to
	next, err := server.Open(ctx)
	if err != nil {
		return State{}, err
	}
	defer next.Close()
	// First without stopping anybody: one that is far behind or copies something
	// else would only cost a pause.
	if err := level(ctx, own, next, nearly); err != nil {
		return State{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, pauseFor)
	defer cancel()
	begin := time.Now()
	if err := own.Do(ctx, "client", "pause", pauseFor.Milliseconds(), "write").Err(); err != nil {
		return State{}, fmt.Errorf("pause writes (needs Redis 6.2): %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = own.Do(ctx, "client", "unpause").Err() // or the server does it when the time is over
	}()
	for {
		err := level(ctx, own, next, 0)
		if err == nil {
			return r.follow(ctx, own, to)
		}
		if ctx.Err() != nil || time.Since(begin) > levelIn {
			return State{}, err
		}
		time.Sleep(levelTick)
	}
}

// level says what keeps next from taking over, with at most slack bytes lost.
func level(ctx context.Context, own, next *proberedis.Session, slack uint64) error {
	a, err := stateOf(ctx, own) // before the other: it can only be further by then
	if err != nil {
		return err
	}
	b, err := stateOf(ctx, next)
	switch {
	case err != nil:
		return err
	case a.Replica:
		return errors.New("it is no primary")
	case !b.Replica || b.History != a.History || a.History == 0:
		return errors.New("that server does not copy this one")
	case !b.Linked:
		return errors.New("that server has no link to this one")
	case b.Offset+slack < a.Offset:
		return fmt.Errorf("that server is %d bytes behind", a.Offset-b.Offset)
	}
	return nil
}
