package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
	"sigs.k8s.io/yaml"

	"github.com/example/kubevirt-imds/injector/internal/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// fixture returns an object from testdata/pod as the API server would send it.
func fixture(t testing.TB, name string) json.RawMessage {
	t.Helper()
	return readObject(t, filepath.Join("testdata", "pod", name))
}

// readObject returns the object in a file as compact JSON. A JSON file keeps
// the digits of its numbers, which YAML does not.
func readObject(t testing.TB, path string) json.RawMessage {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Ext(path) == ".yaml" {
		if data, err = yaml.YAMLToJSONStrict(data); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, data); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return compact.Bytes()
}

// cases returns the fixtures of a folder by the names of their cases.
func cases(t *testing.T, folder, suffix string) map[string]string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("testdata", folder, "*"+suffix+".*"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no fixtures *%s.* in testdata/%s: %v", suffix, folder, err)
	}
	found := map[string]string{}
	for _, path := range paths {
		name, _, _ := strings.Cut(filepath.Base(path), suffix)
		found[name] = path
	}
	return found
}

// verdict is the file beside a fixture: what the API server is told.
type verdict struct {
	Allowed  bool              `json:"allowed"`
	Message  string            `json:"message,omitempty"`
	Warnings []string          `json:"warnings,omitempty"`
	Patch    []jsontree.Object `json:"patch,omitempty"`
}

// checkVerdict compares an answer with the verdict in a file, or writes the
// file when the test runs with -update.
func checkVerdict(t *testing.T, path string, response *admissionv1.AdmissionResponse) {
	t.Helper()
	got := verdict{Allowed: response.Allowed, Warnings: response.Warnings}
	if response.Result != nil {
		got.Message = response.Result.Message
	}
	if response.Patch != nil {
		if response.PatchType == nil || *response.PatchType != admissionv1.PatchTypeJSONPatch {
			t.Errorf("patch of type %v", response.PatchType)
		}
		if err := json.Unmarshal(response.Patch, &got.Patch); err != nil {
			t.Fatal(err)
		}
	}
	text, err := yaml.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: run the test with -update, and read what it wrote", err)
	}
	if string(text) != string(want) {
		t.Errorf("%s differs; got:\n%s", path, text)
	}
}

// apply applies an answer's patch as the API server does.
func apply(t testing.TB, object []byte, response *admissionv1.AdmissionResponse) []byte {
	t.Helper()
	if response.Patch == nil {
		return object
	}
	patch, err := jsonpatch.DecodePatch(response.Patch)
	if err != nil {
		t.Fatal(err)
	}
	patched, err := patch.Apply(object)
	if err != nil {
		t.Fatalf("patch %s: %v", response.Patch, err)
	}
	return patched
}

// tree decodes an object with the text of its numbers.
func tree(t testing.TB, object []byte) jsontree.Object {
	t.Helper()
	var decoded jsontree.Object
	if err := jsontree.Decode(bytes.NewReader(object), &decoded); err != nil {
		t.Fatal(err)
	}
	return decoded
}

func checkSame(t testing.TB, what string, got, want jsontree.Object) {
	t.Helper()
	if difference := jsontree.Diff(want, got); difference != nil {
		text, _ := json.MarshalIndent(difference, "", "  ")
		t.Errorf("%s differs from what is expected by %s", what, text)
	}
}

func TestPodFixtures(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	for name, path := range cases(t, "pod", ".pod") {
		t.Run(name, func(t *testing.T) {
			w := w.in(t)
			pod := readObject(t, path)
			response := w.review("/mutate-pod", podRequest(pod))
			checkVerdict(t, filepath.Join("testdata", "pod", name+".verdict.yaml"), response)
			if response.Patch != nil {
				checkInjection(t, w, pod, response)
			}
		})
	}
}

