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
	maxName     = 253
)

// Outline returns the part of a pod that is judged and changed: this project's annotations, what the patches name,
// and three lists, whose elements stay text. It is an error when what it decodes is larger than any that KubeVirt
// makes.
func (s *Set) Outline(pod jsontree.Value) (jsontree.Object, error) {
	top := pod.Fields("metadata", "spec")
	if !top["spec"].IsObject() {
		return nil, errors.New("spec is not an object")
	}
	spec, left := jsontree.Object{}, jsontree.MaxTree
	for key, value := range top["spec"].Members() {
		field := string(key)
		switch {
		case slices.Contains(lists, field) && value.IsNull():
			spec[field] = nil
		case slices.Contains(lists, field):
			list, err := outlineOfList(field, value)
			if err != nil {
				return nil, err
			}
			spec[field] = list
		case s.fields[field]:
			if left -= len(value.Raw()); left < 0 {
				return nil, fmt.Errorf("what the patches change has more than %d bytes", jsontree.MaxTree)
			}
			spec[field] = value.Tree()
		}
	}
	return jsontree.Object{"metadata": top["metadata"].Part(s.metadata), "spec": spec}, nil
}

func outlineOfList(field string, value jsontree.Value) ([]any, error) {
	if !value.IsList() {
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
		}
		list = append(list, element)
	}
	return list, nil
}
