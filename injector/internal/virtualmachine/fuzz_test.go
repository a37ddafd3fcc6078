package virtualmachine

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/example/kubevirt-imds/injector/internal/admission"
	"github.com/example/kubevirt-imds/injector/internal/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsonfuzz"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// FuzzVirtualMachine holds for whatever VirtualMachine there is: the review
// does not panic; nothing but imds.kubevirt.io/ annotations of the template
// changes; and a patched VM is not patched again.
func FuzzVirtualMachine(f *testing.F) {
	seeds, err := filepath.Glob("../../testdata/virtualmachine/*.vm.yaml")
	if err != nil || len(seeds) == 0 {
		f.Fatalf("no fixtures to begin with: %v", err)
	}
	read := func(path string) []byte {
		text, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil {
			f.Fatal(err)
		}
		if text, err = yaml.YAMLToJSON(text); err != nil {
			f.Fatal(err)
		}
		return text
	}
	for _, path := range seeds {
		old := read(strings.Replace(path, ".vm.", ".old.", 1))
		f.Add(read(path), old, uint64(0))
		f.Add(read(path), old, uint64(1))
	}
	reviewer := NewReviewer(slog.New(slog.DiscardHandler))
	review := func(t *testing.T, vm, old jsontree.Object) admission.Verdict {
		t.Helper()
		operation := admission.Create
		if old != nil {
			operation = admission.Update
		}
		verdict, err := reviewer.Review(&admission.Request{
			Resource:  admission.Resource{Group: "kubevirt.io", Version: "v1", Resource: "virtualmachines"},
			Operation: operation,
			Object:    vm,
			OldObject: old,
		})
		if err != nil {
			t.Fatal(err)
		}
		return verdict
	}
	f.Fuzz(func(t *testing.T, input, oldInput []byte, seed uint64) {
		vm, err := jsonfuzz.Decode(input)
		if err != nil || vm == nil {
			return
		}
		old, _ := jsonfuzz.Decode(oldInput)
		if seed != 0 {
			known := []string{"", "a/b~c", "true", "false", "1", "spec", "template", "metadata", "annotations",
				"deletionTimestamp", "domain", "devices", "interfaces", "passt", "passtBinding", "binding", "name",
				annotation.Enabled, annotation.HopLimit, annotation.VMName, annotation.RedirectPort, "networks", "pod", "sriov", annotation.Prefix + "other"}
			jsonfuzz.Mutate(vm, seed, known...)
			if old != nil {
				jsonfuzz.Mutate(old, ^seed, known...)
			}
		}
		verdict := review(t, vm, old)
		if !verdict.Allowed && (verdict.Patch != nil || verdict.Reason == "") {
			t.Errorf("refused with %+v", verdict)
		}
		if verdict.Patch == nil {
			return
		}
		after := jsonfuzz.Patched(t, vm, verdict.Patch)
		if again := review(t, after, old); !again.Allowed || again.Patch != nil {
			t.Errorf("patched a second time: %+v", again)
		}
		for _, operation := range verdict.Patch {
			if !isAboutTemplateAnnotations(operation) {
				t.Errorf("touched more than meant: %+v", operation)
			}
		}
	})
}

// isAboutTemplateAnnotations reports whether an operation sets or removes one
// of our annotations, or makes the objects around them.
func isAboutTemplateAnnotations(operation jsontree.Operation) bool {
	const annotations = "/spec/template/metadata/annotations"
	if strings.HasPrefix(operation.Path, annotations+"/imds.kubevirt.io~1") {
		return true
	}
	// An object that was missing holds nothing but the way to our annotations.
	rest, found := strings.CutPrefix(annotations, operation.Path)
	if !found || operation.Value == nil {
		return false
	}
	value, ok := (*operation.Value).(jsontree.Object)
	if !ok {
		return false
	}
	for _, key := range strings.FieldsFunc(rest, func(r rune) bool { return r == '/' }) {
		if len(value) != 1 {
			return false
		}
		if value, ok = value[key].(jsontree.Object); !ok {
			return false
		}
	}
	return len(value) == len(annotation.Select(value))
}
