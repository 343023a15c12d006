package demoapp

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// resp is a small server of the Redis protocol (version 2): what a probe and a
// client that stores strings need, and an error for everything else.
type resp struct {
	began    time.Time
	runID    string
	commands atomic.Int64
	clients  atomic.Int64

	mu     sync.Mutex
	values map[string]entry // guarded by mu
}

type entry struct {
	value   string
	expires time.Time // zero: never
}

func newRESP() *resp {
	id := make([]byte, 20)
	_, _ = rand.Read(id) // never fails
	return &resp{began: time.Now(), runID: hex.EncodeToString(id), values: map[string]entry{}}
}

// serve answers clients until ctx ends, then closes every connection.
func (s *resp) serve(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept redis client: %w", err)
		}
		wg.Go(func() {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			s.clients.Add(1)
			defer s.clients.Add(-1)
			s.client(c)
		})
	}
}

func (s *resp) client(c net.Conn) {
	r, w := bufio.NewReader(c), bufio.NewWriter(c)
	for {
		args, err := readCommand(r)
		if err != nil {
			return
		}
		if len(args) > 0 {
			s.commands.Add(1)
			w.WriteString(s.answer(args))
		}
		if r.Buffered() > 0 {
			continue // a pipeline is answered in one write
		}
		_ = c.SetWriteDeadline(time.Now().Add(writeTimeout))
		if w.Flush() != nil || len(args) > 0 && strings.EqualFold(args[0], "QUIT") {
			return
		}
	}
}

// writeTimeout bounds one answer to a client.
const writeTimeout = 5 * time.Second

const maxBulk = 1 << 20 // bytes of one argument, and most arguments of one command

// readCommand reads an array of bulk strings, or a line of words.
func readCommand(r *bufio.Reader) ([]string, error) {
	line, err := readLine(r)
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(line, "*") {
		return strings.Fields(line), nil
	}
	n, err := strconv.Atoi(line[1:])
	if err != nil || n < 0 || n > maxBulk {
		return nil, fmt.Errorf("read command: bad count %q", line)
	}
	var args []string
	for range n {
		line, err := readLine(r)
		if err != nil {
			return nil, err
		}
		size, err := strconv.Atoi(strings.TrimPrefix(line, "$"))
		if err != nil || size < 0 || size > maxBulk {
			return nil, fmt.Errorf("read command: bad length %q", line)
		}
		b := make([]byte, size+2)
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, err
		}
		args = append(args, string(b[:size]))
	}
	return args, nil
}

func readLine(r *bufio.Reader) (string, error) {
	b, err := r.ReadSlice('\n') // fails on a line longer than the buffer
	return strings.TrimRight(string(b), "\r\n"), err
}

func (s *resp) answer(args []string) string {
	name := strings.ToUpper(args[0])
	switch {
	case name == "PING" && len(args) == 1:
		return "+PONG\r\n"
	case (name == "PING" || name == "ECHO") && len(args) == 2:
		return bulk(args[1])
	case name == "INFO":
		return bulk(s.info())
	case name == "GET" && len(args) == 2:
		return s.get(args[1])
	case name == "SET" && (len(args) == 3 || len(args) == 5):
		return s.set(args)
	case name == "DEL" && len(args) >= 2:
		return s.del(args[1:])
	case name == "DBSIZE" && len(args) == 1:
		return fmt.Sprintf(":%d\r\n", s.size())
	case name == "SELECT" && len(args) == 2 && args[1] == "0", name == "CLIENT", name == "QUIT":
		return "+OK\r\n"
	}
	return fmt.Sprintf("-ERR unknown command '%.64s', or wrong number of arguments\r\n", clean(args[0]))
}

func clean(s string) string { return strings.NewReplacer("\r", " ", "\n", " ").Replace(s) }

func bulk(s string) string { return fmt.Sprintf("$%d\r\n%s\r\n", len(s), s) }

func (s *resp) get(key string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.values[key]
	if ok && !e.expires.IsZero() && time.Now().After(e.expires) {
		delete(s.values, key)
		ok = false
	}
	if !ok {
		return "$-1\r\n"
	}
	return bulk(e.value)
}

func (s *resp) set(args []string) string {
	e := entry{value: args[2]}
	if len(args) == 5 {
		n, err := strconv.Atoi(args[4])
		unit := map[string]time.Duration{"EX": time.Second, "PX": time.Millisecond}[strings.ToUpper(args[3])]
		if err != nil || n < 1 || unit == 0 {
			return "-ERR syntax error\r\n"
		}
		e.expires = time.Now().Add(time.Duration(n) * unit)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values[args[1]] = e
	return "+OK\r\n"
}

func (s *resp) del(keys []string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, k := range keys {
		if _, ok := s.values[k]; ok {
			delete(s.values, k)
			n++
		}
	}
	return fmt.Sprintf(":%d\r\n", n)
}

func (s *resp) size() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.values)
}

// info has the fields of INFO that describe a server's pressure, from this
// process itself.
func (s *resp) info() string {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u) // cannot fail with these arguments
	var si unix.Sysinfo_t
	_ = unix.Sysinfo(&si)
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	now := time.Now()
	seconds := func(t unix.Timeval) float64 { return float64(t.Nano()) / 1e9 }
	return fmt.Sprintf("# Server\r\nredis_version:0.0.0-flymesh-demo\r\nredis_mode:standalone\r\nprocess_id:%d\r\nrun_id:%s\r\n"+
		"server_time_usec:%d\r\nuptime_in_seconds:%d\r\n\r\n# Clients\r\nconnected_clients:%d\r\n\r\n"+
		"# Memory\r\nused_memory:%d\r\nused_memory_rss:%d\r\ntotal_system_memory:%d\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n\r\n"+
		"# Persistence\r\nloading:0\r\n\r\n# Stats\r\ntotal_commands_processed:%d\r\nevicted_keys:0\r\ntotal_error_replies:0\r\n\r\n"+
		"# Replication\r\nrole:master\r\nconnected_slaves:0\r\n\r\n# CPU\r\nused_cpu_sys:%.6f\r\nused_cpu_user:%.6f\r\n"+
		"used_cpu_sys_main_thread:%.6f\r\nused_cpu_user_main_thread:%.6f\r\n\r\n# Keyspace\r\ndb0:keys=%d,expires=0,avg_ttl=0\r\n",
		os.Getpid(), s.runID, now.UnixMicro(), int(now.Sub(s.began).Seconds()), s.clients.Load(),
		m.Alloc, m.Sys, uint64(si.Totalram)*uint64(si.Unit), s.commands.Load(),
		seconds(u.Stime), seconds(u.Utime), seconds(u.Stime), seconds(u.Utime), s.size())
}
