package review

import (
	"encoding/json"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"

	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// mutate makes a few random changes in object. The same seed makes the same
// changes. The strings are values that the program under test knows. Changed bytes are
// seldom JSON any more, changed values always are.
func mutate(object jsontree.Object, seed uint64, strings ...string) {
	m := mutator{rand.New(rand.NewPCG(seed, 0)), strings}
	for range 1 + m.IntN(4) {
		m.object(object)
	}
}

type mutator struct {
	*rand.Rand
	strings []string
}

// object changes one member of an object, or something below it.
func (m mutator) object(object jsontree.Object) {
	keys := slices.Sorted(maps.Keys(object))
	if len(keys) == 0 || m.IntN(12) == 0 {
		object[m.string()] = m.value()
		return
	}
	key := keys[m.IntN(len(keys))]
	if m.IntN(12) == 0 {
		delete(object, key)
		return
	}
	object[key] = m.changed(object[key])
}

// changed returns value with one change in it, or another in its place.
func (m mutator) changed(value any) any {
	if m.IntN(6) == 0 {
		return m.value()
	}
	switch value := value.(type) {
	case jsontree.Object:
		m.object(value)
		return value
	case []any:
		return m.list(value)
	default:
		return m.value()
	}
}

func (m mutator) list(list []any) []any {
	if len(list) == 0 {
		return append(list, m.value())
	}
	i := m.IntN(len(list))
	switch m.IntN(6) {
	case 0:
		return slices.Insert(list, i, m.value())
	case 1:
		return slices.Delete(list, i, i+1)
	case 2: // twice the same
		return append(list, jsontree.Clone(jsontree.Object{"": list[i]})[""])
	default:
		list[i] = m.changed(list[i])
		return list
	}
}

func (m mutator) value() any {
	switch m.IntN(8) {
	case 0:
		return nil
	case 1:
		return m.IntN(2) == 0
	case 2:
		return json.Number([]string{"0", "-1", "1e3", "1.50", "18446744073709551616"}[m.IntN(5)])
	case 3:
		return []any{}
	case 4:
		return jsontree.Object{}
	case 5:
		return jsontree.Object{m.string(): m.value()}
	case 6:
		return []any{m.value(), jsontree.Object{"name": m.string()}}
	default:
		return m.string()
	}
}

func (m mutator) string() string {
	return m.strings[m.IntN(len(m.strings))]
}

// decode reads a JSON object; nil when the text is none.
func decode(text []byte) jsontree.Object {
	value, err := jsontree.Parse(text)
	if err != nil {
		return nil
	}
	object, _ := value.Tree().(jsontree.Object)
	return object
}

// patchedBy returns what the API server makes of an object by a JSON patch, which
// another implementation than ours applies.
func patchedBy(t testing.TB, object jsontree.Object, text []byte) jsontree.Object {
	t.Helper()
	before, err := json.Marshal(object)
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
	after := decode(patched)
	if after == nil {
		t.Fatalf("patched, it is no object: %s", patched)
	}
	return after
}
