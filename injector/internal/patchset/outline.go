package patchset

import (
	"errors"
	"fmt"
	"maps"
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

// Outline returns the part of a pod that is changed, as Apply and a difference need
// it: what the patches name, and this project's annotations and containers. The other
// elements of lists stay text. The fields of the spec are those of Fields, and maybe
// others. It is an error when the part is larger than any that KubeVirt makes.
func (s *Set) Outline(podMetadata, podSpec jsontree.Value, fields map[string]jsontree.Value) (jsontree.Object, error) {
	pod, spec, left := jsontree.Object{"metadata": jsontree.Object{}}, jsontree.Object{}, maxDecoded
	if podMetadata != nil {
		pod["metadata"] = podMetadata.Part(s.metadata)
	}
	switch {
	case podSpec.IsObject():
		pod["spec"] = spec
	case !podSpec.IsNull():
		return nil, errors.New("spec is not an object")
	case podSpec != nil:
		pod["spec"] = nil
	}
	decoded := func(value jsontree.Value) any {
		if left -= len(value); left < 0 {
			return nil
		}
		return value.Tree()
	}
	for field, value := range fields {
		switch {
		case !slices.Contains(lists, field):
			if s.fields[field] {
				spec[field] = decoded(value)
			}
			continue
		case value.IsNull():
			spec[field] = nil
			continue
		case !value.IsList():
			return nil, fmt.Errorf("spec.%s is not a list", field)
		}
		list := []any{}
		for element := range value.Elements() {
			name := jsontree.Name(element)
			switch {
			case name == "" || len(name) > maxName:
				return nil, fmt.Errorf("spec.%s[%d] has no name", field, len(list))
			case len(list) == maxElements:
				return nil, fmt.Errorf("spec.%s has more than %d elements", field, maxElements)
			case IsSidecar(name) || slices.Contains(s.named[field], name):
				list = append(list, decoded(element))
			default:
				list = append(list, element)
			}
		}
		spec[field] = list
	}
	if left < 0 {
		return nil, fmt.Errorf("what the patches change has more than %d bytes", maxDecoded)
	}
	return pod, nil
}

// Fields returns the names of the fields of a pod's spec that an outline has.
func (s *Set) Fields() []string {
	names := maps.Clone(s.fields)
	for _, list := range lists {
		names[list] = true
	}
	return slices.Collect(maps.Keys(names))
}
