package e2e

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// need returns a program of Debian's; without it a test is skipped, in CI it fails.
func need(t *testing.T, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
		return path
	case os.Getenv("CI") == "true":
		t.Fatalf("%s is not on the PATH: apt-get install %s", name, pkg)
	}
	t.Skipf("SKIPPED: %s is not on the PATH (apt-get install %s)", name, pkg)
	return ""
}

// port returns a loopback port that is free now.
func port(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// notSaid holds that no log of any machine has a secret.
func (m *mesh) notSaid(secrets ...string) {
	m.t.Helper()
	logs, err := filepath.Glob(filepath.Join(m.State(), "logs", "*.log"))
	if err != nil || len(logs) == 0 {
		m.t.Fatalf("%d logs, %v", len(logs), err)
	}
	for _, f := range logs {
		b, err := os.ReadFile(f)
		if err != nil {
			m.t.Fatal(err)
		}
		for _, s := range secrets {
			if bytes.Contains(b, []byte(s)) {
				m.t.Errorf("%s holds a secret", filepath.Base(f))
			}
		}
	}
}
