package patchset

import (
	"errors"
	"fmt"
	"slices"

	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

const (
	maxElements = 1000 // more containers or volumes than a node can run
	maxName     = 253
	maxTree     = 64 << 10 // of text that is decoded, in bytes
)

// Outline returns what is judged and changed of a pod: this project's annotations, the fields that the
// patches name, and three lists, whose elements stay text. It is an error when that is larger than any that
// KubeVirt makes.
func (s *Set) Outline(pod jsontree.Value) (jsontree.Object, error) {
	top := pod.Fields("metadata", "spec")
	if !top["spec"].IsObject() {
		return nil, errors.New("spec is not an object")
	}
	spec, left := jsontree.Object{}, maxTree
	for field, value := range top["spec"].Members() {
		switch {
		case slices.Contains(lists, string(field)):
			var err error
			if spec[string(field)], err = s.outlineOfList(string(field), value); err != nil {
				return nil, err
			}
		case s.fields[string(field)]:
			if left -= len(value.Raw()); left < 0 {
				return nil, fmt.Errorf("what the patches change has more than %d bytes", maxTree)
			}
			spec[string(field)] = value.Tree()
		}
	}
	return jsontree.Object{"metadata": top["metadata"].Part(s.metadata), "spec": spec}, nil
}

func (s *Set) outlineOfList(field string, value jsontree.Value) (outline any, err error) {
	if value.IsNull() {
		return nil, nil
	} else if value[0] != '[' {
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
		case len(element) > maxTree && (IsSidecar(name) || slices.Contains(s.named[field], name)):
			return nil, fmt.Errorf("spec.%s[%d], which the patches change, has more than %d bytes", field, len(list), maxTree)
		}
		list = append(list, element)
	}
	return list, nil
}
