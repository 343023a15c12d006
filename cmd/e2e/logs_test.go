package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// alone runs an app beside an agent that finds nobody, until the app ends.
func alone(t *testing.T, script string) *exec.Cmd {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "mesh.toml")
	text := "[mesh]\nname = \"m\"\ndiscover = [\"dns\"]\n[service.a]\napp = \"m-a\"\nvote = true\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, agentBinary(t), "run", "-dev", "-config", file, "--", "sh", "-c", script)
	ip := fmt.Sprintf("127.%d.%d.%d", 240, os.Getpid()/250%250, os.Getpid()%250+2)
	cmd.Env = append(os.Environ(), "FLYMESH_SOCKET="+filepath.Join(dir, "s"), "FLY_MACHINE_ID=m1", "FLY_APP_NAME=m-a", "FLY_REGION=fra", "FLY_PRIVATE_IP="+ip)
	return cmd
}

// TestLogLines holds that not a byte of the app's output changes, and that what
// the agent writes beside it is one JSON object a line that says whose it is.
func TestLogLines(t *testing.T) {
	var out, err bytes.Buffer
	cmd := alone(t, `printf 'a\0b {"msg":"mine"}'; echo '{"level":"info","msg":"the app too writes JSON"}' >&2; sleep 1`)
	cmd.Stdout, cmd.Stderr = &out, &err
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), "a\x00b {\"msg\":\"mine\"}"; got != want {
		t.Errorf("stdout is %q, want %q", got, want)
	}
	ours, theirs := 0, 0
	for line := range strings.Lines(err.String()) {
		var l struct{ Time, Level, Msg, Flymesh string }
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Errorf("no JSON: %q", line)
		}
		switch {
		case l.Flymesh == "" && line == "{\"level\":\"info\",\"msg\":\"the app too writes JSON\"}\n":
			theirs++
		case l.Flymesh == "" || l.Time == "" || l.Level == "" || l.Msg == "":
			t.Errorf("a line without time, level, msg or flymesh: %s", line)
		default:
			ours++
		}
	}
	if ours < 3 || theirs != 1 {
		t.Errorf("%d lines of the agent's and %d of the app's:\n%s", ours, theirs, err.String())
	}
}

// TestLogOnATerminal holds that people read text.
func TestLogOnATerminal(t *testing.T) {
	ptm, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no terminal may be made here: %v", err)
	}
	defer ptm.Close()
	n, err := unix.IoctlGetInt(int(ptm.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(ptm.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Skipf("no terminal may be made here: %v", err)
	}
	pts, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no terminal may be made here: %v", err)
	}
	cmd := alone(t, "sleep 1")
	cmd.Stderr = pts
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pts.Close()
	var lines []string
	for sc := bufio.NewScanner(ptm); sc.Scan(); { // ends with the last process that has the terminal
		lines = append(lines, sc.Text())
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if len(lines) < 3 {
		t.Errorf("lines %q", lines)
	}
	for _, l := range lines {
		if !strings.HasPrefix(l, "time=") || !strings.Contains(l, " level=") || strings.Contains(l, "flymesh=") {
			t.Errorf("line %q", l)
		}
	}
}
