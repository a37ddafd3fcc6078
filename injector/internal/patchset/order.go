package patchset

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// elementOrder is the directive by which a patch states the order of a list.
const elementOrder = "$setElementOrder/"

// restoreOrder sorts the lists of merged that strategic merge merges by key:
// first the elements of original in their order, then the patches' in theirs.
// Strategic merge itself puts new elements first, and the order of init
// containers is the order in which they start. A list whose order a patch
// states itself is left alone.
func restoreOrder(merged, original jsontree.Object, patches []jsontree.Object, schema strategicpatch.LookupPatchMeta) error {
	if original == nil && len(patches) == 1 {
		return nil // taken from one patch as it is
	}
	for key := range keysOf(patches) {
		switch value := merged[key].(type) {
		case jsontree.Object:
			member, _, err := schema.LookupPatchMetadataForStruct(key)
			if err != nil {
				return err
			}
			var objects []jsontree.Object
			for _, patch := range patches {
				if object := jsontree.LookupObject(patch, key); object != nil {
					objects = append(objects, object)
				}
			}
			if err := restoreOrder(value, jsontree.LookupObject(original, key), objects, member); err != nil {
				return err
			}
		case []any:
			element, meta, err := schema.LookupPatchMetadataForSlice(key)
			if err != nil {
				return err
			}
			mergeKey := meta.GetPatchMergeKey()
			if mergeKey == "" || isOrdered(patches, key) {
				continue
			}
			list := mergedList{key: mergeKey, merged: value}
			list.original, _ = original[key].([]any)
			for _, patch := range patches {
				if elements, ok := patch[key].([]any); ok {
					list.patches = append(list.patches, elements)
				}
			}
			if err := list.restoreOrder(element); err != nil {
				return fmt.Errorf("%s: %w", key, err)
			}
		}
	}
	return nil
}

// mergedList is a list merged by key, and what it was merged from.
type mergedList struct {
	key      string
	merged   []any
	original []any
	patches  [][]any
}

func (l mergedList) restoreOrder(schema strategicpatch.LookupPatchMeta) error {
	l.sort()
	for i, occurrence := range l.occurrences(l.merged) {
		var patches []jsontree.Object
		for _, elements := range l.patches {
			if patch := l.find(elements, occurrence.identity); patch != nil {
				patches = append(patches, patch)
			}
		}
		element, _ := l.merged[i].(jsontree.Object)
		if element == nil || patches == nil || occurrence.n > 0 {
			continue
		}
		if err := restoreOrder(element, l.find(l.original, occurrence.identity), patches, schema); err != nil {
			return err
		}
	}
	return nil
}

// sort puts the merged elements in order. A key may occur more than once, as
// port 53 does with UDP and TCP; the patches change the first one.
func (l mergedList) sort() {
	rank := map[occurrence]int{}
	for _, occurrence := range l.occurrences(l.original) {
		rank[occurrence] = len(rank)
	}
	for _, elements := range l.patches {
		for _, element := range elements {
			first := occurrence{identity: l.identity(element)}
			if _, found := rank[first]; !found {
				rank[first] = len(rank)
			}
		}
	}
	type ranked struct {
		rank    int
		element any
	}
	elements := make([]ranked, len(l.merged))
	for i, occurrence := range l.occurrences(l.merged) {
		elements[i] = ranked{rank[occurrence], l.merged[i]}
	}
	slices.SortStableFunc(elements, func(a, b ranked) int { return a.rank - b.rank })
	for i := range elements {
		l.merged[i] = elements[i].element
	}
}

// occurrence is the nth element, counted from 0, with this identity.
type occurrence struct {
	identity any
	n        int
}

func (l mergedList) occurrences(elements []any) []occurrence {
	count := map[any]int{}
	found := make([]occurrence, len(elements))
	for i, element := range elements {
		identity := l.identity(element)
		found[i] = occurrence{identity, count[identity]}
		count[identity]++
	}
	return found
}

// identity is the value of the merge key, a string or a number.
func (l mergedList) identity(element any) any {
	object, _ := element.(jsontree.Object)
	switch value := object[l.key].(type) {
	case string, json.Number:
		return value
	default:
		return nil
	}
}

// find returns the first element with this identity, or nil.
func (l mergedList) find(elements []any, identity any) jsontree.Object {
	for _, element := range elements {
		if l.identity(element) == identity {
			object, _ := element.(jsontree.Object)
			return object
		}
	}
	return nil
}

// keysOf returns the fields that any of the patches names, directives apart.
func keysOf(patches []jsontree.Object) map[string]bool {
	keys := map[string]bool{}
	for _, patch := range patches {
		for key := range patch {
			if !strings.HasPrefix(key, "$") {
				keys[key] = true
			}
		}
	}
	return keys
}

func isOrdered(patches []jsontree.Object, list string) bool {
	return slices.ContainsFunc(patches, func(patch jsontree.Object) bool {
		_, found := patch[elementOrder+list]
		return found
	})
}
