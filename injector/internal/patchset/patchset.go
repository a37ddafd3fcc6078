// Package patchset holds the declared change to a virt-launcher pod: the
// strategic merge patches of a folder, which is a ConfigMap in a cluster. It
// reads and checks them once and applies them to any number of pods.
package patchset

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// Set is the patches of one folder, ready to be applied. It does not change.
type Set struct {
	files       []file
	sysctls     []sysctl
	serverImage string
	// added are the elements that the patches add to each of the lists.
	added map[string][]addition
	// additive says that the patches do nothing else to a pod without them.
	additive bool
}

// addition is an element of a list that the patches bring.
type addition struct {
	name    string
	tree    jsontree.Object
	encoded jsontree.Encoded
}

// file is one patch as a tree, without what the Set applies itself.
type file struct {
	name  string
	patch jsontree.Object
}

// podSchema tells strategic merge which lists of a Pod are merged by which key.
var podSchema = strategicpatch.PatchMetaFromStruct{T: strategicpatch.GetTagStructTypeOrDie(corev1.Pod{})}

// lists are those of a pod's spec that patches add to.
var lists = []string{"initContainers", "containers", "volumes"}

// Apply returns pod, which may be an Outline, with all patches applied in the
// order of their file names. It leaves pod itself alone and keeps what it does
// not know. The three lists keep the pod's elements first and in their order;
// sysctls are merged by name; a container that the patches bring without an image
// gets the server image.
func (s *Set) Apply(pod jsontree.Object) (jsontree.Object, error) {
	// Strategic merge panics at list elements that are no objects.
	own := map[string][]string{}
	for _, list := range lists {
		var err error
		if own[list], err = Names(pod, list); err != nil {
			return nil, err
		}
	}
	merged := jsontree.Clone(pod)
	if _, err := jsontree.Ensure(merged, "spec"); err != nil {
		return nil, err
	}
	for _, file := range s.files {
		var err error
		// The merge consumes the patch that it is given.
		merged, err = strategicpatch.StrategicMergeMapPatchUsingLookupPatchMeta(merged, jsontree.Clone(file.patch), podSchema)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file.name, err)
		}
	}
	dropNulls(merged, pod)
	var specs []jsontree.Object
	for _, file := range s.files {
		specs = append(specs, jsontree.LookupObject(file.patch, "spec"))
	}
	restoreOrder(jsontree.LookupObject(merged, "spec"), jsontree.LookupObject(pod, "spec"), specs, lists...)
	for _, list := range []string{"initContainers", "containers"} {
		elements, err := jsontree.LookupList(merged, "spec", list)
		if err != nil {
			return nil, err
		}
		for _, element := range elements {
			container, _ := element.(jsontree.Object)
			name := jsontree.LookupString(container, "name")
			if !slices.Contains(own[list], name) && jsontree.LookupString(container, "image") == "" {
				container["image"] = s.serverImage
			}
		}
	}
	return merged, mergeSysctls(merged, s.sysctls)
}

// Add is Apply for an outline of a pod to which the patches only add. The elements
// are Encoded, but for those that are to be changed.
func (s *Set) Add(outline jsontree.Object, toBeChanged bool) (jsontree.Object, error) {
	pod := jsontree.Clone(outline)
	for _, file := range s.files {
		for key := range jsontree.LookupObject(file.patch, "metadata") {
			members, err := jsontree.Ensure(pod, "metadata", key)
			if err != nil {
				return nil, err
			}
			maps.Copy(members, jsontree.LookupObject(file.patch, "metadata", key))
		}
	}
	spec, err := jsontree.Ensure(pod, "spec")
	if err != nil {
		return nil, err
	}
	for list, additions := range s.added {
		elements, _ := spec[list].([]any)
		for _, added := range additions {
			if toBeChanged {
				elements = append(elements, jsontree.Clone(added.tree))
			} else {
				elements = append(elements, added.encoded)
			}
		}
		spec[list] = elements
	}
	return pod, mergeSysctls(pod, s.sysctls)
}

// OnlyAdds reports whether the patches do nothing to a pod with these lists but to
// add elements, labels, annotations and sysctls.
func (s *Set) OnlyAdds(podLists map[string]jsontree.Value) bool {
	if !s.additive {
		return false
	}
	for list, additions := range s.added {
		for element := range podLists[list].Elements() {
			name := element.Get("name").String()
			if slices.ContainsFunc(additions, func(a addition) bool { return a.name == name }) {
				return false
			}
		}
	}
	return true
}

// onlyNames reports whether a patch has nothing but new elements of the lists,
// labels and annotations.
func (s *Set) onlyNames(patch jsontree.Object) bool {
	for field := range jsontree.LookupObject(patch, "spec") {
		added, _ := Names(patch, field)
		if !slices.Contains(lists, field) || slices.ContainsFunc(added, func(name string) bool { return name == "compute" }) {
			return false
		}
	}
	for _, key := range []string{"labels", "annotations"} {
		for name, value := range jsontree.LookupObject(patch, "metadata", key) {
			if value == nil || name[0] == '$' {
				return false
			}
		}
	}
	return true
}

// dropNulls removes from what was merged the nulls that the original has not.
// A null removes a field; where there was none, strategic merge leaves it, and
// the API server reads that of a quantity as 0.
func dropNulls(merged, original any) {
	switch merged := merged.(type) {
	case jsontree.Object:
		before, _ := original.(jsontree.Object)
		for key, value := range merged {
			was, found := before[key]
			if value == nil && !found {
				delete(merged, key)
			} else {
				dropNulls(value, was)
			}
		}
	case []any:
		before, _ := original.([]any)
		for _, element := range merged {
			dropNulls(element, sameName(before, element))
		}
	}
}

// sameName returns the element with the name of another one, or nil.
func sameName(elements []any, other any) jsontree.Object {
	if i := indexOfName(elements, other); i >= 0 {
		return elements[i].(jsontree.Object)
	}
	return nil
}

// indexOfName returns where the element with the name of another one is, or -1.
func indexOfName(elements []any, other any) int {
	object, _ := other.(jsontree.Object)
	name := jsontree.LookupString(object, "name")
	return slices.IndexFunc(elements, func(element any) bool {
		object, _ := element.(jsontree.Object)
		return name != "" && jsontree.LookupString(object, "name") == name
	})
}

// elementOrder is the directive by which a patch states the order of a list.
const elementOrder = "$setElementOrder/"

// restoreOrder sorts lists of what was merged, and the environment of the
// containers in them: first the original's elements in their order, then the
// patches' in theirs. Strategic merge itself puts new elements first, and the
// order of init containers is the order in which they start. A list whose order a
// patch states itself is left alone.
func restoreOrder(merged, original jsontree.Object, patches []jsontree.Object, lists ...string) {
	for _, list := range lists {
		elements, _ := merged[list].([]any)
		own, _ := original[list].([]any)
		order, stated := slices.Clone(own), false
		for _, patch := range patches {
			_, states := patch[elementOrder+list]
			added, _ := patch[list].([]any)
			order, stated = append(order, added...), stated || states
		}
		if !stated {
			slices.SortStableFunc(elements, func(a, b any) int { return indexOfName(order, a) - indexOfName(order, b) })
		}
		for _, element := range elements {
			var changes []jsontree.Object
			for _, patch := range patches {
				added, _ := patch[list].([]any)
				if change := sameName(added, element); change != nil {
					changes = append(changes, change)
				}
			}
			if object, _ := element.(jsontree.Object); changes != nil && list != "env" {
				restoreOrder(object, sameName(own, element), changes, "env")
			}
		}
	}
}
