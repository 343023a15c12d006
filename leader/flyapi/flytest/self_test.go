package flytest_test

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	fly "github.com/superfly/fly-go"
	"github.com/superfly/fly-go/flaps"

	"flymesh/leader/flyapi/flytest"
)

// TestSelfAPI: a machine may use the API of its own app without a token, over
// its /.fly/api, and no other app's.
func TestSelfAPI(t *testing.T) {
	o := flytest.Options{Apps: []string{"other"}, Tokens: map[string]string{"web": "fm2_secret"}}
	bubble(t, o, func(t *testing.T, s *flytest.Server, c *flaps.Client) {
		ctx := t.Context()
		m := seed(t, s, "one")
		_, err := c.Get(ctx, "web", m.ID)
		wantStatus(t, "over the network, without a token", err, 401, "token")
		rt, err := s.SelfTransport(m.ID)
		must(t, "open /.fly/api", err)
		self := newClient(t, s, rt, "")
		must(t, "set own metadata", self.SetMetadata(ctx, "web", m.ID, "role", "primary"))
		got, err := self.Get(ctx, "web", m.ID)
		must(t, "get itself", err)
		if got.Config.Metadata["role"] != "primary" {
			t.Errorf("metadata is %v, want the role", got.Config.Metadata)
		}
		_, err = self.List(ctx, "other", "")
		wantStatus(t, "another app", err, 403, "is of app web")
		_, err = self.CreateApp(ctx, flaps.CreateAppRequest{Name: "more", Org: "personal"})
		wantStatus(t, "a new app", err, 403, "is of app web")
		for _, r := range s.Requests() {
			if r.Action == "set_metadata" && r.By != "machine-"+m.ID {
				t.Errorf("the audit log names %q, want the machine", r.By)
			}
		}
		must(t, "suspend itself", self.Suspend(ctx, "web", m.ID, ""))
		must(t, "suspended", s.Await(ctx, m.ID, "suspended"))
	})
}

// TestOIDC verifies a token as a relying party would: from the issuer's
// configuration to its keys.
func TestOIDC(t *testing.T) {
	o := flytest.Options{Apps: []string{"web"}}
	judged(t, &o)
	s, err := flytest.New(o)
	must(t, "make server", err)
	t.Cleanup(func() { s.Close() })
	must(t, "listen", s.Listen("127.0.0.1:0"))
	m := seed(t, s, "one")
	rt, err := s.SelfTransport(m.ID)
	must(t, "open /.fly/api", err)
	ask := func(rt http.RoundTripper) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), "POST", s.URL()+"/v1/tokens/oidc", strings.NewReader(`{"aud":"https://vault.example"}`))
		must(t, "make request", err)
		resp, err := (&http.Client{Transport: rt}).Do(r)
		must(t, "ask for a token", err)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		must(t, "read token", err)
		return resp.StatusCode, string(b)
	}
	if code, text := ask(http.DefaultTransport); code != 400 {
		t.Errorf("over the network: got %d %s, want 400", code, text)
	}
	code, token := ask(rt)
	parts := strings.Split(token, ".")
	if code != 200 || len(parts) != 3 {
		t.Fatalf("got %d %s, want a JWT", code, token)
	}
	var claims struct {
		Iss, Sub, Aud, Region string
		Exp, Iat              int64
		Machine               string `json:"machine_id"`
		Version               string `json:"machine_version"`
		App                   string `json:"app_name"`
	}
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	must(t, "decode claims", err)
	must(t, "decode claims", json.Unmarshal(body, &claims))
	if claims.Machine != m.ID || claims.App != "web" || claims.Sub != "flytest:web:one" || claims.Version != m.InstanceID ||
		claims.Aud != "https://vault.example" || claims.Exp-claims.Iat != 600 {
		t.Errorf("claims are %s", body)
	}
	fetch := func(url string, v any) {
		t.Helper()
		resp, err := http.Get(url)
		must(t, "fetch "+url, err)
		defer resp.Body.Close()
		must(t, "read "+url, json.NewDecoder(resp.Body).Decode(v))
	}
	var config struct {
		Issuer string
		Keys   string `json:"jwks_uri"`
	}
	fetch(claims.Iss+"/.well-known/openid-configuration", &config)
	var set struct{ Keys []struct{ Kty, N, E string } }
	fetch(config.Keys, &set)
	if config.Issuer != claims.Iss || len(set.Keys) != 1 {
		t.Fatalf("issuer %q has %d keys, the token is of %q", config.Issuer, len(set.Keys), claims.Iss)
	}
	number := func(text string) *big.Int {
		b, err := base64.RawURLEncoding.DecodeString(text)
		must(t, "decode key", err)
		return new(big.Int).SetBytes(b)
	}
	key := rsa.PublicKey{N: number(set.Keys[0].N), E: int(number(set.Keys[0].E).Int64())}
	sig, err := base64.RawURLEncoding.DecodeString(parts[2])
	must(t, "decode signature", err)
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	must(t, "verify the token", rsa.VerifyPKCS1v15(&key, crypto.SHA256, sum[:], sig))
}

// TestSelfAPIOfProcess: the machine's own file is there when it runs, and
// again after a stop and a start.
func TestSelfAPIOfProcess(t *testing.T) {
	l, err := flytest.NewProcesses(flytest.ProcessOptions{NoCgroups: true})
	must(t, "make launcher", err)
	s, err := flytest.New(flytest.Options{Launcher: l, Apps: []string{"web"}})
	must(t, "make server", err)
	t.Cleanup(func() { s.Close() })
	cfg := *config()
	cfg.Init.Exec = []string{"/bin/sleep", "60"}
	m, err := s.Seed(flytest.Spec{App: "web", Config: cfg, Start: true})
	must(t, "seed", err)
	for range 2 {
		must(t, "start", s.Await(t.Context(), m.ID, "started"))
		path := s.Machines()[0].API
		self := newClient(t, s, &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}}, "")
		got, err := self.Get(t.Context(), "web", m.ID)
		must(t, "get itself over "+path, err)
		if got.ID != m.ID {
			t.Errorf("got machine %s, want %s", got.ID, m.ID)
		}
		must(t, "stop itself", self.Stop(t.Context(), "web", fly.StopMachineInput{ID: m.ID}, ""))
		must(t, "stop", s.Await(t.Context(), m.ID, "stopped"))
		if _, err := net.Dial("unix", path); err == nil {
			t.Error("a machine that has stopped answers")
		}
		time.Sleep(60 * time.Millisecond) // until it may be started
		_, err = newClient(t, s, s.Transport(), "").Start(t.Context(), "web", m.ID, "")
		must(t, "start", err)
	}
}
