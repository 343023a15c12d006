package identity

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func secret(t *testing.T, env string) Secret {
	t.Helper()
	s, err := ParseSecret(env)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestParseSecretTakesEveryBase64(t *testing.T) {
	raw, err := base64.StdEncoding.DecodeString("+/8jLkV6eXdx0Yp1Yx2l3uTqfWm6zGJk7n5o0oZQ+/8=")
	if err != nil {
		t.Fatal(err)
	}
	want := secret(t, base64.StdEncoding.EncodeToString(raw)).PageToken("m")
	for _, e := range []*base64.Encoding{base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
		if got := secret(t, " "+e.EncodeToString(raw)+"\n").PageToken("m"); got != want {
			t.Errorf("%s is another secret than in standard base64", e.EncodeToString(raw))
		}
	}
}

func TestParseSecretRefusesWithoutShowing(t *testing.T) {
	good := NewSecret()
	if _, err := ParseSecret(" "); !errors.Is(err, ErrNoSecret) {
		t.Errorf("no secret: %v", err)
	}
	b64 := base64.StdEncoding.EncodeToString
	for _, tt := range []struct{ env, want string }{
		{b64([]byte(good)[:31]), "read FLYMESH_SECRET: has 31 bytes, at least 32 are needed"},
		{"correct horse battery staple, or so", "read FLYMESH_SECRET: secret 1 of 2 is not base64"},
		{b64(bytes.Repeat([]byte{7}, 40)), "read FLYMESH_SECRET: is not random"},
		{good + "," + b64([]byte("sixteen bytes...")), "read FLYMESH_SECRET: secret 2 of 2 has 16 bytes"},
		{good + ",", "read FLYMESH_SECRET: secret 2 of 2 is empty"},
		{good + "," + strings.TrimRight(good, "="), "read FLYMESH_SECRET: secret 2 of 2 is there twice"},
	} {
		_, err := ParseSecret(tt.env)
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("err = %v, want %s", err, tt.want)
			continue
		}
		for _, part := range strings.Split(tt.env, ",") {
			if len(part) > 4 && strings.Contains(err.Error(), part[:5]) {
				t.Errorf("the error shows the secret: %v", err)
			}
		}
	}
	if good == NewSecret() {
		t.Error("two new secrets are the same")
	}
}

// TestSecretsNeverPrint prints a secret and a token in every way there is, by
// themselves and inside other values, exported or not.
func TestSecretsNeverPrint(t *testing.T) {
	env := NewSecret()
	raw, err := base64.StdEncoding.DecodeString(env)
	if err != nil {
		t.Fatal(err)
	}
	const token = "FlyV1 fm2_lJPECAAAAAAA"
	type wrapped struct {
		s  Secret
		t  Token
		S  Secret
		T  Token
		ps *Secret
	}
	s, tk := secret(t, env), NewToken(token)
	w := wrapped{s, tk, s, tk, &s}
	var out strings.Builder
	values := []any{s, &s, tk, &tk, w, &w, []Secret{s}, []Token{tk}, map[string]Token{"a": tk}, [1]any{tk}, errors.Join(fmt.Errorf("x %v %v", s, tk))}
	for _, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%08b"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		fmt.Fprintln(&out, v)
		if b, err := json.Marshal(v); err == nil {
			out.Write(b)
		}
		if b, err := xml.Marshal(v); err == nil {
			out.Write(b)
		}
		slog.New(slog.NewJSONHandler(&out, nil)).Info("json", "v", v)
		slog.New(slog.NewTextHandler(&out, nil)).Info("text", "v", v)
	}
	for _, leak := range []string{env, string(raw), hex.EncodeToString(raw[:4]), strings.ToUpper(hex.EncodeToString(raw[:4])),
		fmt.Sprint(raw)[1:20], fmt.Sprintf("%#v", raw)[8:30], fmt.Sprintf("%08b", raw)[1:30], token, "fm2_", hex.EncodeToString([]byte(token)), strings.ToUpper(hex.EncodeToString([]byte(token)))} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("output holds %q", leak)
		}
	}
	if !strings.Contains(out.String(), redacted) {
		t.Error("nothing was redacted: the test prints the wrong things")
	}
	for _, verb := range []string{"%v", "%#v", "%x", "%d", "%q"} {
		if got := fmt.Sprintf(verb+verb, s, tk); got != redacted+redacted {
			t.Errorf("%s prints %s", verb, got)
		}
	}
	if b, err := xml.Marshal(tk); err != nil || !strings.Contains(string(b), redacted) {
		t.Errorf("XML: %s, %v", b, err)
	}
	if tk.Reveal() != token {
		t.Error("the token was changed")
	}
}

