package patchset

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
)

// checkFields compares a YAML document with the type of a Pod: every field
// must be one that the Pod has, every value of its kind. Directives of
// strategic merge ("$patch" and its like) are allowed. All that is wrong comes
// back in one error, each with its line.
func checkFields(document *yaml.Node) error {
	var c fieldCheck
	c.value(document.Content[0], reflect.TypeFor[corev1.Pod](), "")
	if c.wrong == nil {
		return nil
	}
	return errors.New(strings.Join(c.wrong, "; "))
}

type fieldCheck struct {
	wrong []string
}

func (c *fieldCheck) add(node *yaml.Node, format string, args ...any) {
	c.wrong = append(c.wrong, fmt.Sprintf("line %d: ", node.Line)+fmt.Sprintf(format, args...))
}

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

func (c *fieldCheck) value(node *yaml.Node, t reflect.Type, path string) {
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	// A null removes the field. A type that decodes itself, such as a
	// quantity, knows its own forms.
	if node.ShortTag() == "!!null" || reflect.PointerTo(t).Implements(unmarshaler) {
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		c.object(node, t, path)
	case reflect.Map:
		if c.isKind(node, yaml.MappingNode, "an object", path) {
			for i := 0; i < len(node.Content); i += 2 {
				at := join(path, node.Content[i].Value)
				c.value(node.Content[i], t.Key(), at)
				c.value(node.Content[i+1], t.Elem(), at)
			}
		}
	case reflect.Slice:
		if c.isKind(node, yaml.SequenceNode, "a list", path) {
			for i, element := range node.Content {
				at := fmt.Sprintf("%s[%d]", path, i)
				if element.ShortTag() == "!!null" {
					c.add(element, "%s is empty", at)
				}
				c.value(element, t.Elem(), at)
			}
		}
	case reflect.String:
		c.isScalar(node, "!!str", "a string: write it in quotes", path)
	case reflect.Bool:
		c.isScalar(node, "!!bool", "true or false", path)
	default:
		c.isScalar(node, "!!int", "an integer", path)
	}
}

func (c *fieldCheck) object(node *yaml.Node, t reflect.Type, path string) {
	if !c.isKind(node, yaml.MappingNode, "an object", path) {
		return
	}
	fields := jsonFields(t)
	for i := 0; i < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		if field, found := fields[key.Value]; found {
			c.value(value, field, join(path, key.Value))
		} else if !isDirective(key.Value, fields) {
			c.add(key, "unknown field %s", join(path, key.Value))
		}
	}
}

func (c *fieldCheck) isKind(node *yaml.Node, kind yaml.Kind, want, path string) bool {
	if node.Kind != kind {
		c.add(node, "field %s: want %s", path, want)
		return false
	}
	return true
}

func (c *fieldCheck) isScalar(node *yaml.Node, tag, want, path string) {
	if node.Kind != yaml.ScalarNode || node.ShortTag() != tag {
		c.add(node, "field %s: want %s", path, want)
	}
}

// isDirective reports whether key is a directive of strategic merge for an
// object with these fields.
func isDirective(key string, fields map[string]reflect.Type) bool {
	if key == "$patch" || key == "$retainKeys" {
		return true
	}
	for _, prefix := range []string{elementOrder, "$deleteFromPrimitiveList/"} {
		if list, found := strings.CutPrefix(key, prefix); found {
			return fields[list] != nil
		}
	}
	return false
}

// jsonFields returns the fields of a struct by their names in JSON, those of
// inlined structs included.
func jsonFields(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for field := range t.Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		switch {
		case name == "" && field.Anonymous:
			maps.Copy(fields, jsonFields(field.Type))
		case name != "" && name != "-":
			fields[name] = field.Type
		}
	}
	return fields
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
