package demoapp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// RedisServer says which Redis the redis kind is on this computer.
func RedisServer() string {
	if bin, err := exec.LookPath("redis-server"); err == nil {
		return "the real redis-server, " + bin
	}
	return "an in-process stand-in, as no redis-server is on the PATH"
}

// runRedis is a Redis: the real redis-server where the PATH has one, else a
// small in-process server of the same protocol. The log says which.
func runRedis(ctx context.Context, listen string, log *slog.Logger) error {
	bin, err := exec.LookPath("redis-server")
	if err == nil {
		log.Info("app serves", "addr", listen, "server", "real redis-server", "path", bin)
		return runRealRedis(ctx, bin, listen)
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("start demo app: %w", err)
	}
	log.Info("app serves", "addr", l.Addr().String(), "server", "in-process stand-in: no redis-server on the PATH")
	return newRESP().serve(ctx, l)
}

// runRealRedis runs bin in the foreground without persistence; SIGTERM ends it.
func runRealRedis(ctx context.Context, bin, listen string) error {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return fmt.Errorf("start redis: %w", err)
	}
	cmd := exec.CommandContext(ctx, bin, "--bind", host, "--port", port, "--save", "", "--appendonly", "no",
		"--dir", os.TempDir(), // nothing is written
		"--protected-mode", "no", "--loglevel", "warning")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = drainTimeout
	// Killed with this process: a Redis that outlives its machine holds the port.
	// The signal goes by the thread that started it, which so must live on.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	err = cmd.Run()
	var exit *exec.ExitError
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled) || errors.As(err, &exit)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("run redis: %w", err)
	}
	return errors.New("run redis: it ended by itself")
}
