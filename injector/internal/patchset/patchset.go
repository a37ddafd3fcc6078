// Package patchset holds the declared change to a virt-launcher pod: the
// strategic merge patches of a folder, which is a ConfigMap in a cluster. It
// reads and checks them once and applies them to any number of pods.
package patchset

import (
	"fmt"
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
}

// file is one patch as a tree, without what the Set applies itself.
type file struct {
	name  string
	patch jsontree.Object
}

// podSchema tells strategic merge which lists of a Pod are merged by which key.
var podSchema = strategicpatch.PatchMetaFromStruct{T: strategicpatch.GetTagStructTypeOrDie(corev1.Pod{})}

// Apply returns pod with all patches applied in the order of their file names.
// It leaves pod itself alone and keeps what it does not know. Lists keep the
// pod's elements first and in their order; sysctls are merged by name; a
// container that the patches bring without an image gets the server image.
func (s *Set) Apply(pod jsontree.Object) (jsontree.Object, error) {
	// Strategic merge panics at list elements that are no objects.
	for _, list := range []string{"initContainers", "containers", "volumes"} {
		if _, err := Names(pod, list); err != nil {
			return nil, err
		}
	}
	merged := jsontree.Clone(pod)
	if _, err := jsontree.Ensure(merged, "spec"); err != nil {
		return nil, err
	}
	patches := make([]jsontree.Object, len(s.files))
	for i, file := range s.files {
		patches[i] = file.patch
		var err error
		// The merge consumes the patch that it is given.
		merged, err = strategicpatch.StrategicMergeMapPatchUsingLookupPatchMeta(merged, jsontree.Clone(file.patch), podSchema)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file.name, err)
		}
	}
	if err := restoreOrder(merged, pod, patches, podSchema); err != nil {
		return nil, err
	}
	if err := mergeSysctls(merged, s.sysctls); err != nil {
		return nil, err
	}
	if err := s.setImages(merged, pod); err != nil {
		return nil, err
	}
	return merged, nil
}

// setImages completes the containers of merged that pod does not have.
func (s *Set) setImages(merged, pod jsontree.Object) error {
	for _, list := range []string{"initContainers", "containers"} {
		existing, err := Names(pod, list)
		if err != nil {
			return err
		}
		containers, err := jsontree.LookupList(merged, "spec", list)
		if err != nil {
			return err
		}
		for _, element := range containers {
			container, _ := element.(jsontree.Object)
			name := jsontree.LookupString(container, "name")
			if !slices.Contains(existing, name) && jsontree.LookupString(container, "image") == "" {
				container["image"] = s.serverImage
			}
		}
	}
	return nil
}
