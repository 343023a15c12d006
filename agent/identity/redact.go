package identity

import (
	"fmt"
	"io"
	"log/slog"
)

// redacted is what a Secret or Token says of itself.
const redacted = "[redacted]"

// hidden gives its holder every method by which Go prints a value. Holders
// keep the value in a function, because fmt walks into unexported fields of a
// struct without asking for methods: it prints a function as an address, but
// follows pointers when the verb does not fit the type.
type hidden struct{}

// String hides the value.
func (hidden) String() string { return redacted }

// GoString hides the value from %#v.
func (hidden) GoString() string { return redacted }

// Format hides the value from every verb of package fmt.
func (hidden) Format(s fmt.State, _ rune) { io.WriteString(s, redacted) }

// LogValue hides the value from package slog.
func (hidden) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON hides the value from package json.
func (hidden) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// MarshalText hides the value from every other encoder.
func (hidden) MarshalText() ([]byte, error) { return []byte(redacted), nil }
