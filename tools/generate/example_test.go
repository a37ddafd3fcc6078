package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"

	"github.com/google/go-cmp/cmp"

	"github.com/example/kubevirt-imds/injector/annotation"
)

// TestExamplesAskForIMDS has the webhook review each example VM, and then inject a
// pod with the annotations that KubeVirt would copy from the VM's template.
func TestExamplesAskForIMDS(t *testing.T) {
	w := runWebhook(t, build(t, loadTree(t), "overlays/cert-manager"))
	files, err := filepath.Glob(filepath.Join(repository, "kustomize/examples/*.yaml"))
	if err != nil || len(files) < 5 {
		t.Fatalf("examples %v (%v)", files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			vm := readExample(t, file)
			before, err := json.Marshal(vm)
			if err != nil {
				t.Fatal(err)
			}
			response := w.review(t, metav1.GroupVersionResource{Group: "kubevirt.io", Version: "v1", Resource: "virtualmachines"}, before)
			if !response.Allowed || len(response.Warnings) > 0 || response.Patch == nil {
				t.Fatalf("review: %+v", response)
			}
			patch, err := jsonpatch.DecodePatch(response.Patch)
			if err != nil {
				t.Fatal(err)
			}
			after, err := patch.Apply(before)
			if err != nil {
				t.Fatal(err)
			}
			var stored unstructured.Unstructured
			if err := json.Unmarshal(after, &stored.Object); err != nil {
				t.Fatal(err)
			}
			template, _, err := unstructured.NestedStringMap(stored.Object, "spec", "template", "metadata", "annotations")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(vm.GetAnnotations(), template); diff != "" {
				t.Errorf("annotations (-VM +template):\n%s", diff)
			}
			if pod := w.inject(t, launcherPod(template)); pod.Annotations[annotation.Injected] != "true" {
				t.Error("the VM's pod is not injected")
			}
		})
	}
}

// readExample returns the VM of an example. Another object beside it must be the
// ServiceAccount that the VM names.
func readExample(t *testing.T, file string) *unstructured.Unstructured {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var vm *unstructured.Unstructured
	var account string
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(content)))
	for {
		document, err := documents.Read()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		var object unstructured.Unstructured
		if err := yaml.UnmarshalStrict(document, &object.Object); err != nil {
			t.Fatal(err)
		}
		switch object.GetKind() {
		case "VirtualMachine":
			vm = &object
		case "ServiceAccount":
			account = object.GetName()
		default:
			t.Fatalf("kind %q", object.GetKind())
		}
	}
	if vm == nil || vm.GetAPIVersion() != "kubevirt.io/v1" {
		t.Fatal("no VirtualMachine of kubevirt.io/v1")
	}
	if named := accountOf(t, vm); named != account {
		t.Errorf("the VM runs as %q, the ServiceAccount is %q", named, account)
	}
	return vm
}

// accountOf is the ServiceAccount that KubeVirt gives to the VM's pod.
func accountOf(t *testing.T, vm *unstructured.Unstructured) string {
	t.Helper()
	name, found, _ := unstructured.NestedString(vm.Object, "spec", "template", "spec", "serviceAccountName")
	if found {
		return name
	}
	volumes, _, err := unstructured.NestedSlice(vm.Object, "spec", "template", "spec", "volumes")
	if err != nil {
		t.Fatal(err)
	}
	for _, volume := range volumes {
		if name, found, _ := unstructured.NestedString(volume.(map[string]any), "serviceAccount", "serviceAccountName"); found {
			return name
		}
	}
	return ""
}