// TestPodsRenderedByKubeVirt takes pods that KubeVirt itself rendered, where
// there are some beside the repository.
func TestPodsRenderedByKubeVirt(t *testing.T) {
	folder := filepath.Join("..", "..", "shared", "pods")
	paths, err := filepath.Glob(filepath.Join(folder, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	if len(paths) == 0 {
		t.Logf("no rendered pods in %s: the fixtures have pods of the same shape", folder)
		return
	}
	w := startWebhook(t, declaredPatches, immediately)
	injected := 0
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			w := w.in(t)
			pod := readObject(t, path)
			response := w.review("/mutate-pod", podRequest(pod))
			if !response.Allowed {
				t.Fatalf("refused: %s", response.Result.Message)
			}
			ephemeral := annotationsOf(tree(t, pod))["kubevirt.io/ephemeral-provisioning"] != nil
			if ephemeral == (response.Patch != nil) {
				t.Fatalf("ephemeral %v, patch %s", ephemeral, response.Patch)
			}
			if response.Patch != nil {
				injected++
				checkInjection(t, w, pod, response)
			}
		})
	}
	if injected == 0 {
		t.Errorf("none of %d pods was injected", len(paths))
	}
}

func TestVirtualMachineFixtures(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	for name, path := range cases(t, "virtualmachine", ".vm") {
		t.Run(name, func(t *testing.T) {
			w := w.in(t)
			vm := readObject(t, path)
			var old json.RawMessage
			oldPath := filepath.Join("testdata", "virtualmachine", name+".old.yaml")
			if _, err := os.Stat(oldPath); err == nil {
				old = readObject(t, oldPath)
			}
			response := w.review("/mutate-virtualmachine", vmRequest(vm, old))
			checkVerdict(t, filepath.Join("testdata", "virtualmachine", name+".verdict.yaml"), response)

			patched := apply(t, vm, response)
			if again := w.review("/mutate-virtualmachine", vmRequest(patched, old)); response.Allowed && again.Patch != nil {
				t.Errorf("patched twice: %s", again.Patch)
			}
			checkSame(t, "the VM without its template's annotations",
				withoutTemplateAnnotations(t, patched), withoutTemplateAnnotations(t, vm))
		})
	}
}

func TestVirtualMachineInstanceFixtures(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	for name, path := range cases(t, "virtualmachineinstance", ".vmi") {
		t.Run(name, func(t *testing.T) {
			w := w.in(t)
			vmi := readObject(t, path)
			response := w.review("/mutate-virtualmachineinstance", vmiRequest(vmi))
			checkVerdict(t, filepath.Join("testdata", "virtualmachineinstance", name+".verdict.yaml"), response)

			patched := apply(t, vmi, response)
			if again := w.review("/mutate-virtualmachineinstance", vmiRequest(patched)); response.Allowed && (again.Patch != nil || !again.Allowed) {
				t.Errorf("asked twice: %+v", again)
			}
			checkSame(t, "the instance without its redirection", withoutRedirection(t, patched), withoutRedirection(t, vmi))
		})
	}
}

// withoutRedirection returns an instance without what the webhook may change.
func withoutRedirection(t *testing.T, vmi []byte) jsontree.Object {
	t.Helper()
	rest := tree(t, vmi)
	delete(jsontree.LookupObject(rest, "metadata", "annotations"), annotation.RedirectPort)
	return rest
}

// withoutTemplateAnnotations returns a VM without what the webhook may change.
func withoutTemplateAnnotations(t *testing.T, vm []byte) jsontree.Object {
	t.Helper()
	rest := tree(t, vm)
	metadata := jsontree.LookupObject(rest, "spec", "template", "metadata")
	for name := range annotation.Select(jsontree.LookupObject(metadata, "annotations")) {
		delete(jsontree.LookupObject(metadata, "annotations"), name)
	}
	if len(jsontree.LookupObject(metadata, "annotations")) == 0 {
		delete(metadata, "annotations")
	}
	if metadata != nil && len(metadata) == 0 {
		delete(jsontree.LookupObject(rest, "spec", "template"), "metadata")
	}
	return rest
}
