package main

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// TestDocumentedCommands parses every agentctl command line of the documents:
// in code blocks what begins a line (after a prompt, or not), elsewhere what
// stands between backquotes.
func TestDocumentedCommands(t *testing.T) {
	n := 0
	root := "../.."
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, path)
		switch {
		case err != nil:
			return err
		case d.IsDir() && rel != "." && !strings.HasPrefix(rel, "docs"):
			return filepath.SkipDir
		case d.IsDir() || filepath.Ext(path) != ".md" || filepath.Dir(rel) == "." && d.Name() != "README.md":
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, line := range commandLines(string(b)) {
			n++
			if err := parses(line); err != nil && !names(line) {
				t.Errorf("%s: %s: %v", rel, line, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n < 20 {
		t.Errorf("%d commands found: the documents are read wrong", n)
	}
	for _, wrong := range []string{"agentctl frobnicate", "agentctl job frob", "agentctl unlock x --forse", "agentctl scale n8n +1 now"} {
		if parses(wrong) == nil || names(wrong) {
			t.Errorf("%q passes", wrong)
		}
	}
	t.Logf("%d commands parse", n)
}

var quoted = regexp.MustCompile("`((?:bin/)?agentctl [^`]+)`")

func commandLines(text string) (lines []string) {
	fenced := false
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			fenced = !fenced
			continue
		}
		if code := strings.TrimPrefix(strings.TrimSpace(line), "$ "); fenced || strings.HasPrefix(line, "    ") {
			if strings.HasPrefix(code, "agentctl ") || strings.HasPrefix(code, "bin/agentctl ") {
				lines = append(lines, code)
			}
			continue
		}
		for _, m := range quoted.FindAllStringSubmatch(line, -1) {
			lines = append(lines, m[1])
		}
	}
	return lines
}

// parses reads a command line as far as its comment, which stands after two
// spaces or a #, or as the shell goes on with its output. Alternatives such as list|run are held apart.
func parses(line string) error {
	line, _, _ = strings.Cut(line, "  ")
	line, _, _ = strings.Cut(line, " #")
	line, _, _ = strings.Cut(line, " | ")
	line, _, _ = strings.Cut(line, " > ")
	for _, word := range strings.Fields(line) {
		if strings.Contains(word, "|") {
			for _, one := range strings.Split(word, "|") {
				if err := parses(strings.Replace(line, word, one, 1)); err != nil {
					return err
				}
			}
			return nil
		}
	}
	var c cli
	p, err := kong.New(&c, kong.Name("agentctl"), kong.Writers(io.Discard, io.Discard), kong.Exit(func(int) {}), kong.Vars{"version": "test"})
	if err != nil {
		return err
	}
	_, err = p.Parse(negatives(words(line)[1:]))
	return err
}

// names says whether a line is the mere name of a command, as in a sentence.
func names(line string) bool {
	var c cli
	node := kong.Must(&c, kong.Vars{"version": "test"}).Model.Node
	for _, word := range words(line)[1:] {
		i := slices.IndexFunc(node.Children, func(n *kong.Node) bool { return n.Name == word })
		if i < 0 {
			return false
		}
		node = node.Children[i]
	}
	return true
}

// words splits as a shell does, with quotes.
func words(line string) (all []string) {
	word, quote, open := "", rune(0), false
	for _, r := range line + " " {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '"' || r == '\''):
			quote, open = r, true
		case quote == 0 && r == ' ':
			if open || word != "" {
				all = append(all, word)
			}
			word, open = "", false
		default:
			word += string(r)
		}
	}
	return all
}
