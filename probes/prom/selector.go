package prom

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	dto "github.com/prometheus/client_model/go"
)

// Selector picks series by name and labels, as in PromQL:
//
//	name{label="value",other!="value",code=~"5..",path!~"/internal/.*"}
//
// A regular expression must match the whole value. A label that a series does
// not have is the empty string.
type Selector struct {
	Name     string
	matchers []matcher
	text     string
}

type matcher struct {
	label  string
	value  string
	re     *regexp.Regexp // nil: compare with value
	negate bool
}

// ParseSelector reads a Selector. Its error names the place.
func ParseSelector(text string) (Selector, error) {
	p := parser{text: text}
	s, err := p.selector()
	if err != nil {
		return Selector{}, fmt.Errorf("parse selector %q: at %d: %w", text, p.at+1, err)
	}
	s.text = text
	return s, nil
}

// String returns the selector as it was written.
func (s Selector) String() string { return s.text }

// matches says whether a series with these labels is picked.
func (s Selector) matches(labels []*dto.LabelPair) bool {
	for _, m := range s.matchers {
		value := ""
		for _, l := range labels {
			if l.GetName() == m.label {
				value = l.GetValue()
			}
		}
		is := value == m.value
		if m.re != nil {
			is = m.re.MatchString(value)
		}
		if is == m.negate {
			return false
		}
	}
	return true
}

type parser struct {
	text string
	at   int
}

func (p *parser) selector() (s Selector, err error) {
	p.spaces()
	if s.Name = p.word(true); s.Name == "" {
		return s, errors.New("want a metric name")
	}
	p.spaces()
	if p.end() {
		return s, nil
	}
	if !p.skip("{") {
		return s, errors.New("want { or the end")
	}
	for p.spaces(); !p.skip("}"); p.spaces() {
		if len(s.matchers) > 0 {
			if !p.skip(",") {
				return s, errors.New("want , or }")
			}
			p.spaces()
		}
		m, err := p.matcher()
		if err != nil {
			return s, err
		}
		s.matchers = append(s.matchers, m)
	}
	if p.spaces(); !p.end() {
		return s, errors.New("want the end after }")
	}
	return s, nil
}

func (p *parser) matcher() (m matcher, err error) {
	if m.label = p.word(false); m.label == "" {
		return m, errors.New("want a label name")
	}
	p.spaces()
	regex := false
	switch {
	case p.skip("=~"):
		regex = true
	case p.skip("!~"):
		regex, m.negate = true, true
	case p.skip("!="):
		m.negate = true
	case p.skip("="):
	default:
		return m, errors.New("want =, !=, =~ or !~ after the label name")
	}
	p.spaces()
	start := p.at
	if m.value, err = p.quoted(); err != nil || !regex {
		return m, err
	}
	if m.re, err = regexp.Compile("^(?s:" + m.value + ")$"); err != nil {
		p.at = start
		return m, err
	}
	return m, nil
}

// quoted reads a string in double quotes with the escapes \\, \" and \n.
func (p *parser) quoted() (string, error) {
	if !p.skip(`"`) {
		return "", errors.New(`want a value in "`)
	}
	var b strings.Builder
	for ; !p.end(); p.at++ {
		switch c := p.text[p.at]; c {
		case '"':
			p.at++
			return b.String(), nil
		case '\\':
			p.at++
			if p.end() {
				return "", errors.New("value without an end")
			}
			switch c := p.text[p.at]; c {
			case '\\', '"':
				b.WriteByte(c)
			case 'n':
				b.WriteByte('\n')
			default: // as a regular expression would write it: \d, \.
				b.WriteByte('\\')
				b.WriteByte(c)
			}
		default:
			b.WriteByte(c)
		}
	}
	return "", errors.New("value without an end")
}

// word reads a metric name (with colons) or label name.
func (p *parser) word(colons bool) string {
	start := p.at
	for ; !p.end(); p.at++ {
		c := p.text[p.at]
		letter := c == '_' || c|0x20 >= 'a' && c|0x20 <= 'z' || colons && c == ':'
		if !letter && (p.at == start || c < '0' || c > '9') {
			break
		}
	}
	return p.text[start:p.at]
}

func (p *parser) skip(s string) bool {
	if !strings.HasPrefix(p.text[p.at:], s) {
		return false
	}
	p.at += len(s)
	return true
}

func (p *parser) spaces() {
	for !p.end() && strings.IndexByte(" \t\n", p.text[p.at]) >= 0 {
		p.at++
	}
}

func (p *parser) end() bool { return p.at >= len(p.text) }
