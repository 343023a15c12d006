package api

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
)

// socketMode lets only the agent's own user and root in.
const socketMode = 0o600

// socketListener removes its file when it closes, if it is still its own.
type socketListener struct {
	net.Listener
	path string
	own  os.FileInfo
}

// bindSocket makes the socket under another name, so that nobody can connect
// before its mode is set, and then puts it in place.
func bindSocket(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("listen on socket %s: %w", path, err)
	}
	temp := fmt.Sprintf("%s.%d", path, os.Getpid()%100000)
	os.Remove(temp) // of a process that died half-way
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	fail := func(err error) (net.Listener, error) {
		l.Close()
		os.Remove(temp)
		return nil, fmt.Errorf("listen on socket %s: %w", path, err)
	}
	if err := os.Chmod(temp, socketMode); err != nil {
		return fail(err)
	}
	own, err := os.Lstat(temp)
	if err != nil {
		return fail(err)
	}
	if err := os.Rename(temp, path); err != nil {
		return fail(err)
	}
	return &socketListener{l, path, own}, nil
}

// Close implements net.Listener.
func (s *socketListener) Close() error {
	if now, err := os.Lstat(s.path); err == nil && os.SameFile(now, s.own) {
		os.Remove(s.path)
	}
	return s.Listener.Close()
}

// limitListener bounds the open connections; see limit.
type limitListener struct {
	net.Listener
	slots  chan struct{}
	closed chan struct{}
	once   sync.Once
}

// Accept implements net.Listener.
func (l *limitListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitConn{Conn: c, free: sync.OnceFunc(func() { <-l.slots })}, nil
}

// Close implements net.Listener.
func (l *limitListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitConn struct {
	net.Conn
	free func()
}

// Close implements net.Conn.
func (c *limitConn) Close() error {
	c.free()
	return c.Conn.Close()
}
