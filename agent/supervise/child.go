package supervise

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Variables that the supervisor sets for the mesh half.
const (
	ControlEnv = "FLYMESH_SUPERVISOR_FD" // descriptor of the control socket
	AppPIDEnv  = "FLYMESH_APP_PID"       // PID of the app
)

// Lines of the control socket: a word, some with one number.
const (
	lineStarted = "app_started" // PID; to the mesh half, first
	lineExited  = "app_exited"  // exit code; to the mesh half
	lineDrain   = "drain"       // milliseconds; to the mesh half
	lineDrained = "drained"     // from the mesh half
	lineBeat    = "heartbeat"   // from the mesh half
)

// DrainRequest asks the mesh half to take the machine out of traffic and to
// leave the mesh, because the machine is about to stop.
type DrainRequest struct {
	Deadline time.Time // the app gets its signal then at the latest
	child    *Child
}

// Done tells the supervisor that the app may be stopped now.
func (d DrainRequest) Done() error { return d.child.send(lineDrained) }

// Child is the mesh half's side of the supervisor's control socket.
type Child struct {
	control *os.File
	drains  chan DrainRequest
	exited  chan struct{}
	beat    time.Duration

	mu   sync.Mutex // guards what follows, and writes
	pid  int
	code int
}

// Attach returns the connection to the supervisor that started this process,
// or nil when none did. Children of this process do not inherit it.
func Attach() (*Child, error) {
	text := os.Getenv(ControlEnv)
	if text == "" {
		return nil, nil
	}
	fd, err := strconv.Atoi(text)
	if err != nil || fd < 3 {
		return nil, fmt.Errorf("attach to supervisor: %s is %q", ControlEnv, text)
	}
	syscall.CloseOnExec(fd)
	if err := syscall.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("attach to supervisor: %w", err)
	}
	pid, _ := strconv.Atoi(os.Getenv(AppPIDEnv))
	return &Child{
		control: os.NewFile(uintptr(fd), "supervisor"),
		drains:  make(chan DrainRequest, 1),
		exited:  make(chan struct{}),
		beat:    beatEvery,
		pid:     pid,
	}, nil
}

// Run reads what the supervisor says and sends heartbeats until ctx ends, and
// returns nil then. While healthy returns false no heartbeat is sent, and the
// supervisor restarts this process after ten seconds of that; a nil healthy is
// always true. The death of the supervisor is an error: the process goes on,
// but nobody restarts it.
func (c *Child) Run(ctx context.Context, healthy func() bool) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() {
		<-ctx.Done()
		_ = c.control.SetReadDeadline(time.Now())
	})
	wg.Go(func() {
		tick := time.NewTicker(c.beat)
		defer tick.Stop()
		for {
			if healthy == nil || healthy() {
				_ = c.Heartbeat() // the reader sees the end of the connection
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})

	lines := bufio.NewScanner(c.control)
	lines.Buffer(make([]byte, 0, 256), 1024)
	for lines.Scan() {
		c.line(lines.Text())
	}
	if ctx.Err() != nil {
		return nil
	}
	err := lines.Err()
	if err == nil {
		err = io.EOF
	}
	return fmt.Errorf("read from supervisor: %w", err)
}

func (c *Child) line(line string) {
	word, arg, _ := strings.Cut(line, " ")
	n, err := strconv.Atoi(arg)
	if err != nil {
		return // of a newer supervisor
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch word {
	case lineStarted:
		c.pid = n
	case lineExited:
		select {
		case <-c.exited:
		default:
			c.code = n
			close(c.exited)
		}
	case lineDrain:
		select {
		case c.drains <- DrainRequest{time.Now().Add(time.Duration(n) * time.Millisecond), c}:
		default: // the first is still to be read
		}
	}
}

// Heartbeat tells the supervisor that this process does its work.
func (c *Child) Heartbeat() error { return c.send(lineBeat) }

// Drains delivers the supervisor's wish to drain, once.
func (c *Child) Drains() <-chan DrainRequest { return c.drains }

// AppPID returns the PID of the app.
func (c *Child) AppPID() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pid
}

// AppExited is closed when the app has ended. This process gets a SIGTERM then.
func (c *Child) AppExited() <-chan struct{} { return c.exited }

// AppExitCode returns the exit code of an app that has ended.
func (c *Child) AppExitCode() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.code
}

func (c *Child) send(line string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.control.SetWriteDeadline(time.Now().Add(time.Second))
	if _, err := c.control.WriteString(line + "\n"); err != nil {
		return fmt.Errorf("write to supervisor: %w", err)
	}
	return nil
}
