// Package jsontree handles JSON objects of which only a part is known: it looks
// values up in their text (Value), decodes the parts that are to be changed into
// trees (Object), and describes the difference between two trees as an RFC 6902
// patch. What it does not know it does not touch.
package jsontree

import (
	"fmt"
	"strings"
)

// Object is a JSON object. Its values are Object, []any, string, bool,
// json.Number (the number's own text) or nil.
type Object = map[string]any

// Encoded is JSON text that stands for a value in a tree which is not looked into.
type Encoded string

// MarshalJSON returns the text.
func (e Encoded) MarshalJSON() ([]byte, error) { return []byte(e), nil }

// Lookup returns the value at path, or nil where a key is missing or a level
// is not an object.
func Lookup(object Object, path ...string) any {
	var value any = object
	for _, key := range path {
		level, ok := value.(Object)
		if !ok {
			return nil
		}
		value = level[key]
	}
	return value
}

// LookupObject is Lookup for an object; nil when the value is none.
func LookupObject(object Object, path ...string) Object {
	value, _ := Lookup(object, path...).(Object)
	return value
}

// LookupString is Lookup for a string; empty when the value is none.
func LookupString(object Object, path ...string) string {
	value, _ := Lookup(object, path...).(string)
	return value
}

// LookupList is Lookup for a list. A missing or null value is an empty list;
// any other value that is no list is an error.
func LookupList(object Object, path ...string) ([]any, error) {
	switch value := Lookup(object, path...).(type) {
	case nil:
		return nil, nil
	case []any:
		return value, nil
	default:
		return nil, fmt.Errorf("%s is not a list", strings.Join(path, "."))
	}
}

// Ensure returns the object at path and makes each level that is missing or
// null. It is an error when a level holds something else.
func Ensure(object Object, path ...string) (Object, error) {
	level := object
	for i, key := range path {
		switch next := level[key].(type) {
		case Object:
			level = next
		case nil:
			made := Object{}
			level[key] = made
			level = made
		default:
			return nil, fmt.Errorf("%s is not an object", strings.Join(path[:i+1], "."))
		}
	}
	return level, nil
}

// Clone returns a copy of object that shares no object and no list with it.
func Clone(object Object) Object {
	return cloneValue(object).(Object)
}

func cloneValue(value any) any {
	switch value := value.(type) {
	case Object:
		if value == nil {
			return value
		}
		clone := make(Object, len(value))
		for key, member := range value {
			clone[key] = cloneValue(member)
		}
		return clone
	case []any:
		if value == nil {
			return value
		}
		clone := make([]any, len(value))
		for i, element := range value {
			clone[i] = cloneValue(element)
		}
		return clone
	default:
		return value
	}
}