func TestGossipKeys(t *testing.T) {
	newer, older := NewSecret(), NewSecret()
	now := time.Date(2026, 7, 31, 23, 59, 0, 0, time.FixedZone("", -3600)) // 1 August in UTC
	ring := secret(t, newer+","+older).GossipKeys("acme", now)
	if len(ring) != 6 {
		t.Fatalf("%d keys, want 3 days of 2 secrets", len(ring))
	}
	has := func(ring [][]byte, key []byte) bool {
		for _, k := range ring {
			if bytes.Equal(k, key) {
				return true
			}
		}
		return false
	}
	for i, k := range ring {
		if len(k) != 32 {
			t.Errorf("key %d has %d bytes", i, len(k))
		}
		if has(ring[:i], k) {
			t.Errorf("key %d is there twice", i)
		}
	}
	primary := func(env, mesh string, at time.Time) []byte { return secret(t, env).GossipKeys(mesh, at)[0] }
	if !bytes.Equal(ring[0], primary(newer, "acme", time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC))) {
		t.Error("the first key is not the first secret's of this UTC day")
	}
	for name, key := range map[string][]byte{
		"the other secret":      primary(older, "acme", now),
		"an agent a day behind": primary(newer, "acme", now.AddDate(0, 0, -1)),
		"an agent a day ahead":  primary(newer, "acme", now.AddDate(0, 0, 1)),
	} {
		if !has(ring, key) {
			t.Errorf("what %s encrypts cannot be read", name)
		}
	}
	for name, key := range map[string][]byte{
		"another mesh":   primary(newer, "acme2", now),
		"another secret": primary(NewSecret(), "acme", now),
		"two days ago":   primary(newer, "acme", now.AddDate(0, 0, -2)),
	} {
		if has(ring, key) {
			t.Errorf("what %s encrypts can be read", name)
		}
	}
}

// TestDerivedKeysAreFixed holds the derivation still: a change would cut
// agents of two versions apart during a deploy.
func TestDerivedKeysAreFixed(t *testing.T) {
	s := Dev("acme")
	key := s.GossipKeys("acme", time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))[0]
	got := hex.EncodeToString(key) + " " + s.PageToken("acme")
	const want = "9e87a4ec4e522cd352baf3c93fd7767224df80f119573eeb70df46edee411fe3 DAgjb_ZhixIyutTiKETn1AcR-H4PWqj9WwUO03D3FaM"
	if got != want {
		t.Errorf("derived %s, want %s", got, want)
	}
	a, err := newAuthority(s.keys()[0], "acme")
	if err != nil {
		t.Fatal(err)
	}
	b, err := newAuthority(s.keys()[0], "acme")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.cert.Raw, b.cert.Raw) {
		t.Error("the authority's certificate differs between two machines")
	}
	if other, err := newAuthority(s.keys()[0], "acme2"); err != nil || other.key.Equal(a.key) {
		t.Errorf("two meshes share an authority's key (%v)", err)
	}
	var none Secret
	if none.PageToken("acme") != "" || len(none.GossipKeys("acme", time.Now())) != 0 {
		t.Error("the zero secret opens something")
	}
	if _, err := none.TLS("acme", "m", "b", time.Now()); !errors.Is(err, ErrNoSecret) {
		t.Errorf("TLS without a secret: %v", err)
	}
}
