package pod

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/example/kubevirt-imds/injector/internal/admission"
	"github.com/example/kubevirt-imds/injector/internal/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsonfuzz"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
	"github.com/example/kubevirt-imds/injector/internal/patchset"
)

func declaredPatches(t testing.TB) *patchset.Folder {
	t.Helper()
	folder, err := patchset.Open("../../../kustomize/sidecar", "registry.example/server:v1", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return folder
}

// FuzzPod holds for whatever pod there is: the review does not panic; what the
// webhook did not mean to touch is as before, in every digit; and a patched pod
// is not patched again.
func FuzzPod(f *testing.F) {
	seeds, err := filepath.Glob("../../testdata/pod/*.pod.*")
	if err != nil || len(seeds) == 0 {
		f.Fatalf("no fixtures to begin with: %v", err)
	}
	for _, path := range seeds {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		if filepath.Ext(path) == ".yaml" {
			if text, err = yaml.YAMLToJSON(text); err != nil {
				f.Fatal(err)
			}
		}
		f.Add(text, uint64(0))
		f.Add(text, uint64(1))
	}
	injector := NewInjector(declaredPatches(f), slog.New(slog.DiscardHandler))
	review := func(pod jsontree.Object) (admission.Verdict, error) {
		return injector.Review(&admission.Request{
			Resource:  admission.Resource{Version: "v1", Resource: "pods"},
			Operation: admission.Create,
			Object:    pod,
		})
	}
	f.Fuzz(func(t *testing.T, input []byte, seed uint64) {
		pod, err := jsonfuzz.Decode(input)
		if err != nil || pod == nil {
			return
		}
		if seed != 0 {
			jsonfuzz.Mutate(pod, seed, "", "a/b~c", "name", "true", "false", "80", "443", "future",
				"spec", "metadata", "annotations", "initContainers", "containers", "volumes", "securityContext", "sysctls",
				"hostNetwork", "ownerReferences", "controller", "imds-init", "imds-server", "imds-token",
				annotation.Enabled, annotation.Injected, annotation.VMName, annotation.TokenAudiences,
				annotation.TokenExpirationSeconds, annotation.Prefix+"other", "net.ipv4.ip_unprivileged_port_start")
		}
		// Through the encoder once: the API server sends neither duplicate keys
		// nor bytes that are no UTF-8.
		text, err := json.Marshal(pod)
		if err != nil {
			t.Fatal(err)
		}
		if pod, err = jsonfuzz.Decode(text); err != nil {
			t.Fatal(err)
		}
		verdict, err := review(pod)
		if err != nil || !verdict.Allowed {
			if verdict.Patch != nil {
				t.Error("a refused pod has a patch")
			}
			return
		}
		if untouched, err := jsonfuzz.Decode(text); err != nil || !reflect.DeepEqual(pod, untouched) {
			t.Errorf("the review changed the request: %v", err)
		}
		if verdict.Patch == nil {
			return
		}

		after := jsonfuzz.Patched(t, pod, verdict.Patch)
		if again, err := review(after); err != nil || !again.Allowed || again.Patch != nil {
			t.Errorf("patched a second time: %v %+v", err, again)
		}
		removeInjection(t, after)
		clearSlots(pod)
		clearSlots(after)
		if difference := jsontree.Diff(pod, after); difference != nil {
			t.Errorf("touched more than meant: %+v", difference)
		}
	})
}

// removeInjection takes the sidecars and their volume out of a patched pod,
// where they are last.
func removeInjection(t *testing.T, pod jsontree.Object) {
	t.Helper()
	spec := jsontree.LookupObject(pod, "spec")
	for list, names := range map[string][]string{
		"initContainers": {patchset.InitContainer, patchset.ServerContainer},
		"volumes":        {patchset.TokenVolume},
	} {
		all, err := patchset.Names(pod, list)
		if err != nil || len(all) < len(names) || !slices.Equal(all[len(all)-len(names):], names) {
			t.Fatalf("%s are %q, %v", list, all, err)
		}
		spec[list] = spec[list].([]any)[:len(all)-len(names)]
	}
}

// clearSlots removes from a pod what may differ before and after: the webhook's
// annotations, the sysctl, and whether an empty list is missing, null or empty.
func clearSlots(pod jsontree.Object) {
	annotations := jsontree.LookupObject(pod, "metadata", "annotations")
	for _, name := range []string{annotation.Injected, annotation.VMName, annotation.VMIUID} {
		delete(annotations, name)
	}
	spec := jsontree.LookupObject(pod, "spec")
	securityContext := jsontree.LookupObject(spec, "securityContext")
	if sysctls, ok := securityContext["sysctls"].([]any); ok {
		securityContext["sysctls"] = slices.DeleteFunc(sysctls, func(element any) bool {
			sysctl, _ := element.(jsontree.Object)
			return jsontree.LookupString(sysctl, "name") == "net.ipv4.ip_unprivileged_port_start"
		})
	}
	dropEmpty(securityContext, "sysctls")
	dropEmpty(spec, "securityContext")
	dropEmpty(spec, "initContainers")
	dropEmpty(spec, "volumes")
	dropEmpty(pod, "spec")
}

func dropEmpty(object jsontree.Object, key string) {
	switch value := object[key].(type) {
	case nil:
		delete(object, key)
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
