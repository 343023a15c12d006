package gossip

import (
	"context"
	"log"
	"log/slog"
	"strings"

	"golang.org/x/time/rate"

	"flymesh/raftstore/stranger"
)

// logLine is memberlist's log as slog: its errors and warnings at warn (they
// are about single packets and peers, no promise of ours), the rest at debug.
// Who has not the key or the label is a stranger, for whom memberlist has up to
// three lines in each try. All warnings are limited in rate, because anyone who
// can reach the port can cause them.
type logLine struct {
	log       *slog.Logger
	limit     *rate.Limiter
	strangers *stranger.Log
}

const maxLogLine = 300

func newLogger(l *slog.Logger) *log.Logger {
	return log.New(&logLine{l, rate.NewLimiter(1, 20), stranger.New(l)}, "", 0)
}

// strange are parts of what memberlist says of those who have no key or label.
var strange = []string{"label", "decrypt", "not encrypted", "failed to receive", "failed to send error"}

// Write implements io.Writer for one line.
func (w *logLine) Write(b []byte) (int, error) {
	line := strings.TrimSpace(string(b))
	level := slog.LevelDebug
	if strings.HasPrefix(line, "[WARN]") || strings.HasPrefix(line, "[ERR") || strings.HasPrefix(line, "Err") {
		level = slog.LevelWarn
	}
	if _, rest, ok := strings.Cut(line, "] "); ok {
		line = rest
	}
	line = strings.TrimPrefix(line, "memberlist: ")
	if level == slog.LevelWarn {
		// The address comes last; a label before it may hold anything.
		if i := strings.LastIndex(line, " from="); i >= 0 && isStrange(line[:i]) {
			w.strangers.Refused(line[i+len(" from="):], "stranger", strings.TrimRight(short(line[:i]), ":"))
			return len(b), nil
		}
		if !w.limit.Allow() {
			return len(b), nil
		}
	}
	w.log.Log(context.Background(), level, "memberlist", "detail", short(line))
	return len(b), nil
}

func short(line string) string { return line[:min(len(line), maxLogLine)] }

func isStrange(reason string) bool {
	reason = strings.ToLower(reason)
	for _, s := range strange {
		if strings.Contains(reason, s) {
			return true
		}
	}
	return false
}
