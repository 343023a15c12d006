package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flymesh/agent/identity"
)

// TestStrangers: an agent with another secret, and one of another mesh with
// the right secret, know where the mesh is and knock all the time.
func TestStrangers(t *testing.T) {
	m := newMesh(t, config)
	before := m.settle(10 * time.Second)
	raw, err := os.ReadFile(m.SecretFile())
	if err != nil {
		t.Fatal(err)
	}
	secret := strings.TrimSpace(string(raw))
	for i, tc := range []struct{ name, secret, mesh string }{
		{"another secret", identity.NewSecret(), "e2e"},
		{"another mesh", secret, "elsewhere"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m.t = t
			dir, err := os.MkdirTemp("", "e2e-")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			var peers []string
			for _, x := range m.running() {
				peers = append(peers, `"`+x.PrivateIP+`:7946"`)
			}
			c := strings.Replace(config, `name = "e2e"`, `name = "`+tc.mesh+`"`, 1)
			c = strings.Replace(c, `discover = ["api"]`, `discover = ["peers"]`+"\npeers = ["+strings.Join(peers, ", ")+"]", 1)
			path := filepath.Join(dir, "mesh.toml")
			if err := os.WriteFile(path, []byte(c), 0o600); err != nil {
				t.Fatal(err)
			}
			log, err := os.Create(filepath.Join(dir, "log"))
			if err != nil {
				t.Fatal(err)
			}
			defer log.Close()
			ip := "127.9.9." + string(rune('2'+i))
			cmd := exec.Command(m.agent, "mesh", "-config", path)
			cmd.Env = []string{
				"FLYMESH_SECRET=" + tc.secret, "FLYMESH_SOCKET=" + filepath.Join(dir, "s"), "FLY_APP_NAME=e2e-site", "FLY_MACHINE_ID=00000000000bad",
				"FLY_REGION=fra", "FLY_PRIVATE_IP=" + ip, "FLY_PROCESS_GROUP=app", "FLY_IMAGE_REF=x",
			}
			cmd.Stdout, cmd.Stderr = log, log
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
			at, warned := time.Now(), map[string]int{}
			logs, _ := filepath.Glob(filepath.Join(m.State(), "logs", "*.log"))
			for _, f := range logs {
				b, _ := os.ReadFile(f)
				warned[f] = strings.Count(string(b), `"level":"WARN"`)
			}
			time.Sleep(2 * time.Second)
			after := m.settle(10 * time.Second)
			if after.Epoch != before.Epoch || after.Term != before.Term {
				t.Errorf("epoch and term %d/%d became %d/%d", before.Epoch, before.Term, after.Epoch, after.Term)
			}
			for _, x := range after.Machines {
				if x.ID == "00000000000bad" {
					t.Error("the stranger is in the status")
				}
			}
			told := 0
			for _, f := range append(logs, log.Name()) {
				b, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				if strings.Contains(string(b), secret) || strings.Contains(string(b), tc.secret) {
					t.Errorf("%s shows a secret", filepath.Base(f))
				}
				if f != log.Name() {
					told = max(told, strings.Count(string(b), `"level":"WARN"`)-warned[f])
				}
			}
			if told > 25 { // 20 at once, then one a second
				t.Errorf("an agent has warned %d times", told)
			}
			b, err := os.ReadFile(log.Name())
			if err != nil || strings.Contains(string(b), `"msg":"joined"`) || !strings.Contains(string(b), "agent runs") {
				t.Errorf("the stranger (%v): %s", err, b)
			}
			table.add(row{scenario: "stranger with " + tc.name, gap: m.watch.gap(at), from: before.Epoch, to: after.Epoch, note: fmt.Sprintf("refused; an agent has warned %d times at most in %.0f s", told, time.Since(at).Seconds())})
		})
	}
}
