package config

import (
	"fmt"
	"strings"
)

// scanLines maps key paths (service.n8n.probe[0].url) to line numbers. The
// TOML library keeps positions to itself, so this walks the text again; the
// text has passed the library, so every construct is well formed.
func scanLines(text string) map[string]int {
	s := &scanner{text: text, line: 1, lines: map[string]int{}, arrays: map[string]int{}}
	for {
		s.skipBlank()
		if s.pos >= len(s.text) {
			return s.lines
		}
		if s.peek() == '[' {
			s.header()
		} else {
			s.keyValue(s.prefix)
		}
	}
}

type scanner struct {
	text   string
	pos    int
	line   int
	prefix string         // path of the table that keys belong to
	lines  map[string]int // path -> line
	arrays map[string]int // path of an array of tables -> elements so far
}

func (s *scanner) peek() byte {
	if s.pos < len(s.text) {
		return s.text[s.pos]
	}
	return 0
}

func (s *scanner) next() byte {
	c := s.peek()
	if c == '\n' {
		s.line++
	}
	s.pos++
	return c
}

// skipBlank passes white space, line ends and comments.
func (s *scanner) skipBlank() {
	for s.pos < len(s.text) {
		switch c := s.peek(); {
		case c == '#':
			for s.pos < len(s.text) && s.peek() != '\n' {
				s.next()
			}
		case c == ' ' || c == '\t' || c == '\r' || c == '\n':
			s.next()
		default:
			return
		}
	}
}

func (s *scanner) note(path string) {
	if _, ok := s.lines[path]; !ok {
		s.lines[path] = s.line
	}
}

// header reads [a.b] or [[a.b]].
func (s *scanner) header() {
	s.next()
	array := s.peek() == '['
	if array {
		s.next()
	}
	parts := s.key()
	path := ""
	for i, p := range parts {
		path = join(path, p)
		s.note(path)
		last := i == len(parts)-1
		if last && array {
			s.arrays[path]++
		}
		if n := s.arrays[path]; n > 0 {
			path = fmt.Sprintf("%s[%d]", path, n-1)
			s.note(path)
		}
	}
	s.prefix = path
	for s.peek() == ']' {
		s.next()
	}
}

// key reads a dotted key up to what ends it (= or ]).
func (s *scanner) key() []string {
	var parts []string
	for {
		s.skipBlank()
		var part string
		if c := s.peek(); c == '"' || c == '\'' {
			part = s.str()
		} else {
			start := s.pos
			for s.pos < len(s.text) && !strings.ContainsRune(" \t\r\n.=]", rune(s.peek())) {
				s.next()
			}
			part = s.text[start:s.pos]
		}
		parts = append(parts, part)
		s.skipBlank()
		if s.peek() != '.' {
			return parts
		}
		s.next()
	}
}

func (s *scanner) keyValue(prefix string) {
	s.skipBlank()
	path, line := prefix, s.line
	for _, p := range s.key() {
		path = join(path, p)
		if _, ok := s.lines[path]; !ok {
			s.lines[path] = line
		}
	}
	s.next() // =
	s.value(path)
}

// value passes one value and notes the elements of arrays and inline tables.
func (s *scanner) value(path string) {
	s.skipBlank()
	switch s.peek() {
	case '"', '\'':
		s.str()
	case '[':
		s.next()
		for i := 0; ; i++ {
			s.skipSeparators()
			if s.pos >= len(s.text) || s.peek() == ']' {
				s.next()
				return
			}
			element := fmt.Sprintf("%s[%d]", path, i)
			s.note(element)
			before := s.pos
			s.value(element)
			if s.pos == before { // not TOML: go on all the same
				s.next()
			}
		}
	case '{':
		s.next()
		for {
			s.skipSeparators()
			if s.pos >= len(s.text) || s.peek() == '}' {
				s.next()
				return
			}
			s.keyValue(path)
		}
	default:
		for s.pos < len(s.text) && !strings.ContainsRune(",]}#\r\n", rune(s.peek())) {
			s.next()
		}
	}
}

func (s *scanner) skipSeparators() {
	for s.skipBlank(); s.peek() == ','; s.skipBlank() {
		s.next()
	}
}

// str passes a string of any of the four forms and returns what is between its
// quotes, escapes untouched.
func (s *scanner) str() string {
	quote := s.text[s.pos : s.pos+1]
	if triple := strings.Repeat(quote, 3); strings.HasPrefix(s.text[s.pos:], triple) {
		quote = triple
	}
	escapes := quote[0] == '"'
	s.pos += len(quote)
	start := s.pos
	for s.pos < len(s.text) && !strings.HasPrefix(s.text[s.pos:], quote) {
		if s.next() == '\\' && escapes && s.pos < len(s.text) {
			s.next()
		}
	}
	inner := s.text[start:min(s.pos, len(s.text))]
	s.pos += len(quote)
	// A multi-line string may end in up to two more quotes of its own.
	for len(quote) == 3 && s.peek() == quote[0] {
		s.next()
	}
	return inner
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
