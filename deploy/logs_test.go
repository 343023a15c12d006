package deploy

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
)

// TestLogShipper holds the shipper's configuration together: what is an input is
// there, what it takes from the environment fly.toml names, and what it takes
// from the agent's lines is what the agent writes.
func TestLogShipper(t *testing.T) {
	type part struct {
		Type   string   `toml:"type"`
		Inputs []string `toml:"inputs"`
		Source string   `toml:"source"`
	}
	var v struct{ Sources, Transforms, Sinks map[string]part }
	text := read(t, "logs/vector.toml")
	if _, err := toml.Decode(text, &v); err != nil {
		t.Fatal(err)
	}
	fed := map[string]bool{}
	for _, parts := range []map[string]part{v.Sources, v.Transforms, v.Sinks} {
		for name, p := range parts {
			if p.Type == "" {
				t.Errorf("%s has no type", name)
			}
			for _, in := range p.Inputs {
				fed[in] = true
				if v.Sources[in].Type == "" && v.Transforms[in].Type == "" {
					t.Errorf("%s takes from %s, which is not there", name, in)
				}
			}
		}
	}
	for name := range v.Sources {
		if !fed[name] {
			t.Errorf("nobody takes from %s", name)
		}
	}
	fly := read(t, "logs/fly.toml")
	for _, m := range regexp.MustCompile(`\$\{([A-Z_]+)`).FindAllStringSubmatch(text, -1) {
		if !regexp.MustCompile(`(?m)^(#|)\s*` + m[1] + `\b`).MatchString(fly) {
			t.Errorf("fly.toml does not name %s", m[1])
		}
	}
	// What slog and the agent's main write on each line; docs/logs.md says the same.
	program := v.Transforms["lines"].Source
	for _, m := range regexp.MustCompile(`(?:fields|\.mesh)\.([a-z]+)`).FindAllStringSubmatch(program, -1) {
		if !slices.Contains([]string{"flymesh", "msg", "level", "time"}, m[1]) {
			t.Errorf("the program takes %q, which is not on every line", m[1])
		}
	}
	if n := strings.Count(program, "{") - strings.Count(program, "}"); n != 0 {
		t.Errorf("%d braces are open", n)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
