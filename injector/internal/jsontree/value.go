package jsontree

import (
	"bytes"
	"encoding/json"
	"iter"
	"slices"
	"strconv"
	"strings"
)

// Value is text that begins with a valid JSON value: a look-up need not find its end. The empty Value is what
// was looked up and is not there.
type Value []byte

// Parse returns text as a Value; it is an error when text is anything else than one JSON value.
func Parse(text []byte) (Value, error) {
	if end := valueEnd(text, 0, 0); end < 0 || skipSpace(text, end) < len(text) {
		return nil, json.Unmarshal(text, new(struct{})) // says why
	}
	return text[skipSpace(text, 0):], nil
}

// Raw returns the text of the value and nothing else.
func (v Value) Raw() Value {
	if len(v) == 0 {
		return nil
	}
	end := valueEnd(v, 0, 0)
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
		for i := skipSpace(v, 1); v[i] != '}'; i = skipComma(v, valueEnd(v, i, 0)) {
			end := stringEnd(v, i)
			key := unquote(v[i:end])
			if i = skipSpace(v, skipSpace(v, end)+1); !yield(key, v[i:]) { // after the colon
				return
			}
		}
	}
}

// Elements returns the elements of a list, raw; none of another value.
func (v Value) Elements() iter.Seq[Value] {
	return func(yield func(Value) bool) {
		if len(v) == 0 || v[0] != '[' {
			return
		}
		for i := skipSpace(v, 1); v[i] != ']'; {
			end := valueEnd(v, i, 0)
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
		if i := slices.Index(keys, string(key)); i >= 0 {
			if found[keys[i]] = value; len(found) == len(keys) {
				break
			}
		}
	}
	return found
}

// Get returns the value at path. The API server sends no key twice.
func (v Value) Get(path ...string) Value {
look:
	for _, key := range path {
		for name, value := range v.Members() {
			if string(name) == key {
				v = value
				continue look
			}
		}
		return nil
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

// Part decodes of an object what wanted has an object for, and the strings that wanted names. The rest that
// it names stays text.
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
		var text string
		_ = json.Unmarshal(quoted, &text) // it is valid; a decoder of its own would take ten times as long
		return []byte(text)
	}
	return quoted[1 : len(quoted)-1]
}

func skipSpace(text []byte, i int) int {
	for i < len(text) && (text[i] == ' ' || text[i] == '\t' || text[i] == '\n' || text[i] == '\r') {
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

// valueEnd returns the end of the value at i; -1: not valid. It takes a quarter of the time of json.Valid.
func valueEnd(text []byte, i, depth int) int {
	next := func(j int) byte { // moves i; 0 at the end of the text
		if i = skipSpace(text, j); i < len(text) {
			return text[i]
		}
		return 0
	}
	opening := next(i)
	if opening == '"' {
		return stringEnd(text, i)
	} else if opening != '{' && opening != '[' {
		end := i
		for end < len(text) && strings.IndexByte(",}] \n\t\r", text[end]) < 0 {
			end++
		}
		if word := text[i:end]; string(word) != "true" && string(word) != "false" && !json.Valid(word) {
			return -1
		}
		return end
	}
	closing := opening + 2
	if next(i+1) == closing {
		return i + 1
	}
	for depth < 10_000 { // as encoding/json does
		if opening == '{' {
			if next(i) != '"' {
				return -1
			}
			if i = stringEnd(text, i); i < 0 || next(i) != ':' {
				return -1
			}
			i++
		}
		if i = valueEnd(text, i, depth+1); i < 0 {
			return -1
		}
		switch next(i) {
		case ',':
			i++
		case closing:
			return i + 1
		default:
			return -1
		}
	}
	return -1
}

// stringEnd returns the end of the string that begins at i; -1 when it is not valid.
func stringEnd(text []byte, i int) int {
	for i++; i < len(text) && text[i] >= ' '; i++ {
		switch text[i] {
		case '"':
			return i + 1
		case '\\':
			if i++; i+4 < len(text) && text[i] == 'u' {
				if _, err := strconv.ParseUint(string(text[i+1:i+5]), 16, 16); err != nil {
					return -1
				}
			} else if i == len(text) || strings.IndexByte(`"\/bfnrt`, text[i]) < 0 {
				return -1
			}
		}
	}
	return -1
}
