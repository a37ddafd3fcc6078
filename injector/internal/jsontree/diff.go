package jsontree

import (
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

// Diff returns the operations that turn before into after, none when they are
// equal. It touches only what differs: an element appended to a list is one
// "add" at its end, a changed member one "replace" of that member. The order is
// the same at each call: object members by name, then list positions.
func Diff(before, after Object) []Operation {
	var d differ
	d.objects(before, after)
	return d.operations
}

// differ collects operations while it walks down two trees along path.
type differ struct {
	path       []string
	operations []Operation
}

var escapeToken = strings.NewReplacer("~", "~0", "/", "~1")

func (d *differ) emit(op, token string, value *any) {
	var pointer strings.Builder
	for _, token := range append(d.path, token) {
		pointer.WriteByte('/')
		pointer.WriteString(escapeToken.Replace(token))
	}
	d.operations = append(d.operations, Operation{Op: op, Path: pointer.String(), Value: value})
}

// member compares the values of one member or element that both sides have.
func (d *differ) member(token string, before, after any) {
	if equal(before, after) {
		return
	}
	beforeObject, wasObject := before.(Object)
	afterObject, isObject := after.(Object)
	beforeList, wasList := before.([]any)
	afterList, isList := after.([]any)
	below := differ{path: append(slices.Clip(d.path), token), operations: d.operations}
	switch {
	case wasObject && isObject:
		below.objects(beforeObject, afterObject)
	case wasList && isList:
		below.lists(beforeList, afterList)
	default:
		below = *d
		below.emit("replace", token, &after)
	}
	d.operations = below.operations
}

func (d *differ) objects(before, after Object) {
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
		switch {
		case !was:
			d.emit("add", key, &value)
		case !is:
			d.emit("remove", key, nil)
		default:
			d.member(key, old, value)
		}
	}
}

func (d *differ) lists(before, after []any) {
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
		d.member(strconv.Itoa(i), before[i], after[i])
	}
	for i := len(before) - end - 1; i >= shared; i-- {
		d.emit("remove", strconv.Itoa(i), nil)
	}
	for i := shared; i < len(after)-end; i++ {
		token := "-"
		if end > 0 {
			token = strconv.Itoa(i)
		}
		d.emit("add", token, &after[i])
	}
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
	default:
		switch b.(type) {
		case Object, []any:
			return false
		}
		return a == b
	}
}
