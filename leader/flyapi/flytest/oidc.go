package flytest

import (
	"cmp"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"sync"
	"time"
)

// tokenLife is how long an OIDC token is good for.
const tokenLife = 10 * time.Minute

// issuer signs OIDC tokens. Its key is made when it is first needed.
type issuer struct {
	once sync.Once
	key  *rsa.PrivateKey
	err  error
}

func (i *issuer) signer() (*rsa.PrivateKey, error) {
	i.once.Do(func() { i.key, i.err = rsa.GenerateKey(rand.Reader, 2048) })
	return i.key, i.err
}

// oidcIssuer names the emulator's own issuer. What verifies a token finds the
// keys below it, as it would below https://oidc.fly.io/ORG.
func (s *Server) oidcIssuer() string { return s.URL() + "/_emulator/oidc" }

// oidcToken answers with a JWT about the machine that asks.
func (s *Server) oidcToken(c *call) (reply, error) {
	in := struct {
		Aud string `json:"aud"`
	}{}
	if err := c.read(&in); err != nil {
		return reply{}, err
	}
	if c.self == nil {
		return reply{}, failf(http.StatusBadRequest, "invalid_argument: only a machine's own /.fly/api tells who it is")
	}
	now := time.Now()
	var claims map[string]any
	err := s.withMachine(c.self, func(m *machine) {
		claims = map[string]any{
			"iss": s.oidcIssuer(), "aud": cmp.Or(in.Aud, "https://fly.io/"+org), "jti": s.ids.ulid(now),
			"sub": org + ":" + m.app + ":" + m.name,
			"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(tokenLife).Unix(),
			"app_id": m.app, "app_name": m.app, "org_id": org, "org_name": org, "region": m.region, "image": m.config.Image,
			"machine_id": m.id, "machine_name": m.name, "machine_version": m.instanceID,
		}
	})
	if err != nil {
		return reply{}, err
	}
	token, err := s.issuer.sign(claims)
	if err != nil {
		return reply{}, err
	}
	return reply{code: http.StatusOK, raw: []byte(token), contentType: "text/plain; charset=utf-8"}, nil
}

func (s *Server) withMachine(a *selfAPI, fn func(*machine)) error {
	s.fleet.mu.Lock()
	defer s.fleet.mu.Unlock()
	m, err := s.fleet.find(a.app, a.machine)
	if err == nil {
		fn(m)
	}
	return err
}

const keyID = "flytest"

func (i *issuer) sign(claims map[string]any) (string, error) {
	key, err := i.signer()
	if err != nil {
		return "", fmt.Errorf("make OIDC key: %w", err)
	}
	body, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("write OIDC token: %w", err)
	}
	enc := base64.RawURLEncoding.EncodeToString
	text := enc([]byte(`{"alg":"RS256","kid":"`+keyID+`","typ":"JWT"}`)) + "." + enc(body)
	sum := sha256.Sum256([]byte(text))
	sig, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		return "", fmt.Errorf("sign OIDC token: %w", err)
	}
	return text + "." + enc(sig), nil
}

// controlOIDC answers what a verifier asks of an issuer: where its keys are,
// and the keys.
func (s *Server) controlOIDC(what string) (reply, error) {
	if what == "openid-configuration" {
		return ok(map[string]any{
			"issuer": s.oidcIssuer(), "jwks_uri": s.oidcIssuer() + "/.well-known/jwks",
			"response_types_supported": []string{"id_token"}, "subject_types_supported": []string{"public"},
			"id_token_signing_alg_values_supported": []string{"RS256"},
		})
	}
	key, err := s.issuer.signer()
	if err != nil {
		return reply{}, err
	}
	enc := base64.RawURLEncoding.EncodeToString
	return ok(map[string]any{"keys": []map[string]string{{
		"kty": "RSA", "use": "sig", "alg": "RS256", "kid": keyID,
		"n": enc(key.N.Bytes()), "e": enc(big.NewInt(int64(key.E)).Bytes()),
	}}})
}
