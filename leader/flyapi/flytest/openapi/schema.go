package openapi

import (
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// schema is as much of a JSON schema as the document uses.
type schema struct {
	Ref        string             `json:"$ref"`
	Type       string             `json:"type"`
	Properties map[string]*schema `json:"properties"`
	Required   []string           `json:"required"`
	Enum       []any              `json:"enum"`
	Items      *schema            `json:"items"`
	Additional *schema            `json:"additionalProperties"`
	AllOf      []*schema          `json:"allOf"`
	Minimum    *float64           `json:"minimum"`
	Maximum    *float64           `json:"maximum"`
}

// resolve follows references and joins allOf into one schema.
func (d *Document) resolve(s *schema) *schema {
	for s != nil && s.Ref != "" {
		s = d.Components.Schemas[strings.TrimPrefix(s.Ref, "#/components/schemas/")]
	}
	if s == nil || len(s.AllOf) == 0 {
		return s
	}
	out := *s
	out.Properties = maps.Clone(s.Properties)
	for _, part := range s.AllOf {
		p := d.resolve(part)
		if p == nil {
			continue
		}
		if out.Properties == nil {
			out.Properties = make(map[string]*schema)
		}
		maps.Copy(out.Properties, p.Properties)
		out.Required = append(out.Required, p.Required...)
		if out.Type == "" {
			out.Type = p.Type
		}
		if out.Enum == nil {
			out.Enum = p.Enum
		}
	}
	return &out
}

// value compares a JSON value with its schema. The place is written with []
// for any element of a list and * for any key of a map.
func (c *checker) value(at string, s *schema, v any) {
	s = c.doc.resolve(s)
	if s == nil {
		return
	}
	if got := kind(v, s.Type); s.Type != "" && got != s.Type {
		c.tell(at, "is %s, not %s", got, s.Type)
		return
	}
	if len(s.Enum) > 0 && !slices.ContainsFunc(s.Enum, func(e any) bool { return reflect.DeepEqual(e, v) }) {
		c.tell(at, "is %v, not one of %v", v, s.Enum)
	}
	switch v := v.(type) {
	case float64:
		if s.Minimum != nil && v < *s.Minimum || s.Maximum != nil && v > *s.Maximum {
			c.tell(at, "is %v, out of range", v)
		}
	case []any:
		for _, e := range v {
			c.value(at+"[]", s.Items, e)
		}
	case map[string]any:
		c.object(at, s, v)
	}
}

func (c *checker) object(at string, s *schema, v map[string]any) {
	for _, name := range s.Required {
		if _, ok := v[name]; !ok {
			c.tell(at+"."+name, "is missing")
		}
	}
	for name, e := range v {
		switch p := s.Properties[name]; {
		case p != nil:
			c.value(at+"."+name, p, e)
		case s.Additional != nil:
			c.value(at+".*", s.Additional, e)
		case len(s.Properties) > 0:
			c.tell(at+"."+name, "is not documented")
		}
	}
}

// text compares a query parameter, which is text whatever its type.
func (c *checker) text(at string, s *schema, v string) {
	s = c.doc.resolve(s)
	if s == nil {
		return
	}
	switch s.Type {
	case "integer":
		n, err := strconv.Atoi(v)
		if err != nil {
			c.tell(at, "is %q, not an integer", v)
			return
		}
		c.value(at, s, float64(n))
	case "boolean":
		if v != "true" && v != "false" {
			c.tell(at, "is %q, not a boolean", v)
		}
	case "string":
		c.value(at, s, v)
	}
}

// kind is the type of a value in the schema's words.
func kind(v any, want string) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case string:
		return "string"
	case float64:
		if want == "integer" && v == math.Trunc(v) {
			return "integer"
		}
		return "number"
	case []any:
		return "array"
	case map[string]any:
		return "object"
	}
	return fmt.Sprintf("%T", v)
}
