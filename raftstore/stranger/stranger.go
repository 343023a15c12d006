// Package stranger logs who is refused at a port. Anybody who reaches the port
// causes such lines, so each host is told of once, for each kind of reason, and
// what follows is summed up once a minute. Who has been quiet for a minute is
// told of anew.
package stranger

import (
	"log/slog"
	"net"
	"sync"
	"time"
)

const (
	every = time.Minute
	// most is how many hosts and kinds are told of before only the sum is.
	most = 64
)

// Log is the log of one port. Its methods may be called from any goroutine.
type Log struct {
	log *slog.Logger

	mu    sync.Mutex      // guards what follows
	told  map[string]bool // host and kind
	again int             // refusals since the newest sum that were not told of
	last  []any           // attributes of the newest of them
	armed bool            // a sum is due
}

// New returns a Log that writes warnings.
func New(l *slog.Logger) *Log { return &Log{log: l, told: map[string]bool{}} }

// Refused notes that a remote address was refused. Kind is of a closed set;
// reason and what follows are attributes of the line alone.
func (l *Log) Refused(remote, kind, reason string, attrs ...any) {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = remote
	}
	attrs = append([]any{"remote", remote, "reason", reason}, attrs...)
	key := host + " " + kind
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.armed {
		l.armed = true
		time.AfterFunc(every, l.sum)
	}
	if l.told[key] || len(l.told) >= most {
		l.again++
		l.last = attrs
		return
	}
	l.told[key] = true
	l.log.Warn("refused", attrs...)
}

// sum tells what has come since, or forgets everybody after a quiet minute.
func (l *Log) sum() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.again == 0 {
		l.armed = false
		clear(l.told)
		return
	}
	l.log.Warn("refused more", append([]any{"times", l.again}, l.last...)...)
	l.again, l.last = 0, nil
	time.AfterFunc(every, l.sum)
}
