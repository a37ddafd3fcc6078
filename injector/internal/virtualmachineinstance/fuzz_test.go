package virtualmachineinstance

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/example/kubevirt-imds/injector/internal/admission"
	"github.com/example/kubevirt-imds/injector/internal/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsonfuzz"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// FuzzVirtualMachineInstance holds for whatever instance there is: the review
// does not panic; nothing but the annotation of the redirection changes, and what
// it is then would be taken from a pod; and a patched instance is not patched
// again.
func FuzzVirtualMachineInstance(f *testing.F) {
	seeds, err := filepath.Glob("../../testdata/virtualmachineinstance/*.vmi.yaml")
	if err != nil || len(seeds) == 0 {
		f.Fatalf("no fixtures to begin with: %v", err)
	}
	for _, path := range seeds {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		if text, err = yaml.YAMLToJSON(text); err != nil {
			f.Fatal(err)
		}
		f.Add(text, uint64(0))
		f.Add(text, uint64(1))
	}
	reviewer := NewReviewer(slog.New(slog.DiscardHandler))
	review := func(vmi jsontree.Object) (admission.Verdict, error) {
		return reviewer.Review(&admission.Request{
			Resource:  admission.Resource{Group: "kubevirt.io", Version: "v1", Resource: "virtualmachineinstances"},
			Operation: admission.Create,
			Object:    vmi,
		})
	}
	f.Fuzz(func(t *testing.T, input []byte, seed uint64) {
		vmi, err := jsonfuzz.Decode(input)
		if err != nil || vmi == nil {
			return
		}
		if seed != 0 {
			jsonfuzz.Mutate(vmi, seed, "", "a/b~c", "true", "false", "60080", "metadata", "annotations", "spec", "domain",
				"devices", "interfaces", "autoattachPodInterface", "passtBinding", "binding", "name", "passt", "sriov",
				"ports", "port", "networks", "pod", "multus", "default",
				annotation.Enabled, annotation.HopLimit, annotation.RedirectPort, annotation.Prefix+"other")
		}
		verdict, err := review(vmi)
		if err != nil {
			t.Fatal(err)
		}
		if !verdict.Allowed && (verdict.Patch != nil || verdict.Reason == "") {
			t.Errorf("refused with %+v", verdict)
		}
		if verdict.Patch == nil {
			return
		}
		after := jsonfuzz.Patched(t, vmi, verdict.Patch)
		if again, err := review(after); err != nil || !again.Allowed || again.Patch != nil {
			t.Errorf("patched a second time: %+v, %v", again, err)
		}
		annotations := jsontree.LookupObject(after, "metadata", "annotations")
		if problem := annotation.RedirectPortProblem(annotations); problem != "" {
			t.Errorf("a pod of it would be refused: %s", problem)
		}
		delete(annotations, annotation.RedirectPort)
		delete(jsontree.LookupObject(vmi, "metadata", "annotations"), annotation.RedirectPort)
		if difference := jsontree.Diff(vmi, after); difference != nil {
			t.Errorf("touched more than meant: %+v", difference)
		}
	})
}
