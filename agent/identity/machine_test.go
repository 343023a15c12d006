package identity

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func env(pairs map[string]string) func(string) string {
	return func(key string) string { return pairs[key] }
}

// fly is the environment of an ordinary machine, with changes.
func fly(changes ...string) func(string) string {
	pairs := map[string]string{
		"FLY_MACHINE_ID": "148e21ea7b1389", "FLY_APP_NAME": "acme-n8n", "FLY_PROCESS_GROUP": "worker", "FLY_REGION": "fra",
		"FLY_PRIVATE_IP": "fdaa:0:18:a7b:7d:0:0:2", "FLY_MACHINE_VERSION": "01HX", "FLY_IMAGE_REF": "registry.fly.io/acme:1",
	}
	for _, c := range changes {
		key, value, _ := strings.Cut(c, "=")
		pairs[key] = value
	}
	return env(pairs)
}

func TestFromEnv(t *testing.T) {
	ordinary := Machine{ID: "148e21ea7b1389", App: "acme-n8n", Group: "worker", Region: "fra",
		PrivateIP: "fdaa:0:18:a7b:7d::2", InstanceID: "01HX", Image: "registry.fly.io/acme:1"}
	with := func(change func(*Machine)) Machine { m := ordinary; change(&m); return m }
	for _, tt := range []struct {
		name    string
		env     func(string) string
		want    Machine
		wantErr string
	}{
		{"ordinary", fly(), ordinary, ""},
		{"no group", fly("FLY_PROCESS_GROUP="), with(func(m *Machine) { m.Group = "app" }), ""},
		{"burst", fly("FLYMESH_BURST=1"), with(func(m *Machine) { m.Burst = true }), ""},
		{"release command", fly("RELEASE_COMMAND=1", "FLY_PROCESS_GROUP=fly_app_release_command"), with(func(m *Machine) {
			m.Group, m.Special = "fly_app_release_command", "release command (RELEASE_COMMAND=1)"
		}), ""},
		{"release group alone", fly("FLY_PROCESS_GROUP=fly_app_release_command"), with(func(m *Machine) {
			m.Group, m.Special = "fly_app_release_command", "temporary machine (process group fly_app_release_command)"
		}), ""},
		{"console", fly("FLY_PROCESS_GROUP=fly_app_console"), with(func(m *Machine) {
			m.Group, m.Special = "fly_app_console", "temporary machine (process group fly_app_console)"
		}), ""},
		{"test machine", fly("FLY_PROCESS_GROUP=fly_app_test_machine_command"), with(func(m *Machine) {
			m.Group, m.Special = "fly_app_test_machine_command", "temporary machine (process group fly_app_test_machine_command)"
		}), ""},
		{"machine check", fly("FLY_TEST_MACHINE_IP=fdaa::9"), with(func(m *Machine) { m.Special = "test machine (FLY_TEST_MACHINE_IP is set)" }), ""},
		{"special without facts", env(map[string]string{"RELEASE_COMMAND": "1"}), Machine{Group: "app", Special: "release command (RELEASE_COMMAND=1)"}, ""},
		{"not on Fly", env(nil), Machine{Group: "app"}, "read machine facts: FLY_MACHINE_ID, FLY_APP_NAME, FLY_REGION, FLY_PRIVATE_IP not set"},
		{"bad address", fly("FLY_PRIVATE_IP=here"), with(func(m *Machine) { m.PrivateIP = "here" }), "read machine facts: FLY_PRIVATE_IP: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := FromEnv(tt.env)
			if (err == nil) != (tt.wantErr == "") || err != nil && !strings.HasPrefix(err.Error(), tt.wantErr) {
				t.Errorf("err = %v, want %q", err, tt.wantErr)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("machine (-want +got):\n%s", d)
			}
		})
	}
}

func TestNewBoot(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		b := NewBoot()
		if len(b) != 32 || strings.Trim(b, "0123456789abcdef") != "" || seen[b] {
			t.Fatalf("boot %q: want 32 hex digits, never twice", b)
		}
		seen[b] = true
	}
}

func TestTokens(t *testing.T) {
	tokens, missing := Tokens(env(map[string]string{"FLYMESH_TOKEN_ACME_N8N": " one\n", "FLYMESH_TOKEN_B": "  "}), []string{"acme-n8n", "b", "c.d"})
	if got := tokens["acme-n8n"].Reveal(); got != "one" || len(tokens) != 1 {
		t.Errorf("tokens: %q of %d", got, len(tokens))
	}
	if d := cmp.Diff([]string{"b", "c.d"}, missing); d != "" {
		t.Errorf("missing (-want +got):\n%s", d)
	}
	tokens, missing = Tokens(env(map[string]string{"FLY_API_TOKEN": "all", "FLYMESH_TOKEN_A": "own"}), []string{"a", "b"})
	if tokens["a"].Reveal() != "own" || tokens["b"].Reveal() != "all" || missing != nil {
		t.Errorf("an app's own token comes first, then FLY_API_TOKEN: %q %q, missing %v", tokens["a"].Reveal(), tokens["b"].Reveal(), missing)
	}
	if got := TokenEnv("acme-n8n.v2"); got != "FLYMESH_TOKEN_ACME_N8N_V2" {
		t.Errorf("TokenEnv = %s", got)
	}
}
