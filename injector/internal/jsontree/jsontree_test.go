package jsontree

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
)

func decode(t testing.TB, text string) Object {
	t.Helper()
	value, err := Parse([]byte(text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return value.Tree().(Object)
}

func TestDecodeKeepsTheTextOfNumbers(t *testing.T) {
	const text = `{"a":[1e3,1.50,9007199254740993,-0]}`
	encoded, err := json.Marshal(decode(t, text))
	if err != nil || string(encoded) != text {
		t.Errorf("got %s, %v", encoded, err)
	}
}

func TestParseTakesOneValue(t *testing.T) {
	for text, want := range map[string]string{
		``:         "unexpected end of JSON input",
		`{`:        "unexpected end of JSON input",
		`{} {}`:    "after top-level value",
		`{}]`:      "after top-level value",
		`{"a":01}`: "invalid character",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}

func TestLookups(t *testing.T) {
	object := decode(t, `{"a":{"b":"text","l":[1],"n":null},"s":"x"}`)
	if got := Lookup[string](object, "a", "b"); got != "text" {
		t.Errorf("string: %q", got)
	}
	if got := Lookup[any](object, "s", "b", "c"); got != nil {
		t.Errorf("through a string: %v", got)
	}
	if got := Lookup[Object](object, "a", "b"); got != nil {
		t.Errorf("object where a string is: %v", got)
	}
	if got := Lookup[string](nil, "a"); got != "" {
		t.Errorf("in nothing: %q", got)
	}
	for _, path := range [][]string{{"none"}, {"a", "n"}, {"a", "none", "deeper"}} {
		if got := Lookup[[]any](object, path...); got != nil {
			t.Errorf("%v: %v", path, got)
		}
	}
	if got := Lookup[[]any](object, "a", "l"); len(got) != 1 {
		t.Errorf("list: %v", got)
	}
	if got := Lookup[[]any](object, "a", "b"); got != nil {
		t.Errorf("list where a string is: %v", got)
	}
}

func TestNamed(t *testing.T) {
	list := []any{Value(`{"name":"a","x":1}`), Object{"name": "b"}, Value(`{"name":"b"}`), Value(`"c"`), Object{"name": ""}, nil}
	for name, want := range map[string]int{"a": 0, "b": 1, "c": -1, "": -1} {
		if got := IndexOf(list, name); got != want {
			t.Errorf("%q is at %d, want %d", name, got, want)
		}
	}
	Named(list, "a")["x"] = "changed"
	if got, _ := json.Marshal(list[0]); string(got) != `{"name":"a","x":"changed"}` || Named(list, "c") != nil {
		t.Errorf("got %s", got)
	}
}

func TestEnsureMakesWhatIsMissing(t *testing.T) {
	object := decode(t, `{"a":{"n":null},"s":"x"}`)
	level, err := Ensure(object, "a", "n", "c")
	if err != nil {
		t.Fatal(err)
	}
	level["d"] = true
	if got, _ := json.Marshal(object); string(got) != `{"a":{"n":{"c":{"d":true}}},"s":"x"}` {
		t.Errorf("got %s", got)
	}
	if _, err := Ensure(object, "a", "n", "c", "d"); err == nil || err.Error() != "a.n.c.d is not an object" {
		t.Errorf("through a boolean: %v", err)
	}
}

func TestCloneSharesNothing(t *testing.T) {
	const text = `{"a":[{"b":[1]}],"c":{"d":null},"e":[]}`
	original := decode(t, text)
	clone := Clone(original)
	if !reflect.DeepEqual(clone, original) {
		t.Fatalf("got %v", clone)
	}
	clone["c"].(Object)["d"] = "changed"
	clone["a"].([]any)[0].(Object)["b"].([]any)[0] = "changed"
	clone["a"].([]any)[0] = "changed"
	if got, _ := json.Marshal(original); string(got) != text {
		t.Errorf("the original became %s", got)
	}
}

func TestDiff(t *testing.T) {
	for _, test := range []struct {
		name, before, after string
		want                string
	}{
		{"nothing", `{"a":[1,{"b":null}]}`, `{"a":[1,{"b":null}]}`,
			``},
		{"member added", `{}`, `{"a":{"b":1}}`,
			`[{"op":"add","path":"/a","value":{"b":1}}]`},
		{"member removed", `{"a":1,"b":2}`, `{"b":2}`,
			`[{"op":"remove","path":"/a"}]`},
		{"member replaced", `{"a":{"b":"x","c":1}}`, `{"a":{"b":"y","c":1}}`,
			`[{"op":"replace","path":"/a/b","value":"y"}]`},
		{"names escaped", `{"a/b":{"~":1}}`, `{"a/b":{"~":2,"/~":3}}`,
			`[{"op":"add","path":"/a~1b/~1~0","value":3},{"op":"replace","path":"/a~1b/~0","value":2}]`},
		{"to null and from null", `{"a":null,"b":1}`, `{"a":1,"b":null}`,
			`[{"op":"replace","path":"/a","value":1},{"op":"replace","path":"/b","value":null}]`},
		{"null added", `{}`, `{"a":null}`,
			`[{"op":"add","path":"/a","value":null}]`},
		{"kinds change", `{"a":{},"b":[],"c":"1"}`, `{"a":[],"b":"x","c":1}`,
			`[{"op":"replace","path":"/a","value":[]},{"op":"replace","path":"/b","value":"x"},{"op":"replace","path":"/c","value":1}]`},
		{"appended", `{"a":[1,2]}`, `{"a":[1,2,3,4]}`,
			`[{"op":"add","path":"/a/-","value":3},{"op":"add","path":"/a/-","value":4}]`},
		{"appended and changed", `{"a":[{"n":1},{"n":2}]}`, `{"a":[{"n":1},{"n":2,"m":3},{"n":4}]}`,
			`[{"op":"add","path":"/a/1/m","value":3},{"op":"add","path":"/a/-","value":{"n":4}}]`},
		{"put in front", `{"a":[2,3]}`, `{"a":[0,1,2,3]}`,
			`[{"op":"add","path":"/a/0","value":0},{"op":"add","path":"/a/1","value":1}]`},
		{"removed in front", `{"a":[0,1,2,3]}`, `{"a":[2,3]}`,
			`[{"op":"remove","path":"/a/1"},{"op":"remove","path":"/a/0"}]`},
		{"removed at the end", `{"a":[0,1,2]}`, `{"a":[0]}`,
			`[{"op":"remove","path":"/a/2"},{"op":"remove","path":"/a/1"}]`},
		{"emptied", `{"a":[0,1]}`, `{"a":[]}`,
			`[{"op":"remove","path":"/a/1"},{"op":"remove","path":"/a/0"}]`},
		{"sorted otherwise", `{"a":[1,2]}`, `{"a":[2,1]}`,
			`[{"op":"replace","path":"/a/0","value":2},{"op":"replace","path":"/a/1","value":1}]`},
	} {
		t.Run(test.name, func(t *testing.T) {
			patch := Diff(decode(t, test.before), decode(t, test.after))
			if string(patch) != test.want {
				t.Errorf("got  %s\nwant %s", patch, test.want)
			}
			checkDiff(t, test.before, test.after)
		})
	}
}

// checkDiff checks the law of Diff with another implementation of RFC 6902:
// applied to before, the difference gives after.
func checkDiff(t *testing.T, before, after string) {
	t.Helper()
	text := Diff(decode(t, before), decode(t, after))
	if text == nil {
		if !reflect.DeepEqual(decode(t, before), decode(t, after)) {
			t.Errorf("no difference between %s and %s", before, after)
		}
		return
	}
	patch, err := jsonpatch.DecodePatch(text)
	if err != nil {
		t.Fatal(err)
	}
	patched, err := patch.Apply([]byte(before))
	if err != nil {
		t.Fatalf("%s does not apply to %s: %v", text, before, err)
	}
	if !reflect.DeepEqual(decode(t, string(patched)), decode(t, after)) {
		t.Errorf("%s makes of %s: %s, not %s", text, before, patched, after)
	}
}

func FuzzDiffLeadsFromBeforeToAfter(f *testing.F) {
	f.Add(`{"a":[1,2,{"b":null}]}`, `{"a":[2,{"b":1},3],"~/":{}}`)
	f.Add(`{"a":{"":[[],{}]}}`, `{"a":{"":[{},[]]}}`)
	f.Add(`{}`, `{"a":null}`)
	f.Fuzz(func(t *testing.T, before, after string) {
		var objects [2]Object
		for i, text := range []string{before, after} {
			value, err := Parse([]byte(text))
			if err != nil || !value.IsObject() {
				return
			}
			objects[i] = value.Tree().(Object)
		}
		// Through the encoder once: bytes that are no UTF-8 and duplicate keys
		// have no place in a JSON patch, nor in what the API server sends.
		texts := [2]string{}
		for i, object := range objects {
			text, err := json.Marshal(object)
			if err != nil {
				t.Fatal(err)
			}
			texts[i] = string(text)
		}
		checkDiff(t, texts[0], texts[1])
	})
}

// An element that Named has decoded differs by what was changed in it; another one in its place replaces it.
func TestDiffOfAnElementThatWasText(t *testing.T) {
	before := Object{"l": []any{Value(`{"name":"a","x":[1],"y":2}`), Value(`{"name":"b","x":[1]}`)}}
	after := Clone(before)
	list := after["l"].([]any)
	Named(list, "a")["y"] = "changed"
	list[1] = Object{"name": "c"}
	if got, want := string(Diff(before, after)), `[{"op":"replace","path":"/l/0/y","value":"changed"},{"op":"replace","path":"/l/1","value":{"name":"c"}}]`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
