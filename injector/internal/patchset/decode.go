package patchset

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// decodePatch reads one strategic merge patch for a Pod from YAML or JSON.
// Whatever a Pod does not have is an error: a misspelt field would otherwise be
// dropped without a word by the API server.
func decodePatch(data []byte) (jsontree.Object, error) {
	documents := yaml.NewDecoder(bytes.NewReader(data))
	var document yaml.Node
	if err := documents.Decode(&document); err == io.EOF {
		return nil, errors.New("the file is empty: write a Pod patch or remove the file")
	} else if err != nil {
		return nil, yamlError(err)
	}
	if err := documents.Decode(&yaml.Node{}); err != io.EOF {
		return nil, errors.New("more than one document: put each patch in a file of its own")
	}
	var value any
	if err := document.Decode(&value); err != nil { // duplicate keys
		return nil, yamlError(err)
	}
	if err := checkKeys(&document); err != nil {
		return nil, err
	}
	text, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	patch, isObject := jsontree.Value(text).Tree().(jsontree.Object)
	if !isObject || patch["apiVersion"] != "v1" || patch["kind"] != "Pod" {
		return nil, errors.New("not a Pod: begin with apiVersion: v1 and kind: Pod")
	}
	if err := checkFields(text); err != nil {
		return nil, err
	}
	// What only says that this is a Pod: applied, its name would rename the pod.
	delete(patch, "apiVersion")
	delete(patch, "kind")
	metadata := jsontree.Lookup[jsontree.Object](patch, "metadata")
	delete(metadata, "name")
	if err := allowOnly(patch, "", "metadata", "spec"); err != nil {
		return nil, err
	}
	return patch, allowOnly(metadata, "metadata.", "labels", "annotations")
}

// yamlError puts an error of the YAML decoder in the form "line N: reason".
func yamlError(err error) error {
	return errors.New(strings.NewReplacer("yaml: ", "", "unmarshal errors:\n  ", "", "\n  ", "; ").Replace(err.Error()))
}

// checkKeys refuses keys that JSON does not have, and merge keys.
func checkKeys(node *yaml.Node) error {
	for i, child := range node.Content {
		if node.Kind == yaml.MappingNode && i%2 == 0 && child.ShortTag() != "!!str" {
			return fmt.Errorf("line %d: key %s: want a string: write it in quotes, and no merge key", child.Line, child.Value)
		}
		if err := checkKeys(child); err != nil {
			return err
		}
	}
	return nil
}

// checkFields compares a patch, of which it takes the directives out, with the type
// of a Pod: every field must be one that the Pod has, every value of its kind.
func checkFields(patch []byte) error {
	var plain jsontree.Object
	if err := json.Unmarshal(patch, &plain); err != nil {
		return err
	}
	if err := takeDirectives(plain, ""); err != nil {
		return err
	}
	text, err := json.Marshal(plain)
	if err != nil {
		return err
	}
	var wrong *json.UnmarshalTypeError
	if err := json.Unmarshal(text, &corev1.Pod{}); errors.As(err, &wrong) {
		return fmt.Errorf("field %s: want %s, not %s", wrong.Field, wrong.Type, wrong.Value)
	} else if err != nil {
		return err
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(plain, &corev1.Pod{}, true); err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "strict decoding error: "))
	}
	return nil
}

// takeDirectives removes the directives of strategic merge. Those about a list leave
// it in their place. An empty element, which a Pod could have, is a mistake.
func takeDirectives(value any, path string) error {
	switch value := value.(type) {
	case jsontree.Object:
		delete(value, "$patch")
		delete(value, "$retainKeys")
		for key, member := range value {
			for _, prefix := range []string{elementOrder, "$deleteFromPrimitiveList/"} {
				if list, found := strings.CutPrefix(key, prefix); found {
					delete(value, key)
					if key = list; value[key] == nil {
						value[key] = member
					}
				}
			}
			if err := takeDirectives(member, path+"."+key); err != nil {
				return err
			}
		}
	case []any:
		for i, element := range value {
			at := fmt.Sprintf("%s[%d]", path, i)
			if element == nil {
				return fmt.Errorf("%s is empty", strings.TrimPrefix(at, "."))
			}
			if err := takeDirectives(element, at); err != nil {
				return err
			}
		}
	}
	return nil
}

// allowOnly refuses fields that a patch must leave alone, and drops those of
// the others that are empty: strategic merge would remove them from the pod,
// with all that they hold.
func allowOnly(object jsontree.Object, path string, allowed ...string) error {
	for field, value := range object {
		if !slices.Contains(allowed, field) {
			return fmt.Errorf("field %s%s cannot be patched, only %s", path, field, strings.Join(allowed, " and "))
		}
		if value == nil {
			delete(object, field)
		}
	}
	return nil
}
