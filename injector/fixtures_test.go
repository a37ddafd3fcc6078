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

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// fixture returns the object of a case in testdata/pod as the API server would
// send it.
func fixture(t testing.TB, name string) json.RawMessage {
	t.Helper()
	object, _ := readCase(t, "pod", name)
	return object
}

// readCase returns the object of a case, and what an update replaces. A case is
// a file with an object (NAME.pod.yaml), or with what is different (object, and
// old: JSON merge patches) from another one (from), which is "base" where it does
// not say.
func readCase(t testing.TB, kind, name string) (object, old json.RawMessage) {
	t.Helper()
	if whole, err := filepath.Glob(filepath.Join("testdata", kind, name+".*.*")); err != nil {
		t.Fatal(err)
	} else {
		for _, path := range whole {
			if !strings.HasSuffix(path, ".verdict.yaml") {
				return readObject(t, path), nil
			}
		}
	}
	path := filepath.Join("testdata", kind, name+".yaml")
	if name == "base" {
		return readObject(t, path), nil
	}
	difference := struct {
		From        string
		Object, Old json.RawMessage
	}{From: "base"}
	if err := json.Unmarshal(readObject(t, path), &difference); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	base, _ := readCase(t, kind, difference.From)
	changed := func(difference json.RawMessage) json.RawMessage {
		if difference == nil {
			return nil
		}
		text, err := jsonpatch.MergePatch(base, difference)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		return text
	}
	return changed(difference.Object), changed(difference.Old)
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

// cases returns the names of the cases of a kind.
func cases(t *testing.T, kind string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join("testdata", kind))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		name, rest, _ := strings.Cut(entry.Name(), ".")
		if name != "base" && !strings.HasPrefix(rest, "verdict") {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		t.Fatalf("no cases in testdata/%s", kind)
	}
	return names
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
	value, err := jsontree.Parse(object)
	if err != nil {
		t.Fatal(err)
	}
	return value.Tree().(jsontree.Object)
}

func checkSame(t testing.TB, what string, got, want jsontree.Object) {
	t.Helper()
	if difference := jsontree.Diff(want, got); difference != nil {
		t.Errorf("%s differs from what is expected by %s", what, difference)
	}
}

func TestPodFixtures(t *testing.T) {
	w := startWebhook(t, leastPatches, immediately)
	for _, name := range cases(t, "pod") {
		t.Run(name, func(t *testing.T) {
			w := w.in(t)
			pod := fixture(t, name)
			response := w.review("/mutate-pod", podRequest(pod))
			checkVerdict(t, filepath.Join("testdata", "pod", name+".verdict.yaml"), response)
			if isInjection(response) {
				checkInjection(t, w, pod, response)
			}
		})
	}
}

// isInjection tells an injection from a pod that is left alone, with or without
// a reason written on it.
func isInjection(response *admissionv1.AdmissionResponse) bool {
	return bytes.Contains(response.Patch, []byte(`/imds.kubevirt.io~1vm-name"`))
}

func TestPodWithTheShippedPatches(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	for _, name := range []string{"masquerade", "dedicated-cpus"} {
		pod := fixture(t, name)
		response := w.review("/mutate-pod", podRequest(pod))
		checkVerdict(t, filepath.Join("testdata", "shipped", name+".verdict.yaml"), response)
		checkInjection(t, w, pod, response)
	}
}

func TestVirtualMachineFixtures(t *testing.T) {
	w := startWebhook(t, leastPatches, immediately)
	for _, name := range cases(t, "virtualmachine") {
		t.Run(name, func(t *testing.T) {
			w := w.in(t)
			vm, old := readCase(t, "virtualmachine", name)
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
	w := startWebhook(t, leastPatches, immediately)
	for _, name := range cases(t, "virtualmachineinstance") {
		t.Run(name, func(t *testing.T) {
			w := w.in(t)
			vmi, old := readCase(t, "virtualmachineinstance", name)
			before := w.log.count("not refused, since a controller made it")
			response := w.review("/mutate-virtualmachineinstance", vmiRequest(vmi, old))
			if told := w.log.count("not refused, since a controller made it") > before; told != strings.HasSuffix(name, "-of-a-vm") {
				t.Errorf("the log tells that something is wrong and not refused: %v", told)
			}
			checkVerdict(t, filepath.Join("testdata", "virtualmachineinstance", name+".verdict.yaml"), response)

			patched := apply(t, vmi, response)
			if again := w.review("/mutate-virtualmachineinstance", vmiRequest(patched, old)); response.Allowed && (again.Patch != nil || !again.Allowed) {
				t.Errorf("asked twice: %+v", again)
			}
			checkSame(t, "the instance without its verdict", withoutVerdict(t, patched), withoutVerdict(t, vmi))
		})
	}
}

// withoutVerdict returns an instance without what the webhook may change.
func withoutVerdict(t *testing.T, vmi []byte) jsontree.Object {
	t.Helper()
	rest := tree(t, vmi)
	for _, name := range annotation.Verdict() {
		delete(jsontree.Lookup[jsontree.Object](rest, "metadata", "annotations"), name)
	}
	return rest
}

// withoutTemplateAnnotations returns a VM without what the webhook may change.
func withoutTemplateAnnotations(t *testing.T, vm []byte) jsontree.Object {
	t.Helper()
	rest := tree(t, vm)
	metadata := jsontree.Lookup[jsontree.Object](rest, "spec", "template", "metadata")
	for _, name := range annotation.ByUser() {
		delete(jsontree.Lookup[jsontree.Object](metadata, "annotations"), name)
	}
	if len(jsontree.Lookup[jsontree.Object](metadata, "annotations")) == 0 {
		delete(metadata, "annotations")
	}
	if metadata != nil && len(metadata) == 0 {
		delete(jsontree.Lookup[jsontree.Object](rest, "spec", "template"), "metadata")
	}
	return rest
}
