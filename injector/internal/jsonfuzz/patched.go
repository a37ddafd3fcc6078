package jsonfuzz

import (
	"encoding/json"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"

	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// Decode reads a JSON object; nil when the text is none.
func Decode(text []byte) jsontree.Object {
	value, err := jsontree.Parse(text)
	if err != nil {
		return nil
	}
	object, _ := value.Tree().(jsontree.Object)
	return object
}

// Patched returns what the API server makes of an object by a JSON patch, which
// another implementation than ours applies.
func Patched(t testing.TB, object jsontree.Object, operations []jsontree.Operation) jsontree.Object {
	t.Helper()
	before, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(operations)
	if err != nil {
		t.Fatal(err)
	}
	patch, err := jsonpatch.DecodePatch(text)
	if err != nil {
		t.Fatal(err)
	}
	patched, err := patch.Apply(before)
	if err != nil {
		t.Fatalf("%s does not apply: %v", text, err)
	}
	after := Decode(patched)
	if after == nil {
		t.Fatalf("patched, it is no object: %s", patched)
	}
	return after
}
