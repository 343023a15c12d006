package flytest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	fly "github.com/superfly/fly-go"
)

// Memory is a Launcher whose machines are state only. Its hooks let a test run
// something of its own, such as an agent in the same process, as a machine.
// Set the fields before the first machine starts.
type Memory struct {
	// OnStart is called when a machine boots, before it is started.
	OnStart func(Boot)
	// OnStop is called once for each OnStart when the machine ends, with true
	// if it was killed. The machine has stopped when OnStop returns.
	OnStop func(b Boot, killed bool)
	// OnFreeze is called at freeze and suspend (true) and at thaw and resume (false).
	OnFreeze func(b Boot, frozen bool)

	mu   sync.Mutex // guards next and runs
	next int
	runs map[string]*memoryRun
}

var _ Launcher = (*Memory)(nil)

// Address returns an address of fdaa::/16.
func (l *Memory) Address(string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	return fmt.Sprintf("fdaa:0:1:a7b:%x:%x:0:2", l.next>>16, l.next&0xffff)
}

// Start calls OnStart.
func (l *Memory) Start(_ context.Context, b Boot) (Instance, error) {
	r := &memoryRun{l: l, boot: b, done: make(chan struct{})}
	if l.OnStart != nil {
		l.OnStart(b)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.runs == nil {
		l.runs = make(map[string]*memoryRun)
	}
	l.runs[b.ID] = r
	return r, nil
}

// Exit ends a machine as if its main process had ended by itself.
func (l *Memory) Exit(id string, code int) error {
	l.mu.Lock()
	r := l.runs[id]
	l.mu.Unlock()
	if r == nil {
		return fmt.Errorf("end machine %s: it does not run", id)
	}
	r.end(Exit{Code: code}, false)
	return nil
}

// Wipe does nothing: there is no file system.
func (l *Memory) Wipe(string) error { return nil }

// Remove does nothing: nothing is left.
func (l *Memory) Remove(string) error { return nil }

// Accounting returns none.
func (l *Memory) Accounting() string { return "none" }

// Close ends every machine.
func (l *Memory) Close() error {
	l.mu.Lock()
	var runs []*memoryRun
	for _, r := range l.runs {
		runs = append(runs, r)
	}
	l.mu.Unlock()
	for _, r := range runs {
		r.Kill()
	}
	return nil
}

type memoryRun struct {
	l    *Memory
	boot Boot
	ends atomic.Bool // no sync.Once: a bubble's clock stands still while somebody waits for a mutex
	exit Exit        // written before done is closed
	done chan struct{}
}

func (r *memoryRun) end(e Exit, killed bool) {
	if !r.ends.CompareAndSwap(false, true) {
		<-r.done
		return
	}
	if r.l.OnStop != nil {
		r.l.OnStop(r.boot, killed)
	}
	r.l.mu.Lock()
	if r.l.runs[r.boot.ID] == r {
		delete(r.l.runs, r.boot.ID)
	}
	r.l.mu.Unlock()
	r.exit = e
	close(r.done)
}

func (r *memoryRun) Stop(string, time.Duration) { r.end(Exit{}, false) }
func (r *memoryRun) Kill()                      { r.end(Exit{Signal: 9}, true) }
func (r *memoryRun) Done() <-chan struct{}      { return r.done }
func (r *memoryRun) Exit() Exit                 { return r.exit }
func (r *memoryRun) Details() Details           { return Details{} }
func (r *memoryRun) Freeze() error              { return r.freeze(true) }
func (r *memoryRun) Thaw() error                { return r.freeze(false) }

func (r *memoryRun) Processes() []fly.ProcessStat { return nil }

// Signal ends the machine at SIGKILL and ignores every other signal.
func (r *memoryRun) Signal(signal string) error {
	n, err := signalNumber(signal)
	if err != nil {
		return err
	}
	if n == 9 {
		r.Kill()
	}
	return nil
}

func (r *memoryRun) freeze(frozen bool) error {
	if r.l.OnFreeze != nil {
		r.l.OnFreeze(r.boot, frozen)
	}
	return nil
}
