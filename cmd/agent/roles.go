package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"flymesh/agent/config"
	"flymesh/agent/role"
	"flymesh/agent/supervise"
)

// appOf is the app that the supervisor runs: the command, or with --primary
// and --replica this binary, which runs one of the two. special is why this
// machine does not join the mesh, if so: it has no role, and its command is
// its own.
func appOf(o options, command []string, special, exe string) ([]string, error) {
	roles := o.primary != "" || o.replica != ""
	switch {
	case roles && special != "" && len(command) == 0:
		return nil, fmt.Errorf("%s: without a command there is nothing to run here: agent run --primary ... --replica ... -- CMD", special)
	case !roles && len(command) == 0:
		return nil, errors.New("the app's command is missing: agent run -- CMD")
	case !roles || special != "":
		return command, nil
	case len(command) > 0:
		return nil, fmt.Errorf("--primary and --replica stand instead of a command: %q is too much", strings.Join(command, " "))
	case o.primary == "" || o.replica == "":
		return nil, errors.New("--primary and --replica belong together: one machine of the service runs the one, all others the other")
	}
	for name, text := range map[string]string{"--primary": o.primary, "--replica": o.replica} {
		if argv, err := words(text); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		} else if len(argv) == 0 {
			return nil, fmt.Errorf("%s: the command is empty", name)
		}
	}
	return []string{exe, "roles", "-config", o.config, "-kill-timeout", o.killTimeout.String(), "-primary", o.primary, "-replica", o.replica}, nil
}

// runRoles is the app of a role-aware command; started by run.
func runRoles(args []string) int {
	o, _, err := parse("roles", args)
	ro := role.Options{Log: logger(os.Stderr)}
	if err == nil {
		ro.Primary, err = words(o.primary)
	}
	if err == nil {
		ro.Replica, err = words(o.replica)
	}
	if err == nil && (len(ro.Primary) == 0 || len(ro.Replica) == 0) {
		err = errors.New("it is started by agent run")
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "agent roles: %v\n", err)
		return exitUsage
	}
	if ro.Socket = os.Getenv("FLYMESH_SOCKET"); ro.Socket == "" {
		cfg, err := config.Load(o.config)
		if err != nil { // the mesh half says it in full
			ro.Log.Error("without a good configuration there is no mesh: the replica runs", "error", err)
		} else {
			ro.Socket = cfg.Mesh.Socket
		}
	}
	ro.Patience = supervise.Patience(o.killTimeout)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	defer time.AfterFunc(settled, settle).Stop()
	return role.Run(ctx, ro)
}

// words splits a command as a shell does, with quotes and backslashes, and
// expands nothing.
func words(text string) (argv []string, err error) {
	var word strings.Builder
	in, quote, escaped := false, rune(0), false
	for _, c := range text {
		switch {
		case escaped:
			word.WriteRune(c)
			escaped = false
		case c == '\\' && quote != '\'':
			escaped, in = true, true
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(c)
		case c == '\'' || c == '"':
			quote, in = c, true
		case c == ' ' || c == '\t' || c == '\n':
			if in {
				argv = append(argv, word.String())
				word.Reset()
			}
			in = false
		default:
			word.WriteRune(c)
			in = true
		}
	}
	if quote != 0 || escaped {
		return nil, fmt.Errorf("%q ends within a quotation", text)
	}
	if in {
		argv = append(argv, word.String())
	}
	return argv, nil
}
