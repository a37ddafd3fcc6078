// Package patchset holds the strategic merge patches of a folder, which bring the sidecars to pods.
package patchset

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// What patch sets bring. In a pod that has such a name before, an image and command of its own would be
// merged with the sidecars' capabilities.
const (
	InitContainer   = "imds-init"   // wires the guest's NIC to the server, where the node agent does not
	ServerContainer = "imds-server" // answers the guest
	TokenVolume     = "imds-token"  // the projected volume with the ServiceAccount tokens
	NodeVolume      = "imds-node"   // where the node agent finds the server's socket, nodeSocket
	nodeSocket      = "imds.sock"
)

// Volumes are the names that the pod of a VM with IMDS must leave to the patches.
var Volumes = []string{TokenVolume, NodeVolume}

// IsSidecar reports whether a container's name is one of the sidecars'.
func IsSidecar(name string) bool { return name == InitContainer || name == ServerContainer }

// Set is the patches of one folder, ready to be applied. It does not change.
type Set struct {
	WiredBy     string            // who wires the pods: a value of annotation.WiredBy
	Files       []string          // by their names
	LeftOut     []string          // those that are no patches
	Hash        string            // of the files
	patches     []jsontree.Object // of the files, without what the Set applies itself
	sysctls     []any             // as in a pod
	serverImage string
	// What an outline has of the metadata and of the spec, and the elements that patches name, by list.
	metadata jsontree.Object
	fields   map[string]bool
	named    map[string][]string
	// additive: the patches only add brought (text) and broughtMetadata to a pod without their elements.
	additive        bool
	brought         map[string][]any
	broughtMetadata jsontree.Object
}

// podSchema tells strategic merge which lists of a Pod are merged by which key.
var podSchema = strategicpatch.PatchMetaFromStruct{T: strategicpatch.GetTagStructTypeOrDie(corev1.Pod{})}

// lists are those of a pod's spec that patches add to.
var lists = []string{"initContainers", "containers", "volumes"}

// Open reads the patch files of a folder, in name order. serverImage goes to containers without an image.
func Open(folder, serverImage string) (*Set, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	s := &Set{serverImage: serverImage, named: map[string][]string{}, additive: true}
	s.fields = map[string]bool{"securityContext": true, "hostNetwork": true, "hostPID": true, "hostUsers": true, "shareProcessNamespace": true}
	s.metadata = jsontree.Object{"labels": jsontree.Object{}, "annotations": jsontree.Members(annotation.All()...)}
	hash := sha256.New()
	for _, entry := range entries {
		name := entry.Name()
		// What begins with a dot is the kubelet's own; kustomization.yaml makes the ConfigMap.
		if strings.HasPrefix(name, ".") || name == "kustomization.yaml" {
			continue
		} else if !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)) {
			s.LeftOut = append(s.LeftOut, name)
			continue
		}
		path := filepath.Join(folder, name)
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(hash, "%s\x00%d\x00%s", name, len(content), content)
		patch, err := decodePatch(content)
		if err == nil {
			err = s.takeSysctls(patch)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		s.learn(patch)
		s.Files, s.patches = append(s.Files, name), append(s.patches, patch)
	}
	s.Hash = fmt.Sprintf("%.6x", hash.Sum(nil))
	if s.Files == nil {
		return nil, errors.New("no patch files in " + folder + ": want *.yaml, *.yml or *.json")
	}
	if err := s.prove(); err != nil {
		return nil, fmt.Errorf("patches in %s: %w", folder, err)
	}
	return s, nil
}

// learn notes what a patch names, and whether it only adds.
func (s *Set) learn(patch jsontree.Object) {
	for key, members := range jsontree.Lookup[jsontree.Object](patch, "metadata") {
		for name, value := range members.(jsontree.Object) {
			s.metadata[key].(jsontree.Object)[name] = nil
			s.additive = s.additive && value != nil && !strings.HasPrefix(name, "$")
		}
	}
	for field, value := range jsontree.Lookup[jsontree.Object](patch, "spec") {
		s.fields[field] = true
		list, _ := value.([]any)
		s.additive = s.additive && slices.Contains(lists, field) && len(list) > 0
		for _, element := range list {
			object, _ := element.(jsontree.Object)
			s.named[field] = append(s.named[field], jsontree.Name(object))
			s.additive = s.additive && (object["$patch"] == nil || object["$patch"] == "delete") && jsontree.Name(object) != "compute"
		}
	}
}

// prove applies the set to the smallest pod, and checks that it brings what the project relies on, and nothing
// that the API server or the kubelet would refuse, as far as it is a likely mistake.
func (s *Set) prove() error {
	tree, err := s.merge(jsontree.Object{
		"metadata": jsontree.Object{},
		"spec":     jsontree.Object{"containers": []any{jsontree.Object{"name": "compute", "image": "virt-launcher"}}},
	})
	if err != nil {
		return err
	}
	text, err := json.Marshal(tree)
	if err != nil {
		return err
	}
	var pod corev1.Pod
	if err := json.Unmarshal(text, &pod); err != nil {
		return err
	}
	if err := checkPod(&pod); err != nil {
		return err
	}
	if s.WiredBy, err = wiredBy(&pod.Spec); err != nil {
		return err
	}
	s.broughtMetadata, s.brought = jsontree.Lookup[jsontree.Object](tree, "metadata"), map[string][]any{}
	for _, list := range lists {
		for i, element := range slices.Collect(jsontree.Value(text).Get("spec", list).Elements()) {
			if name := jsontree.Name(element); name == "" {
				return fmt.Errorf("spec.%s[%d] has no name", list, i)
			} else if name != "compute" {
				s.brought[list] = append(s.brought[list], element)
			}
		}
	}
	_, err = TokenProjection(tree)
	return err
}

