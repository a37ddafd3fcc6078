package review

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/example/kubevirt-imds/injector/internal/jsontree"
	"github.com/example/kubevirt-imds/injector/internal/patchset"
)

// FuzzPatch holds for whatever patch file there is beside the declared ones: it
// is refused with a reason, or gives a set that can be applied. Nothing panics.
func FuzzPatch(f *testing.F) {
	var declared []string
	patch := func(spec string) string { return "apiVersion: v1\nkind: Pod\nspec:\n" + spec }
	for _, name := range []string{"sidecar/10-imds-init.yaml", "sidecar/20-imds-server.yaml", "components/node-agent/25-node-agent.yaml"} {
		text, err := os.ReadFile("../../../kustomize/" + name)
		if err != nil {
			f.Fatal(err)
		}
		declared = append(declared, string(text))
	}
	seeds := []string{
		patch("  $setElementOrder/initContainers:\n  - name: imds-server\n  initContainers:\n  - name: imds-server\n"),
		patch("  containers:\n  - name: compute\n    $patch: delete\n"),
		patch("  affinity: {$patch: replace, podAffinity: {}}\n  volumes:\n  - name: a\n    $retainKeys: [name, emptyDir]\n    emptyDir: {}\n"),
		"apiVersion: v1\nkind: Pod\nmetadata: {annotations: {a: null}, labels: }\n",
		"apiVersion: v1\nkind: Pod\nmetadata: {annotations: {'': a}, labels: {'': b}}\n",
		declared[0], declared[1], declared[2],
	}
	declared = declared[:2]
	for _, seed := range seeds {
		f.Add(seed, uint64(0))
		f.Add(seed, uint64(1))
	}
	f.Fuzz(func(t *testing.T, text string, seed uint64) {
		if seed != 0 {
			var mutated jsontree.Object
			if err := yaml.Unmarshal([]byte(text), &mutated); err != nil || mutated == nil {
				return
			}
			mutate(mutated, seed, "", "$patch", "delete", "replace", "merge", "$retainKeys",
				"$setElementOrder/initContainers", "$setElementOrder/volumes", "$deleteFromPrimitiveList/volumes",
				"name", "env", "containers", "initContainers", "volumes", "imds-init", "compute", "sysctls", "securityContext")
			encoded, err := json.Marshal(mutated)
			if err != nil {
				t.Fatal(err)
			}
			text = string(encoded)
		}
		dir := t.TempDir()
		for i, text := range slices.Concat(declared, []string{text}) {
			if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)+".yaml"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		set, err := patchset.Open(dir, "registry.example/server:v1")
		if err != nil {
			return
		}
		pod, err := jsontree.Parse([]byte(`{"spec": {"initContainers": [{"name": "a", "env": [{"name": "b"}]}], "volumes": [{"name": "c"}]}}`))
		if err != nil {
			t.Fatal(err)
		}
		outline, err := set.Outline(pod)
		if err != nil {
			t.Fatal(err)
		}
		// An error is as good as a pod here.
		_, _ = set.Apply(outline)
	})
}
