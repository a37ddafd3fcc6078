package review

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	"sigs.k8s.io/yaml"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
	"github.com/example/kubevirt-imds/injector/internal/patchset"
)

func reviewer(t testing.TB) *Reviewer {
	t.Helper()
	return reviewerWith(t, "../../../kustomize/sidecar")
}

func reviewerWith(t testing.TB, folder string) *Reviewer {
	t.Helper()
	patches, err := patchset.Open(folder, "registry.example/server:v1")
	if err != nil {
		t.Fatal(err)
	}
	return New(patches, "v1.0.0", slog.New(slog.DiscardHandler))
}

// agentReviewer has the patches of the component node-agent too.
func agentReviewer(t testing.TB) *Reviewer {
	t.Helper()
	folder := t.TempDir()
	for _, from := range []string{"../../../kustomize/sidecar", "../../../kustomize/components/node-agent"} {
		patches, err := filepath.Glob(from + "/[0-9]*.yaml")
		if err != nil || len(patches) == 0 {
			t.Fatalf("no patches in %s: %v", from, err)
		}
		for _, patch := range patches {
			text, err := os.ReadFile(patch)
			if err == nil {
				err = os.WriteFile(filepath.Join(folder, filepath.Base(patch)), text, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return reviewerWith(t, folder)
}

// seeds adds the cases of a kind: an object, what it replaces, and a seed, where 0
// is for no change.
func seeds(f *testing.F, kind string) {
	paths, err := filepath.Glob("../../testdata/" + kind + "/*")
	if err != nil || len(paths) == 0 {
		f.Fatalf("no fixtures to begin with: %v", err)
	}
	var base json.RawMessage
	read := func(path string) (fields struct{ Object, Old json.RawMessage }, whole []byte) {
		text, err := os.ReadFile(path)
		if err == nil && filepath.Ext(path) == ".yaml" {
			text, err = yaml.YAMLToJSON(text)
		}
		if err == nil {
			err = json.Unmarshal(text, &fields)
		}
		if err != nil {
			f.Fatal(err)
		}
		return fields, text
	}
	_, base = read("../../testdata/" + kind + "/base.yaml")
	for _, path := range paths {
		if strings.Contains(path, ".verdict.") {
			continue
		}
		fields, object := read(path)
		var old []byte
		for difference, into := range map[*json.RawMessage]*[]byte{&fields.Object: &object, &fields.Old: &old} {
			if *difference != nil {
				if *into, err = jsonpatch.MergePatch(base, *difference); err != nil {
					f.Fatal(err)
				}
			}
		}
		f.Add(object, old, uint64(0))
		f.Add(object, old, uint64(1))
	}
}

// known are the strings that a change may bring in.
var known = slices.Concat(annotation.All(), []string{annotation.Prefix + "other", annotation.VerdictPrefix + "other",
	"", "a/b~c", "name", "true", "false", "absent", "80", "443", "60080", "bridge", "redirect", "none", "future", "spec", "metadata", "template",
	"annotations", "managedFields", "operation", "Apply", "fieldsV1", "deletionTimestamp", "ownerReferences", "controller",
	"initContainers", "containers", "volumes", "securityContext", "sysctls", "hostNetwork", "resources", "requests", "limits", "cpu", "memory", "50m",
	"imds-init", "imds-server", "imds-token", "net.ipv4.ip_unprivileged_port_start",
	"domain", "devices", "interfaces", "autoattachPodInterface", "passtBinding", "binding", "passt", "sriov", "macvtap", "state",
	"ports", "port", "networks", "pod", "multus", "default"})

// mutated returns the objects as the API server would send them: it sends neither
// duplicate keys nor bytes that are no UTF-8.
func mutated(t *testing.T, text []byte, seed uint64) (object jsontree.Object, value jsontree.Value) {
	t.Helper()
	object = decode(text)
	if object == nil {
		return nil, nil
	}
	if seed != 0 {
		mutate(object, seed, known...)
	}
	encoded, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	if value, err = jsontree.Parse(encoded); err != nil {
		t.Fatal(err)
	}
	return value.Tree().(jsontree.Object), value
}

// checkReview holds for each review of each object: it does not panic; an object
// that is refused has a reason and no patch; a patched one is not patched again;
// and nothing is touched but what without leaves out.
func checkReview(t *testing.T, review Func, resource string, input, oldInput []byte, seed uint64, without func(t *testing.T, before, after jsontree.Object)) {
	t.Helper()
	before, value := mutated(t, input, seed)
	if before == nil {
		return
	}
	_, old := mutated(t, oldInput, ^seed)
	if seed == 0 {
		_, old = mutated(t, oldInput, 0)
	}
	request := &Request{Resource: resource, Operation: Create, Object: value, OldObject: old}
	if old != nil && resource != "pods" {
		request.Operation = Update
	}
	untouched := slices.Clone(value)
	verdict := review(request)
	if !slices.Equal(untouched, value) {
		t.Error("the review changed the request")
	}
	if !verdict.Allowed {
		if verdict.Patch != nil || verdict.Reason == "" {
			t.Errorf("refused with %+v", verdict)
		}
		return
	}
	if verdict.Patch == nil {
		return
	}
	after := patchedBy(t, before, verdict.Patch)
	encoded, err := json.Marshal(after)
	if err != nil {
		t.Fatal(err)
	}
	if request.Object, err = jsontree.Parse(encoded); err != nil {
		t.Fatal(err)
	}
	if again := review(request); !again.Allowed || again.Patch != nil {
		t.Errorf("patched a second time: %+v", again)
	}
	without(t, before, after)
	if difference := jsontree.Diff(before, after); difference != nil {
		t.Errorf("touched more than meant: %s", difference)
	}
}

// FuzzPod: nothing is touched but the sidecars, their volumes and sysctl, and our
// annotations, and what is not is as before in every digit; in both ways of wiring.
func FuzzPod(f *testing.F) {
	seeds(f, "pod")
	reviewers := []*Reviewer{reviewer(f), agentReviewer(f)}
	f.Fuzz(func(t *testing.T, input, old []byte, seed uint64) {
		for _, r := range reviewers {
			checkReview(t, r.Pod, "pods", input, old, seed, func(t *testing.T, before, after jsontree.Object) {
				if jsontree.Lookup[string](after, "metadata", "annotations", annotation.NotInjected) == "" &&
					!hasSidecars(before) {
					removeInjection(t, after, r.patches.WiredBy)
				}
				for _, pod := range []jsontree.Object{before, after} {
					clearPod(pod)
				}
			})
		}
	})
}

// FuzzVirtualMachine: nothing is touched but our annotations of the template.
func FuzzVirtualMachine(f *testing.F) {
	seeds(f, "virtualmachine")
	r := reviewer(f)
	f.Fuzz(func(t *testing.T, input, old []byte, seed uint64) {
		checkReview(t, r.VirtualMachine, "virtualmachines", input, old, seed, func(t *testing.T, before, after jsontree.Object) {
			for _, vm := range []jsontree.Object{before, after} {
				clearAnnotations(vm, annotation.ByUser(), "spec", "template", "metadata", "annotations")
			}
		})
	})
}

// FuzzInstance: nothing is touched but the verdict.
func FuzzInstance(f *testing.F) {
	seeds(f, "virtualmachineinstance")
	r := reviewer(f)
	f.Fuzz(func(t *testing.T, input, old []byte, seed uint64) {
		checkReview(t, r.Instance, "virtualmachineinstances", input, old, seed, func(t *testing.T, before, after jsontree.Object) {
			for _, vmi := range []jsontree.Object{before, after} {
				clearAnnotations(vmi, annotation.Verdict(), "metadata", "annotations")
			}
		})
	})
}

// clearAnnotations removes some annotations, and the objects around them that
// are left empty.
func clearAnnotations(object jsontree.Object, names []string, path ...string) {
	annotations := jsontree.Lookup[jsontree.Object](object, path...)
	for _, name := range names {
		delete(annotations, name)
	}
	for i := len(path) - 1; i >= 0; i-- {
		dropEmpty(jsontree.Lookup[jsontree.Object](object, path[:i]...), path[i])
	}
}

// removeInjection takes the sidecars and their volumes out of a patched pod,
// where they are last.
func removeInjection(t *testing.T, pod jsontree.Object, wiredBy string) {
	t.Helper()
	spec := jsontree.Lookup[jsontree.Object](pod, "spec")
	injected := map[string][]string{
		"initContainers": {patchset.InitContainer, patchset.ServerContainer},
		"volumes":        {patchset.TokenVolume},
	}
	if wiredBy == annotation.WiredByNodeAgent {
		injected = map[string][]string{
			"initContainers": {patchset.ServerContainer},
			"volumes":        {patchset.TokenVolume, patchset.NodeVolume},
		}
	}
	for list, names := range injected {
		var all []string
		for _, element := range jsontree.Lookup[[]any](pod, "spec", list) {
			all = append(all, jsontree.Name(element))
		}
		if len(all) < len(names) || !slices.Equal(all[len(all)-len(names):], names) {
			t.Fatalf("%s are %q", list, all)
		}
		spec[list] = spec[list].([]any)[:len(all)-len(names)]
	}
}

// clearPod removes from a pod what may differ before and after: our annotations,
// the sysctl, the sidecars' resources, and whether an empty list is missing, null
// or empty.
func clearPod(pod jsontree.Object) {
	clearAnnotations(pod, annotation.All(), "metadata", "annotations")
	spec := jsontree.Lookup[jsontree.Object](pod, "spec")
	for _, list := range []string{"initContainers", "containers"} {
		for _, element := range jsontree.Lookup[[]any](spec, list) {
			if patchset.IsSidecar(jsontree.Name(element)) {
				delete(element.(jsontree.Object), "resources")
			}
		}
	}
	securityContext := jsontree.Lookup[jsontree.Object](spec, "securityContext")
	if sysctls, ok := securityContext["sysctls"].([]any); ok {
		securityContext["sysctls"] = slices.DeleteFunc(sysctls, func(element any) bool {
			sysctl, _ := element.(jsontree.Object)
			return jsontree.Lookup[string](sysctl, "name") == "net.ipv4.ip_unprivileged_port_start"
		})
	}
	dropEmpty(securityContext, "sysctls")
	dropEmpty(spec, "securityContext")
	dropEmpty(spec, "initContainers")
	dropEmpty(spec, "volumes")
	dropEmpty(pod, "spec")
}

func dropEmpty(object jsontree.Object, key string) {
	value, found := object[key]
	switch value := value.(type) {
	case nil:
		if found {
			delete(object, key)
		}
	case []any:
		if len(value) == 0 {
			delete(object, key)
		}
	case jsontree.Object:
		if len(value) == 0 {
			delete(object, key)
		}
	}
}
