package patchset

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// decodePatch reads a strategic merge patch for a Pod. The API server would drop a misspelt field silently.
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
	if err := checkNodes(&document); err != nil {
		return nil, err
	}
	var value any
	if err := document.Decode(&value); err != nil { // duplicate keys
		return nil, yamlError(err)
	}
	patch, isObject := value.(jsontree.Object)
	if !isObject || patch["apiVersion"] != "v1" || patch["kind"] != "Pod" {
		return nil, errors.New("not a Pod: begin with apiVersion: v1 and kind: Pod")
	}
	if err := canonical(patch, ""); err != nil {
		return nil, err
	}
	text, err := json.Marshal(patch)
	if err != nil {
		return nil, fmt.Errorf("it cannot be converted to JSON: %w", err)
	}
	if err := checkFields(patch, text); err != nil {
		return nil, err
	}
	patch = jsontree.Value(text).Tree().(jsontree.Object)
	// What only says that this is a Pod: applied, its name would rename the pod.
	delete(patch, "apiVersion")
	delete(patch, "kind")
	metadata := jsontree.Lookup[jsontree.Object](patch, "metadata")
	delete(metadata, "name")
	if err := allowOnly(patch, "", "metadata", "spec"); err != nil {
		return nil, err
	}
	for key, value := range jsontree.Lookup[jsontree.Object](patch, "spec") {
		if value == nil {
			return nil, fmt.Errorf("field spec.%s is empty, which would remove the pod's own: remove the key, or name the elements that go, with $patch: delete", key)
		}
	}
	return patch, allowOnly(metadata, "metadata.", "labels", "annotations")
}

// canonical writes the quantities of requests and limits as the API server does, so that they can be compared.
func canonical(value any, path string) error {
	switch value := value.(type) {
	case []any:
		for i, element := range value {
			if err := canonical(element, fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
	case jsontree.Object:
		isQuantities := strings.HasSuffix(path, ".resources.requests") || strings.HasSuffix(path, ".resources.limits")
		for key, member := range value {
			at := strings.TrimPrefix(path+"."+key, ".")
			if err := canonical(member, at); err != nil {
				return err
			} else if !isQuantities || member == nil || strings.HasPrefix(key, "$") {
				continue
			}
			quantity, err := resource.ParseQuantity(fmt.Sprint(member))
			if err != nil {
				return fmt.Errorf("field %s: %v is not a quantity such as 100m, 0.5 or 64Mi", at, member)
			}
			value[key] = quantity.String()
		}
	}
	return nil
}

// yamlError puts an error of the YAML decoder in the form "line N: reason".
func yamlError(err error) error {
	return errors.New(strings.NewReplacer("yaml: ", "", "unmarshal errors:\n  ", "", "\n  ", "; ").Replace(err.Error()))
}

// checkNodes refuses keys that JSON does not have, merge keys, and empty elements, which a Pod could have.
func checkNodes(node *yaml.Node) error {
	for i, child := range node.Content {
		switch {
		case node.Kind == yaml.MappingNode && i%2 == 0 && child.ShortTag() != "!!str":
			return fmt.Errorf("line %d: key %s: want a string in quotes, and no merge key", child.Line, child.Value)
		case node.Kind == yaml.SequenceNode && child.ShortTag() == "!!null":
			return fmt.Errorf("line %d: an element of the list is empty", child.Line)
		case child.ShortTag() == "!!timestamp":
			child.Tag = "!!str" // JSON has no dates
		}
		if err := checkNodes(child); err != nil {
			return err
		}
	}
	return nil
}

// directive is what a strict decoder says of a directive of strategic merge.
var directive = regexp.MustCompile(`[".]\$(patch|retainKeys|setElementOrder/[a-zA-Z]+|deleteFromPrimitiveList/[a-zA-Z]+)"$`)

// checkFields compares a patch, and its text, with the type of a Pod: its fields and their kinds.
func checkFields(patch jsontree.Object, text []byte) error {
	err := json.Unmarshal(text, &corev1.Pod{})
	if wrong, isType := errors.AsType[*json.UnmarshalTypeError](err); isType {
		return fmt.Errorf("field %s: want %s, not %s", wrong.Field, wrong.Type, wrong.Value)
	} else if err != nil {
		return err
	}
	err = runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(patch, &corev1.Pod{}, true)
	strict, isStrict := runtime.AsStrictDecodingError(err)
	if !isStrict {
		return err
	}
	var unknown []string
	for _, err := range strict.Errors() {
		if !directive.MatchString(err.Error()) {
			unknown = append(unknown, err.Error())
		}
	}
	if unknown != nil {
		return errors.New(strings.Join(unknown, ", "))
	}
	return nil
}

// allowOnly refuses other fields, and drops empty ones: strategic merge would remove what the pod has there.
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
