// Package jsontree looks JSON values up in their text (Value), decodes what is to be changed (Object), and
// writes the difference as a JSON patch. What it does not know it does not touch.
package jsontree

import (
	"fmt"
	"slices"
	"strings"
)

// Object is a JSON object of Object, []any, string, bool, json.Number, nil, or raw Value, which stays text.
type Object = map[string]any

// Members returns an object with these members, all nil.
func Members(names ...string) Object {
	object := Object{}
	for _, name := range names {
		object[name] = nil
	}
	return object
}

// Lookup returns the value at path; the zero value of its type where there is none of that type.
func Lookup[T any](object Object, path ...string) T {
	var value any = object
	for _, key := range path {
		level, _ := value.(Object)
		value = level[key]
	}
	found, _ := value.(T)
	return found
}

// Ensure returns the object at path, made where it is missing or null; an error where something else is.
func Ensure(object Object, path ...string) (Object, error) {
	for i, key := range path {
		if object[key] == nil {
			object[key] = Object{}
		}
		next, isObject := object[key].(Object)
		if !isObject {
			return nil, fmt.Errorf("%s is not an object", strings.Join(path[:i+1], "."))
		}
		object = next
	}
	return object, nil
}

// Name returns the name of a list's element; empty when it has none.
func Name(element any) string {
	if text, isText := element.(Value); isText {
		return text.Get("name").String()
	}
	object, _ := element.(Object)
	return Lookup[string](object, "name")
}

// IndexOf returns where in a list the first element of a name is, or -1.
func IndexOf(list []any, name string) int {
	return slices.IndexFunc(list, func(element any) bool { return name != "" && Name(element) == name })
}

// Named returns the first element of a name, decoded in the list; nil when there is none.
func Named(list []any, name string) Object {
	i := IndexOf(list, name)
	if i < 0 {
		return nil
	}
	if text, isText := list[i].(Value); isText {
		list[i] = text.Tree()
	}
	return list[i].(Object)
}

// Clone returns a copy of object that shares no object and no list with it.
func Clone(object Object) Object { return clone(object).(Object) }

func clone(value any) any {
	switch value := value.(type) {
	case Object:
		copied := make(Object, len(value))
		for key, member := range value {
			copied[key] = clone(member)
		}
		return copied
	case []any:
		copied := make([]any, len(value))
		for i, element := range value {
			copied[i] = clone(element)
		}
		return copied
	}
	return value
}
