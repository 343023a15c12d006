package demo

import (
	"strings"
	"testing"

	"flymesh/agent/config"
)

func TestConfigIsValid(t *testing.T) {
	b, err := fastPace.config()
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Parse("mesh.toml", b)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	voting, most := 0, 0
	for _, s := range c.Services {
		names = append(names, s.Name)
		most += s.Policy.Max
		if s.Vote {
			voting++
		}
	}
	if got := strings.Join(names, " "); got != "n8n embeddings redis web" || voting != 3 || most != 8 {
		t.Errorf("got services %s, %d with votes, %d machines at the cap", got, voting, most)
	}
}
