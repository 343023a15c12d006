package flyapi

import (
	"errors"
	"log/slog"
	"strings"

	"github.com/superfly/fly-go/tokens"
)

// redacted is what a token shows of itself.
const redacted = "[redacted]"

// Token is a Fly API token that never shows its value: not printed with any
// verb, not logged, not encoded. The value sits in a closure, so that even a
// struct that holds a Token in an unexported field prints no more than an
// address.
type Token struct{ reveal func() string }

// NewToken wraps a token as `fly tokens create` prints it, with or without
// its "FlyV1" or "Bearer" scheme.
func NewToken(value string) Token {
	value = strings.TrimSpace(value)
	return Token{reveal: func() string { return value }}
}

// Empty reports whether there is no value.
func (t Token) Empty() bool { return t.reveal == nil || t.reveal() == "" }

// String returns a placeholder.
func (t Token) String() string { return redacted }

// GoString returns a placeholder.
func (t Token) GoString() string { return redacted }

// LogValue returns a placeholder.
func (t Token) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns a placeholder.
func (t Token) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// parse returns the form that fly-go sends.
func (t Token) parse() (*tokens.Tokens, error) {
	if t.Empty() {
		return nil, errors.New("token is empty")
	}
	for _, r := range t.reveal() {
		if r < ' ' || r > '~' {
			return nil, errors.New("token has a character that cannot be in a header")
		}
	}
	return tokens.Parse(t.reveal()), nil
}

// scrub takes every token of an Authorization header out of a text.
func scrub(text, authorization string) string {
	for _, t := range strings.Split(tokens.StripAuthorizationScheme(authorization), ",") {
		if t = strings.TrimSpace(t); t != "" {
			text = strings.ReplaceAll(text, t, redacted)
		}
	}
	return text
}
