package jsontree

import (
	"encoding/json"
	"reflect"
	"testing"
)

// rebuilt decodes a value by its members and elements.
func rebuilt(v Value) any {
	switch {
	case v.IsObject():
		object := Object{}
		for key, value := range v.Members() {
			object[string(key)] = rebuilt(value)
		}
		return object
	case len(v) > 0 && v[0] == '[':
		list := []any{}
		for element := range v.Elements() {
			list = append(list, rebuilt(element))
		}
		return list
	case v.IsNull():
		return nil
	}
	if text, ok := v.Text(); ok {
		return text
	}
	if raw := string(v.Raw()); raw != "true" && raw != "false" {
		return json.Number(raw)
	}
	return v.IsTrue()
}

// FuzzValue holds for whatever text there is: it is taken where encoding/json
// takes it, and has the members and elements that encoding/json finds.
func FuzzValue(f *testing.F) {
	for _, text := range []string{
		` { "a" : [ 1 , -2.5e+3 , "x\"\\" , { } , [ ] ] , "b\u0063" : null,"d":true } `, `[[[]],{"":{"":0}}]`,
		`"\ud83d\ude00"`, `7`, `null`, ``, `{`, `{"a":1}}`, `{"a":1} 2`, `{"a":1,"a":2,"\u0061":3}`, "\xff", `"\`, `[1,]`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		value, err := Parse(text)
		if (err == nil) != json.Valid(text) {
			t.Fatalf("error %v", err)
		}
		if err != nil {
			return
		}
		want := value.Tree()
		// encoding/json replaces bytes that are no UTF-8, which the API server
		// never sends.
		encoded, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		if value, err = Parse(encoded); err != nil {
			t.Fatal(err)
		}
		if got := rebuilt(value); !reflect.DeepEqual(got, want) {
			t.Errorf("%s\nread as %#v\nwant    %#v", encoded, got, want)
		}
	})
}

func TestGet(t *testing.T) {
	v, err := Parse([]byte(`{"a": {"B": 2, "b": "x"}, "n": null, "\u0063": true}`))
	if err != nil {
		t.Fatal(err)
	}
	if got := v.Get("a", "b").String(); got != "x" {
		t.Errorf("got %q", got)
	}
	for _, path := range [][]string{{"A"}, {"a", "c"}, {"a", "b", "c"}, {"n", "x"}} {
		if got := v.Get(path...); !got.IsNull() || got != nil {
			t.Errorf("%v: %s", path, got)
		}
	}
	if !v.Get("n").IsNull() || v.Get("n") == nil || !v.Get("c").IsTrue() {
		t.Error("null, or a key with an escape, is not found")
	}
}

func TestPart(t *testing.T) {
	v, err := Parse([]byte(`{"a": {"b": "x", "c": [1, 2], "d": null, "e": 0}, "f": [{"b": 1}], "g": {"h": 1}}`))
	if err != nil {
		t.Fatal(err)
	}
	got := v.Part(Object{"a": Object{"b": nil, "c": nil, "d": nil, "none": nil}, "f": Object{"b": nil}, "none": Object{"a": nil}})
	want := Object{"a": Object{"b": "x", "c": Value("[1, 2]"), "d": nil}, "f": Value(`[{"b": 1}]`)}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %#v\nwant %#v", got, want)
	}
	if got := v.Get("none").Part(Object{}); got != nil {
		t.Errorf("of nothing: %v", got)
	}
}

func TestReadingTakesNoMemory(t *testing.T) {
	v, err := Parse([]byte(`{"metadata": {"annotations": {"a": "b", "c": "d"}}, "spec": {"list": [{}, {"x": [1, 2]}]}}`))
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		v.Get("spec", "list").IsObject()
		v.Get("metadata", "annotations", "c").IsNull()
	}); n > 8 {
		t.Errorf("%v allocations for two look-ups", n)
	}
}
