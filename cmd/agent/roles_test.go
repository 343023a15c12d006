package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestWords(t *testing.T) {
	for text, want := range map[string][]string{
		"n8n start":                      {"n8n", "start"},
		"  a\tb \n c ":                   {"a", "b", "c"},
		`sh -c 'a; b "$C"' x\ y`:         {"sh", "-c", `a; b "$C"`, "x y"},
		`a "b \"c\" 'd'" ''`:             {"a", `b "c" 'd'`, ""},
		"":                               nil,
		`--flag="two words"/'and'/three`: {"--flag=two words/and/three"},
	} {
		got, err := words(text)
		if d := cmp.Diff(want, got); d != "" || err != nil {
			t.Errorf("%q: %v (-want +got)\n%s", text, err, d)
		}
	}
	for _, text := range []string{`a "b`, `a 'b`, `a b\`} {
		if got, err := words(text); err == nil {
			t.Errorf("%q gave %q", text, got)
		}
	}
}

func TestAppOf(t *testing.T) {
	two := options{config: "c", primary: "n8n start", replica: "n8n worker", killTimeout: time.Minute}
	for _, tt := range []struct {
		name    string
		o       options
		command []string
		special string
		want    string // the app, or what the error says
	}{
		{"a command", options{}, []string{"n8n", "start"}, "", "n8n start"},
		{"nothing", options{}, nil, "", "! the app's command is missing"},
		{"two roles", two, nil, "", "/agent roles -config c -kill-timeout 1m0s -primary n8n start -replica n8n worker"},
		{"two roles and a command", two, []string{"n8n"}, "", `! "n8n" is too much`},
		{"one role", options{primary: "a"}, nil, "", "! belong together"},
		{"a role that says nothing", options{primary: " ", replica: "b"}, nil, "", "! --primary: the command is empty"},
		{"a role that does not end", options{primary: "a", replica: "'b"}, nil, "", "! --replica: "},
		{"a release command", two, []string{"migrate"}, "release command", "migrate"},
		{"a release command without one", two, nil, "release command", "! nothing to run here"},
	} {
		app, err := appOf(tt.o, tt.command, tt.special, "/agent")
		got := strings.Join(app, " ")
		if err != nil {
			got = "! " + err.Error()
		}
		if rest, fails := strings.CutPrefix(tt.want, "! "); fails != (err != nil) || !strings.Contains(got, rest) {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}
