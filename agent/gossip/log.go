package gossip

import (
	"context"
	"log"
	"log/slog"
	"strings"

	"golang.org/x/time/rate"
)

// logLine is memberlist's log as slog: its errors and warnings at warn (they
// are about single packets and peers, no promise of ours), the rest at debug.
// Warnings are limited in rate, because anyone who can reach the port can
// cause them.
type logLine struct {
	log   *slog.Logger
	limit *rate.Limiter
}

const maxLogLine = 300

func newLogger(l *slog.Logger) *log.Logger {
	return log.New(&logLine{l, rate.NewLimiter(1, 20)}, "", 0)
}

// Write implements io.Writer for one line.
func (w *logLine) Write(b []byte) (int, error) {
	line := strings.TrimSpace(string(b))
	level := slog.LevelDebug
	if strings.HasPrefix(line, "[WARN]") || strings.HasPrefix(line, "[ERR") || strings.HasPrefix(line, "Err") {
		level = slog.LevelWarn
	}
	if !w.log.Enabled(context.Background(), level) || level == slog.LevelWarn && !w.limit.Allow() {
		return len(b), nil
	}
	if _, rest, ok := strings.Cut(line, "] "); ok {
		line = rest
	}
	line = strings.TrimPrefix(line, "memberlist: ")
	w.log.Log(context.Background(), level, "memberlist", "detail", line[:min(len(line), maxLogLine)])
	return len(b), nil
}
