package patchset

import (
	"errors"
	"fmt"
	"slices"

	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

const (
	// maxElements is more containers or volumes than a node can run.
	maxElements = 1000
	// maxDecoded bounds what of a pod is decoded, in bytes of its text.
	maxDecoded = 64 << 10
	maxName    = 253
)

// Outline returns the part of a pod that the patches are about, as Apply, or Add
// where they only add, and a difference need it: of containers and volumes that
// they do not name the name alone. It is an error when that part is larger than any
// that KubeVirt makes.
func (s *Set) Outline(podMetadata, podSpec jsontree.Value, onlyAdds bool) (jsontree.Object, error) {
	o := outliner{left: maxDecoded, onlyNames: onlyAdds}
	tree := jsontree.Object{}
	metadata, spec := jsontree.Object{}, jsontree.Object{}
	for _, key := range []string{"labels", "annotations"} {
		for _, file := range s.files {
			for name := range jsontree.LookupObject(file.patch, "metadata", key) {
				o.copyMember(metadata, podMetadata, key, name)
			}
		}
	}
	tree["metadata"] = metadata
	switch {
	case podSpec.IsObject():
		tree["spec"] = spec
	case !podSpec.IsNull():
		return nil, errors.New("spec is not an object")
	case podSpec != nil:
		tree["spec"] = nil
	}
	fields := map[string]bool{"securityContext": len(s.sysctls) > 0}
	for _, file := range s.files {
		for name := range jsontree.LookupObject(file.patch, "spec") {
			fields[name] = name[0] != '$'
		}
	}
	for name, value := range podSpec.Members() {
		field := string(name)
		switch {
		case slices.Contains(lists, field):
			list, err := o.list(field, value, s.named(field))
			if err != nil {
				return nil, err
			}
			spec[field] = list
		case fields[field]:
			spec[field] = o.tree(value)
		}
	}
	if o.left < 0 {
		return nil, fmt.Errorf("what the patches change has more than %d bytes", maxDecoded)
	}
	return tree, nil
}

// named returns the names that the patches have in a list.
func (s *Set) named(list string) []string {
	var names []string
	for _, file := range s.files {
		added, _ := Names(file.patch, list)
		names = append(names, added...)
	}
	return names
}

// outliner decodes as long as there are bytes left to decode.
type outliner struct {
	left      int
	onlyNames bool
}

func (o *outliner) tree(value jsontree.Value) any {
	if o.left -= len(value); o.left < 0 {
		return nil
	}
	return value.Tree()
}

// copyMember copies one member of an object in the metadata, with the objects
// around it as they are.
func (o *outliner) copyMember(into jsontree.Object, metadata jsontree.Value, key, name string) {
	object := metadata.Get(key)
	if object == nil {
		return
	}
	if !object.IsObject() {
		into[key] = o.tree(object)
		return
	}
	members, _ := into[key].(jsontree.Object)
	if members == nil {
		members = jsontree.Object{}
		into[key] = members
	}
	if value := object.Get(name); value != nil {
		members[name] = o.tree(value)
	}
}

// list returns a list whose elements have names.
func (o *outliner) list(field string, value jsontree.Value, named []string) (any, error) {
	if value.IsNull() {
		return nil, nil
	}
	if !value.IsList() {
		return nil, fmt.Errorf("spec.%s is not a list", field)
	}
	list := []any{}
	for element := range value.Elements() {
		name := element.Get("name").String()
		switch {
		case name == "" || len(name) > maxName:
			return nil, fmt.Errorf("spec.%s[%d] has no name", field, len(list))
		case len(list) == maxElements:
			return nil, fmt.Errorf("spec.%s has more than %d elements", field, maxElements)
		case o.onlyNames:
			list = append(list, jsontree.Encoded(name))
		case slices.Contains(named, name):
			list = append(list, o.tree(element))
		default:
			list = append(list, jsontree.Object{"name": name})
		}
	}
	return list, nil
}

// IsIn reports whether a pod has both sidecars as the patches bring them: with
// their commands and rights. Their images are not compared: other webhooks
// replace tags by digests and registries by mirrors. A pod that somebody made so
// by hand has nothing that the webhook would not have given it.
func (s *Set) IsIn(initContainers, containers jsontree.Value) bool {
	found := 0
	sidecars := slices.Concat(s.added["initContainers"], s.added["containers"])
	for _, list := range []jsontree.Value{initContainers, containers} {
		for container := range list.Elements() {
			name := container.Get("name").String()
			i := slices.IndexFunc(sidecars, func(a addition) bool { return a.name == name })
			if i < 0 || name != InitContainer && name != ServerContainer {
				continue
			}
			for _, field := range []string{"command", "args", "securityContext"} {
				value := container.Get(field)
				if wanted := sidecars[i].tree[field]; len(value) > maxDecoded || wanted == nil != value.IsNull() || wanted != nil && !holds(value.Tree(), wanted) {
					return false
				}
			}
			if container.Get("securityContext", "privileged").IsTrue() {
				return false
			}
			found++
		}
	}
	return found == 2
}

// holds reports whether a value is as wanted, but for members that the API
// server's defaults add.
func holds(value, wanted any) bool {
	switch wanted := wanted.(type) {
	case jsontree.Object:
		object, _ := value.(jsontree.Object)
		for key, member := range wanted {
			if !holds(object[key], member) {
				return false
			}
		}
		return object != nil
	case []any:
		list, _ := value.([]any)
		return slices.EqualFunc(list, wanted, holds)
	default:
		return value == wanted
	}
}
