package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"flymesh/agent/identity"
)

func env(pairs map[string]string) func(string) string {
	return func(key string) string { return pairs[key] }
}

func TestCheck(t *testing.T) {
	good := identity.NewSecret()
	bad := filepath.Join(t.TempDir(), "bad.toml")
	if err := os.WriteFile(bad, []byte("[mesh]\nname = \"m\"\n[service.a]\napp = \"a\"\nvote = true\nbaseline = 2\nmax = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		path string
		env  func(string) string
		code int
		want []string // each on a line of its own
	}{
		{"file alone", reference, nil, 0, []string{
			"mesh.toml: ok: mesh acme; services n8n 1 to 3, embeddings 1 to 3, redis 1 to 1, web 1 to 1; jobs NightlyIngest on n8n, ReIndexNow on n8n; config "}},
		{"nothing set", reference, env(nil), 2, []string{
			"environment: FLYMESH_SECRET: is not set: make one with `agentctl secret new` and set the same on every app",
			"environment: FLYMESH_TOKEN_ACME_N8N: is not set, nor is FLY_API_TOKEN: a voter needs a deploy token of app acme-n8n",
			"environment: FLYMESH_TOKEN_ACME_EMBEDDINGS: ", "environment: FLYMESH_TOKEN_ACME_REDIS: ", "environment: FLYMESH_TOKEN_ACME_WEB: "}},
		{"short secret", reference, env(map[string]string{"FLYMESH_SECRET": "c2hvcnQ=", "FLY_API_TOKEN": "t"}), 2, []string{
			"environment: FLYMESH_SECRET: has 5 bytes, at least 32 are needed"}},
		{"one token missing", reference, env(map[string]string{"FLYMESH_SECRET": good, "FLYMESH_TOKEN_ACME_N8N": "t", "FLYMESH_TOKEN_ACME_EMBEDDINGS": "t", "FLYMESH_TOKEN_ACME_REDIS": "t"}), 2, []string{
			"environment: FLYMESH_TOKEN_ACME_WEB: "}},
		{"all set", reference, env(map[string]string{"FLYMESH_SECRET": good, "FLY_API_TOKEN": "t"}), 0, []string{"mesh.toml: ok: "}},
		{"a service that cannot vote needs no token", reference, env(map[string]string{"FLYMESH_SECRET": good, "FLY_APP_NAME": "acme-web"}), 0, []string{"mesh.toml: ok: "}},
		{"a voter's machine does", reference, env(map[string]string{"FLYMESH_SECRET": good, "FLY_APP_NAME": "acme-n8n", "FLYMESH_TOKEN_ACME_EMBEDDINGS": "t", "FLYMESH_TOKEN_ACME_REDIS": "t", "FLYMESH_TOKEN_ACME_WEB": "t"}), 2, []string{
			"environment: FLYMESH_TOKEN_ACME_N8N: "}},
		{"a stranger", reference, env(map[string]string{"FLYMESH_SECRET": good, "FLY_APP_NAME": "acme-n8n", "FLY_PROCESS_GROUP": "cron"}), 2, []string{
			`environment: FLY_APP_NAME: app "acme-n8n" with process group "cron" is no service of this mesh; its apps are acme-n8n, acme-embeddings, acme-redis, acme-web`}},
		{"file and secret together", bad, env(nil), 2, []string{
			"bad.toml:7: service.a.max = 1: must be at least baseline (2)", "environment: FLYMESH_SECRET: is not set"}},
		{"no file", filepath.Join(t.TempDir(), "none.toml"), nil, 2, []string{"read config: open "}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			if code := Check(&out, tt.path, tt.env); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
			if len(lines) != len(tt.want) {
				t.Fatalf("%d lines, want %d:\n%s", len(lines), len(tt.want), out.String())
			}
			for i, want := range tt.want {
				if !strings.Contains(lines[i], want) {
					t.Errorf("line %d = %q, want %q in it", i, lines[i], want)
				}
			}
		})
	}
}