// TokenProjection returns the "projected" object of the token volume, which has a serviceAccountToken.
func TokenProjection(pod jsontree.Object) (jsontree.Object, error) {
	volume := jsontree.Named(jsontree.Lookup[[]any](pod, "spec", "volumes"), TokenVolume)
	if volume == nil {
		return nil, errors.New("no patch brings the volume " + TokenVolume)
	}
	projected := jsontree.Lookup[jsontree.Object](volume, "projected")
	for _, source := range jsontree.Lookup[[]any](projected, "sources") {
		if source, _ := source.(jsontree.Object); jsontree.Lookup[jsontree.Object](source, "serviceAccountToken") != nil {
			return projected, nil
		}
	}
	return nil, fmt.Errorf("volume %s has no projected serviceAccountToken", TokenVolume)
}

// Apply applies all patches to an outline, which is used up. The pod's own elements stay first, in order.
func (s *Set) Apply(pod jsontree.Object) (jsontree.Object, error) {
	spec, mustMerge := jsontree.Lookup[jsontree.Object](pod, "spec"), !s.additive
	for list, names := range s.named {
		elements := jsontree.Lookup[[]any](spec, list)
		for _, name := range names {
			mustMerge = jsontree.Named(elements, name) != nil || mustMerge
		}
	}
	if mustMerge {
		merged, err := s.merge(pod)
		if err != nil {
			return nil, err
		}
		return merged, s.mergeSysctls(merged)
	}
	for key, brought := range s.broughtMetadata {
		members, err := jsontree.Ensure(pod, "metadata", key)
		if err != nil {
			return nil, err
		}
		maps.Copy(members, brought.(jsontree.Object))
	}
	for list, brought := range s.brought {
		spec[list] = append(jsontree.Lookup[[]any](spec, list), brought...)
	}
	return pod, s.mergeSysctls(pod)
}

// hidden is the member for the text of an element in the object that strategic merge wants in its place.
const hidden = "\x00"

// merge applies the patches to a pod whose elements are decoded where patches name them.
func (s *Set) merge(pod jsontree.Object) (merged jsontree.Object, err error) {
	own := map[string][]any{}
	for _, list := range lists {
		elements := jsontree.Lookup[[]any](pod, "spec", list)
		for i, element := range elements {
			if text, isText := element.(jsontree.Value); isText {
				elements[i] = jsontree.Object{"name": jsontree.Name(text), hidden: text}
			}
		}
		own[list] = slices.Clone(elements)
	}
	for i, patch := range s.patches {
		patch = jsontree.Clone(patch) // which the merge consumes
		makeRoom(jsontree.Lookup[jsontree.Object](pod, "spec"), jsontree.Lookup[jsontree.Object](patch, "spec"), lists...)
		if pod, err = strategicpatch.StrategicMergeMapPatchUsingLookupPatchMeta(pod, patch, podSchema); err != nil {
			return nil, fmt.Errorf("%s: %w", s.Files[i], err)
		}
	}
	for _, list := range lists {
		elements := jsontree.Lookup[[]any](pod, "spec", list)
		for i, element := range elements {
			object, _ := element.(jsontree.Object)
			if text, isText := object[hidden].(jsontree.Value); isText {
				elements[i] = text
			} else if list != "volumes" && jsontree.IndexOf(own[list], jsontree.Name(object)) < 0 && jsontree.Lookup[string](object, "image") == "" {
				object["image"] = s.serverImage
			}
		}
	}
	return pod, nil
}

// makeRoom has an element, at the end of its list, for each that a patch brings, and so for the environment of
// containers; and the changes of a list in its order, unless the patch states one. Strategic merge itself would put
// new elements first, with nulls for what they do not have. But init containers start in their order, and the API
// server reads the null of a quantity as 0.
func makeRoom(object, patch jsontree.Object, lists ...string) {
	for _, list := range lists {
		elements, changes := jsontree.Lookup[[]any](object, list), jsontree.Lookup[[]any](patch, list)
		isReplacement := func(change any) bool { return change.(jsontree.Object)["$patch"] == "replace" }
		if slices.ContainsFunc(changes, isReplacement) {
			elements, changes = []any{}, slices.DeleteFunc(changes, isReplacement)
			patch[list] = changes
		}
		for _, change := range changes {
			name := jsontree.Name(change)
			if i := jsontree.IndexOf(elements, name); i >= 0 && list != "env" {
				makeRoom(elements[i].(jsontree.Object), change.(jsontree.Object), "env")
			} else if i < 0 && name != "" && change.(jsontree.Object)["$patch"] == nil {
				elements = append(elements, jsontree.Object{"name": name})
			}
		}
		if elements != nil {
			object[list] = elements
		}
		if _, stated := patch["$setElementOrder/"+list]; !stated {
			slices.SortStableFunc(changes, func(a, b any) int {
				return jsontree.IndexOf(elements, jsontree.Name(a)) - jsontree.IndexOf(elements, jsontree.Name(b))
			})
		}
	}
}
