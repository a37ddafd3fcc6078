package patchset

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// What every patch set brings. The names are reserved: a pod that has them
// before it is patched would have its own image and command merged with the
// sidecars' capabilities.
const (
	// InitContainer wires the guest's NIC to the server.
	InitContainer = "imds-init"
	// ServerContainer answers the guest.
	ServerContainer = "imds-server"
	// TokenVolume is the projected volume with the ServiceAccount tokens.
	TokenVolume = "imds-token"
)

// prove applies the set to the smallest pod that KubeVirt could make, and
// checks that it brings what the rest of the project relies on.
func (s *Set) prove() error {
	pod, err := s.Apply(jsontree.Object{
		"metadata": jsontree.Object{"labels": jsontree.Object{"kubevirt.io": "virt-launcher"}},
		"spec": jsontree.Object{
			"containers": []any{jsontree.Object{"name": "compute", "image": "virt-launcher"}},
		},
	})
	if err != nil {
		return err
	}
	initContainers, err := Names(pod, "initContainers")
	if err != nil {
		return err
	}
	containers, err := Names(pod, "containers")
	if err != nil {
		return err
	}
	if !slices.Contains(containers, "compute") {
		return errors.New("the patches remove the container compute, which runs the VM")
	}
	for _, name := range []string{InitContainer, ServerContainer} {
		if !slices.Contains(initContainers, name) && !slices.Contains(containers, name) {
			return fmt.Errorf("no patch brings the container %s: add it to spec.initContainers", name)
		}
	}
	// One patch says where a container is, another puts it somewhere else.
	for _, name := range initContainers {
		if slices.Contains(containers, name) {
			return fmt.Errorf("the patches bring the container %s twice, to spec.initContainers and to spec.containers: keep one", name)
		}
	}
	s.added, s.additive = map[string][]addition{}, true
	for _, file := range s.files {
		s.additive = s.additive && s.onlyNames(file.patch)
	}
	for _, list := range lists {
		for _, name := range s.named(list) {
			if element, _ := jsontree.LookupList(pod, "spec", list); sameName(element, jsontree.Object{"name": name}) == nil {
				s.additive = false // one patch takes away what another one brings
			}
		}
		elements, _ := jsontree.LookupList(pod, "spec", list)
		for _, element := range elements {
			object, _ := element.(jsontree.Object)
			if name := jsontree.LookupString(object, "name"); name != "compute" {
				text, err := json.Marshal(object)
				if err != nil {
					return err
				}
				s.added[list] = append(s.added[list], addition{name, object, jsontree.Encoded(text)})
			}
		}
	}
	_, err = TokenProjection(pod)
	return err
}

// Names returns the names in a list of the pod's spec: "initContainers",
// "containers" or "volumes". An element without a name is an error.
func Names(pod jsontree.Object, list string) ([]string, error) {
	elements, err := jsontree.LookupList(pod, "spec", list)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(elements))
	for i, element := range elements {
		object, _ := element.(jsontree.Object)
		if names[i] = jsontree.LookupString(object, "name"); names[i] == "" {
			return nil, fmt.Errorf("spec.%s[%d] has no name", list, i)
		}
	}
	return names, nil
}

// TokenProjection returns the "projected" object of the pod's token volume. It
// has at least one source that is a serviceAccountToken.
func TokenProjection(pod jsontree.Object) (jsontree.Object, error) {
	volumes, err := jsontree.LookupList(pod, "spec", "volumes")
	if err != nil {
		return nil, err
	}
	for _, element := range volumes {
		volume, _ := element.(jsontree.Object)
		if jsontree.LookupString(volume, "name") != TokenVolume {
			continue
		}
		projected := jsontree.LookupObject(volume, "projected")
		sources, err := jsontree.LookupList(projected, "sources")
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(sources, isToken) {
			return nil, fmt.Errorf("volume %s has no projected serviceAccountToken", TokenVolume)
		}
		return projected, nil
	}
	return nil, errors.New("no patch brings the volume " + TokenVolume)
}

func isToken(source any) bool {
	object, _ := source.(jsontree.Object)
	return jsontree.LookupObject(object, "serviceAccountToken") != nil
}
