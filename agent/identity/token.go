package identity

import "strings"

// Token is a Fly token. It never prints itself; Reveal gives it to the one
// place that sends it. The zero Token is none.
type Token struct {
	hidden
	reveal func() string
}

// NewToken wraps a token as Fly wrote it.
func NewToken(s string) Token {
	if s = strings.TrimSpace(s); s == "" {
		return Token{}
	}
	return Token{reveal: func() string { return s }}
}

// Reveal returns the token itself, empty for none.
func (t Token) Reveal() string {
	if t.reveal == nil {
		return ""
	}
	return t.reveal()
}

// TokenEnv returns the name of the environment variable that holds an app's
// token: FLYMESH_TOKEN_ACME_N8N for acme-n8n.
func TokenEnv(app string) string {
	return "FLYMESH_TOKEN_" + strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, app)
}

// Tokens finds the token of each app: its own variable (TokenEnv), else
// FLY_API_TOKEN. Missing lists the apps that have none, in the given order.
func Tokens(getenv func(string) string, apps []string) (tokens map[string]Token, missing []string) {
	tokens = make(map[string]Token, len(apps))
	for _, app := range apps {
		t := NewToken(getenv(TokenEnv(app)))
		if t.Reveal() == "" {
			t = NewToken(getenv("FLY_API_TOKEN"))
		}
		if t.Reveal() == "" {
			missing = append(missing, app)
			continue
		}
		tokens[app] = t
	}
	return tokens, missing
}
