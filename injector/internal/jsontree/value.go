package jsontree

import (
	"bytes"
	"encoding/json"
	"iter"
	"slices"
	"strings"
)

// Value is text that begins with a valid JSON value. What follows that value does not count, so that a look-up
// need not find its end. Nothing is decoded, and no memory taken, before somebody asks. The empty Value is what
// was looked up and is not there.
type Value []byte

// Parse returns text as a Value; it is an error when text is anything else than one JSON value.
func Parse(text []byte) (Value, error) {
	if !json.Valid(text) {
		return nil, json.Unmarshal(text, new(struct{})) // says why
	}
	return text[skipSpace(text, 0):], nil
}

// Raw returns the text of the value and nothing else.
func (v Value) Raw() Value {
	if len(v) == 0 {
		return nil
	}
	end := skipValue(v, 0)
	return v[:end:end]
}

// MarshalJSON returns the text.
func (v Value) MarshalJSON() ([]byte, error) { return v.Raw(), nil }

// IsNull reports whether the value is null or not there.
func (v Value) IsNull() bool { return len(v) == 0 || v[0] == 'n' }

// IsTrue reports whether the value is true.
func (v Value) IsTrue() bool { return len(v) != 0 && v[0] == 't' }

// IsObject reports whether the value is an object.
func (v Value) IsObject() bool { return len(v) != 0 && v[0] == '{' }

// IsList reports whether the value is a list.
func (v Value) IsList() bool { return len(v) != 0 && v[0] == '[' }

// Text returns a string's text; false when the value is no string.
func (v Value) Text() (string, bool) {
	if len(v) == 0 || v[0] != '"' {
		return "", false
	}
	return string(unquote(v.Raw())), true
}

// String returns a string's text; empty when the value is no string.
func (v Value) String() string {
	text, _ := v.Text()
	return text
}

// Members returns the keys and values of an object; none of another value.
func (v Value) Members() iter.Seq2[[]byte, Value] {
	return func(yield func([]byte, Value) bool) {
		if !v.IsObject() {
			return
		}
		for i := skipSpace(v, 1); v[i] != '}'; {
			end := skipValue(v, i)
			key := unquote(v[i:end])
			i = skipSpace(v, skipSpace(v, end)+1) // the colon
			if !yield(key, v[i:]) {
				return
			}
			i = skipComma(v, skipValue(v, i))
		}
	}
}

// Elements returns the elements of a list; none of another value.
func (v Value) Elements() iter.Seq[Value] {
	return func(yield func(Value) bool) {
		if !v.IsList() {
			return
		}
		for i := skipSpace(v, 1); v[i] != ']'; {
			end := skipValue(v, i)
			if !yield(v[i:end:end]) {
				return
			}
			i = skipComma(v, end)
		}
	}
}

// Fields returns some members of an object, by their keys, in one pass.
func (v Value) Fields(keys ...string) map[string]Value {
	found := make(map[string]Value, len(keys))
	for key, value := range v.Members() {
		if i := slices.IndexFunc(keys, func(wanted string) bool { return wanted == string(key) }); i >= 0 {
			if found[keys[i]] = value; len(found) == len(keys) {
				break
			}
		}
	}
	return found
}

// Get returns the value at path. The API server sends no key twice.
func (v Value) Get(path ...string) Value {
	for _, key := range path {
		object := v
		v = nil
		for name, value := range object.Members() {
			if string(name) == key {
				v = value
				break
			}
		}
	}
	return v
}

// Tree decodes the value. It takes up to fifty times the memory of the text: the caller bounds that.
func (v Value) Tree() any {
	decoder := json.NewDecoder(bytes.NewReader(v))
	decoder.UseNumber()
	var tree any
	if err := decoder.Decode(&tree); err != nil {
		panic("jsontree: a Value that is no JSON: " + err.Error())
	}
	return tree
}

// Part decodes what wanted names of an object, as far as it is there: of a member that wanted has an object for,
// what that names; of another one a string. What is neither stays text.
func (v Value) Part(wanted Object) any {
	if wanted == nil || !v.IsObject() {
		if text, isText := v.Text(); isText {
			return text
		} else if v.IsNull() {
			return nil
		}
		return v.Raw()
	}
	part := Object{}
	for key, value := range v.Members() {
		if below, found := wanted[string(key)]; found {
			below, _ := below.(Object)
			part[string(key)] = value.Part(below)
		}
	}
	return part
}

// unquote returns the text of a JSON string.
func unquote(quoted Value) []byte {
	if slices.Contains(quoted, '\\') {
		return []byte(quoted.Tree().(string))
	}
	return quoted[1 : len(quoted)-1]
}

func skipSpace(text []byte, i int) int {
	for text[i] == ' ' || text[i] == '\t' || text[i] == '\n' || text[i] == '\r' {
		i++
	}
	return i
}

// skipComma returns where the next member or element begins, or the closing bracket.
func skipComma(text []byte, i int) int {
	i = skipSpace(text, i)
	if text[i] == ',' {
		i = skipSpace(text, i+1)
	}
	return i
}

// skipValue returns the end of the value that begins at i.
func skipValue(text []byte, i int) int {
	switch text[i] {
	case '"':
		return skipString(text, i)
	case '{', '[':
		for depth := 0; ; i++ {
			switch text[i] {
			case '"':
				i = skipString(text, i) - 1
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			}
		}
	}
	for i < len(text) && strings.IndexByte(",}] \n\t\r", text[i]) < 0 {
		i++
	}
	return i
}

// skipString returns the end of the string that begins at i.
func skipString(text []byte, i int) int {
	begin := i + 1
	for end := begin; ; end++ {
		end += bytes.IndexByte(text[end:], '"')
		if text[end-1] != '\\' {
			return end + 1
		}
		// Backslashes before it escape each other.
		if before := bytes.TrimRight(text[begin:end], `\`); (end-begin-len(before))%2 == 0 {
			return end + 1
		}
	}
}
