package demoapp

import (
	"context"
	"crypto/sha256"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// ownShare is the part of a stated allowance that the work itself may use.
const ownShare = 0.9

var errFull = errors.New("queue is full")

// pool burns CPU time for jobs on a fixed number of threads, first come first
// served. Safe for use from many goroutines.
type pool struct {
	workers int
	limit   int64         // most units that may wait
	cores   *rate.Limiter // microseconds of CPU time; nil: no limit of its own

	jobs    chan *job
	waiting atomic.Int64 // units in jobs
	active  atomic.Int64 // units being worked on
}

// job is one request's work. The result is the end of a hash chain over what
// was asked, so the work cannot be skipped.
type job struct {
	ctx   context.Context
	seed  [sha256.Size]byte
	units int64
	work  time.Duration
	done  chan [sha256.Size]byte // capacity 1: a worker never waits for a client that has gone
}

func newPool(o Options) *pool {
	p := &pool{workers: o.Workers, limit: int64(o.QueueLimit), jobs: make(chan *job, o.QueueLimit)}
	if o.Cores > 0 {
		// The rest of the allowance is for the HTTP server and the agent beside
		// it. A burst of 20 ms of CPU time is what a cgroup quota of a fifth of
		// a core gives in one period of 100 ms.
		p.cores = rate.NewLimiter(rate.Limit(ownShare*o.Cores*1e6), 20_000)
	}
	return p
}

// start runs the workers; the function that it returns ends them after the
// jobs that still wait, and must be called once, when no do is running.
func (p *pool) start() (stop func()) {
	var wg sync.WaitGroup
	for range p.workers {
		wg.Go(p.worker)
	}
	return func() {
		close(p.jobs)
		wg.Wait()
	}
}

// do waits for its turn and burns units times work of CPU time. It fails with
// errFull when too much is waiting, or with the error of ctx.
func (p *pool) do(ctx context.Context, text string, units int, work time.Duration) ([sha256.Size]byte, error) {
	j := &job{ctx: ctx, seed: sha256.Sum256([]byte(text)), units: int64(units),
		work: time.Duration(units) * work, done: make(chan [sha256.Size]byte, 1)}
	if p.waiting.Add(j.units) > p.limit {
		p.waiting.Add(-j.units)
		return [sha256.Size]byte{}, errFull
	}
	p.jobs <- j // never blocks: the channel holds limit jobs of at least one unit
	select {
	case sum := <-j.done:
		return sum, nil
	case <-ctx.Done():
		return [sha256.Size]byte{}, ctx.Err()
	}
}

func (p *pool) worker() {
	runtime.LockOSThread() // the work is measured by this thread's CPU clock
	defer runtime.UnlockOSThread()
	for j := range p.jobs {
		p.waiting.Add(-j.units)
		if j.ctx.Err() != nil {
			continue
		}
		p.active.Add(j.units)
		j.done <- p.burn(j.seed, j.work)
		p.active.Add(-j.units)
	}
}

// burn hashes until the calling thread has used d of CPU time, in slices that
// the pool's own limit is asked for one by one.
func (p *pool) burn(sum [sha256.Size]byte, d time.Duration) [sha256.Size]byte {
	const slice = 2 * time.Millisecond
	for d > 0 {
		n := min(slice, d)
		if p.cores != nil {
			// Fails only for an ended context or an amount over the burst.
			_ = p.cores.WaitN(context.Background(), int(n/time.Microsecond))
		}
		sum = hashFor(sum, n)
		d -= n
	}
	return sum
}

func hashFor(sum [sha256.Size]byte, d time.Duration) [sha256.Size]byte {
	for end := threadTime() + d; threadTime() < end; {
		for range 256 {
			sum = sha256.Sum256(sum[:])
		}
	}
	return sum
}

// threadTime is the CPU time that this thread has used.
func threadTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic("read thread clock: " + err.Error()) // the clock is part of every Linux kernel
	}
	return time.Duration(t.Nano())
}
