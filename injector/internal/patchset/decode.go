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

	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// decodePatch reads one strategic merge patch for a Pod from YAML or JSON.
// Whatever a Pod does not have is an error that names the line: a misspelt
// field would otherwise be dropped without a word by the API server.
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

	// Decoding into values is what finds duplicate keys.
	var value any
	if err := document.Decode(&value); err != nil {
		return nil, yamlError(err)
	}
	if err := checkFields(&document); err != nil {
		return nil, err
	}
	text, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	// The last word on values such as quantities is with the type itself.
	if err := json.Unmarshal(text, &corev1.Pod{}); err != nil {
		return nil, err
	}
	patch, _ := jsontree.Value(text).Tree().(jsontree.Object)
	return patch, dropIdentity(patch)
}

// yamlError puts an error of the YAML decoder in the form "line N: reason".
func yamlError(err error) error {
	var typeError *yaml.TypeError
	if errors.As(err, &typeError) {
		return errors.New(strings.Join(typeError.Errors, "; "))
	}
	return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
}

// dropIdentity checks that patch is one for a Pod, and removes what only says
// so: applied, its name would rename the pod.
func dropIdentity(patch jsontree.Object) error {
	if patch["apiVersion"] != "v1" || patch["kind"] != "Pod" {
		return errors.New("not a Pod: begin with apiVersion: v1 and kind: Pod")
	}
	delete(patch, "apiVersion")
	delete(patch, "kind")
	metadata := jsontree.LookupObject(patch, "metadata")
	delete(metadata, "name")
	if err := allowOnly(patch, "", "metadata", "spec"); err != nil {
		return err
	}
	return allowOnly(metadata, "metadata.", "labels", "annotations")
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
