// Package redistest runs real redis-servers for tests. Where there is none the
// test is skipped, and with CI=true it fails.
package redistest

import (
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Server is one redis-server that keeps nothing on disk. It ends with its test.
type Server struct {
	Addr string // host:port
	PID  int
	stop func()
}

// Path returns where redis-server is.
func Path(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("redis-server is not on the PATH")
		}
		t.Skip("redis-server is not on the PATH (Debian: apt-get install redis-server)")
	}
	return path
}

// Start runs a server on a free port and returns when it answers.
func Start(t *testing.T, args ...string) *Server {
	t.Helper()
	Path(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	return StartAt(t, addr, args...)
}

// StartAt is Start at an address, for a server that comes back.
func StartAt(t *testing.T, addr string, args ...string) *Server {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(Path(t), append([]string{"--port", port, "--bind", host, "--save", "", "--appendonly", "no", "--dir", t.TempDir()}, args...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &Server{Addr: addr, PID: cmd.Process.Pid, stop: sync.OnceFunc(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })}
	t.Cleanup(s.stop)
	for deadline := time.Now().Add(10 * time.Second); !answers(addr); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("redis-server at %s does not answer", addr)
		}
	}
	return s
}

// answers says whether a server takes commands, if only to ask for a password.
func answers(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	if _, err := c.Write([]byte("PING\r\n")); err != nil {
		return false
	}
	b := make([]byte, 64)
	n, _ := c.Read(b)
	return strings.HasPrefix(string(b[:n]), "+PONG") || strings.HasPrefix(string(b[:n]), "-NOAUTH")
}

// Stop ends the server at once, as a crash does.
func (s *Server) Stop() { s.stop() }

// Client returns a client of the server.
func (s *Server) Client(t *testing.T) *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: s.Addr})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// CLI is redis-cli's answer, a reading that is independent of any client here.
func (s *Server) CLI(t *testing.T, args ...string) string {
	t.Helper()
	host, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("redis-cli", append([]string{"-h", host, "-p", port}, args...)...).Output()
	if err != nil {
		t.Fatalf("redis-cli %v: %v", args, err)
	}
	return strings.TrimSpace(string(out))
}

// Info is one field of redis-cli INFO; empty if the server does not tell it.
func (s *Server) Info(t *testing.T, section, field string) string {
	t.Helper()
	for line := range strings.Lines(s.CLI(t, "INFO", section)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), field+":"); ok {
			return v
		}
	}
	return ""
}

// Enqueue adds jobs to a queue as Bull 4 does: the id counter, a hash of the
// job, the list, and for prioritised jobs the set beside it.
func Enqueue(t *testing.T, c *redis.Client, prefix string, jobs int, priority float64, at time.Time) {
	t.Helper()
	ctx := t.Context()
	pipe := c.Pipeline()
	for range jobs {
		n, err := c.Incr(ctx, prefix+":id").Result()
		if err != nil {
			t.Fatal(err)
		}
		id := strconv.FormatInt(n, 10)
		pipe.HSet(ctx, prefix+":"+id, "name", "__default__", "data", `{"executionId":"`+id+`"}`, "opts", `{"priority":100}`,
			"timestamp", at.UnixMilli(), "delay", 0, "priority", priority)
		pipe.LPush(ctx, prefix+":wait", id)
		if priority > 0 {
			pipe.ZAdd(ctx, prefix+":priority", redis.Z{Score: priority, Member: id})
		}
	}
	if _, err := pipe.Exec(ctx); err != nil {
		t.Fatal(err)
	}
}

// Age makes every key of a pattern look unused for so long.
func Age(t *testing.T, c *redis.Client, pattern string, idle time.Duration) {
	t.Helper()
	ctx := t.Context()
	keys := c.Scan(ctx, 0, pattern, 1000).Iterator()
	var names []string
	for keys.Next(ctx) {
		names = append(names, keys.Val())
	}
	if err := keys.Err(); err != nil {
		t.Fatal(err)
	}
	for _, k := range names {
		ttl := max(0, c.PTTL(ctx, k).Val().Milliseconds()) // none: 0
		dump, err := c.Dump(ctx, k).Result()
		if err == nil {
			err = c.Do(ctx, "restore", k, ttl, dump, "replace", "idletime", int(idle.Seconds())).Err()
		}
		if err != nil {
			t.Fatalf("age %s: %v", k, err)
		}
	}
}
