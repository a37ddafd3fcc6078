package jsontree

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Operation is one operation of a JSON patch (RFC 6902): "add", "remove" or
// "replace" at a JSON pointer (RFC 6901).
type Operation struct {
	Op   string `json:"op"`
	Path string `json:"path"`
	// Value is nil for a removal, and points to nil for null.
	Value *any `json:"value,omitempty"`
}

// append encodes the operation. A Value is taken as it is: encoding/json would check
// it once more.
func (o Operation) append(patch []byte) ([]byte, error) {
	patch = fmt.Appendf(patch, `{"op":%q,"path":`, o.Op)
	path, err := json.Marshal(o.Path)
	if err != nil {
		return nil, err
	}
	patch = append(patch, path...)
	if o.Value != nil {
		text, isText := (*o.Value).(Value)
		if !isText {
			if text, err = json.Marshal(*o.Value); err != nil {
				return nil, err
			}
		}
		patch = append(append(patch, `,"value":`...), text...)
	}
	return append(patch, '}'), nil
}

// Encode returns a patch as JSON.
func Encode(operations []Operation) (patch []byte, err error) {
	patch = append(patch, '[')
	for i, operation := range operations {
		if i > 0 {
			patch = append(patch, ',')
		}
		if patch, err = operation.append(patch); err != nil {
			return nil, err
		}
	}
	return append(patch, ']'), nil
}

// Diff returns the operations that turn before into after, none when they are
// equal. It touches only what differs: an element appended to a list is one
// "add" at its end, a changed member one "replace" of that member. The order is
// the same at each call: object members by name, then list positions.
func Diff(before, after Object) []Operation { return diffObjects(nil, "", before, after) }

var escapeToken = strings.NewReplacer("~", "~0", "/", "~1")

func diff(operations []Operation, path string, before, after any) []Operation {
	if beforeObject, was := before.(Object); was {
		if afterObject, is := after.(Object); is {
			return diffObjects(operations, path, beforeObject, afterObject)
		}
	}
	if beforeList, was := before.([]any); was {
		if afterList, is := after.([]any); is {
			return diffLists(operations, path, beforeList, afterList)
		}
	}
	return append(operations, Operation{"replace", path, &after})
}

func diffObjects(operations []Operation, path string, before, after Object) []Operation {
	var changed []string
	for key, value := range after {
		if old, found := before[key]; !found || !equal(old, value) {
			changed = append(changed, key)
		}
	}
	for key := range before {
		if _, found := after[key]; !found {
			changed = append(changed, key)
		}
	}
	slices.Sort(changed)
	for _, key := range changed {
		old, was := before[key]
		value, is := after[key]
		at := path + "/" + escapeToken.Replace(key)
		switch {
		case !was:
			operations = append(operations, Operation{"add", at, &value})
		case !is:
			operations = append(operations, Operation{"remove", at, nil})
		default:
			operations = diff(operations, at, old, value)
		}
	}
	return operations
}

func diffLists(operations []Operation, path string, before, after []any) []Operation {
	// What both lists end with stays: an element inserted or removed in front
	// of it must not rewrite the ones behind.
	end := 0
	if len(before) != len(after) {
		for end < min(len(before), len(after)) && equal(before[len(before)-1-end], after[len(after)-1-end]) {
			end++
		}
	}
	shared := min(len(before), len(after)) - end
	for i := range shared {
		if !equal(before[i], after[i]) {
			operations = diff(operations, path+"/"+strconv.Itoa(i), before[i], after[i])
		}
	}
	for i := len(before) - end - 1; i >= shared; i-- {
		operations = append(operations, Operation{"remove", path + "/" + strconv.Itoa(i), nil})
	}
	for i := shared; i < len(after)-end; i++ {
		token := "/-"
		if end > 0 {
			token = "/" + strconv.Itoa(i)
		}
		operations = append(operations, Operation{"add", path + token, &after[i]})
	}
	return operations
}

// equal reports whether two values are the same, numbers by their text.
func equal(a, b any) bool {
	switch a := a.(type) {
	case Object:
		b, ok := b.(Object)
		return ok && maps.EqualFunc(a, b, equal)
	case []any:
		b, ok := b.([]any)
		return ok && slices.EqualFunc(a, b, equal)
	case Value:
		b, ok := b.(Value)
		return ok && bytes.Equal(a, b)
	}
	switch b.(type) {
	case Object, []any, Value: // which == does not compare
		return false
	}
	return a == b
}
