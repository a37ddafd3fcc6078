package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"github.com/google/go-cmp/cmp"
)

// callFunction runs the KRM function; it must exit with status.
func callFunction(t *testing.T, status int, input string) (stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	if got := run([]string{"krm-function"}, strings.NewReader(input), &out, &errs); got != status {
		t.Fatalf("status %d, want %d\n%s%s", got, status, &out, &errs)
	}
	return out.String(), errs.String()
}

func TestFunctionRefusesAWrongConfig(t *testing.T) {
	for name, test := range map[string]struct{ config, says string }{
		"not a ConfigMap":     {"{kind: Setters, data: {namespace: a}}", `"Setters"`},
		"not a namespace":     {"{kind: ConfigMap, data: {namespace: A_b}}", `"A_b"`},
		"not a policy":        {"{kind: ConfigMap, data: {failure-policy: Maybe}}", `use Fail or Ignore`},
		"not a ResourceList":  {"", "ResourceList"},
		"an empty policy too": {"{kind: ConfigMap, data: {failure-policy: ''}}", `use Fail or Ignore`},
	} {
		t.Run(name, func(t *testing.T) {
			input := "apiVersion: config.kubernetes.io/v1\nkind: ResourceList\nitems: []\nfunctionConfig: " + test.config + "\n"
			if test.config == "" {
				input = "{"
			}
			if _, stderr := callFunction(t, 1, input); !strings.Contains(stderr, test.says) {
				t.Errorf("error %q does not say %s", stderr, test.says)
			}
		})
	}
}

// kustomizeBuild builds a folder on disk as kustomize build --enable-alpha-plugins
// --enable-exec does.
func kustomizeBuild(t *testing.T, folder string) rendered {
	t.Helper()
	options := krusty.MakeDefaultOptions()
	options.Reorder = krusty.ReorderOptionLegacy
	options.PluginConfig = types.EnabledPluginConfig(types.BploUseStaticallyLinked)
	options.PluginConfig.FnpLoadingOptions.EnableExec = true
	resources, err := krusty.MakeKustomizer(options).Run(filesys.MakeFsOnDisk(), folder)
	if err != nil {
		t.Fatal(err)
	}
	content, err := resources.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	return decode(t, content)
}

// withFunction is a copy of the repository with a kustomization beside it that
// has the generator in it, as a plugin of the given kind.
func withFunction(t *testing.T, plugin, data, kustomization string) string {
	t.Helper()
	root := copyOfRepository(t)
	folder := filepath.Join(root, "installation")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(binary(t, "tools/generate"))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"kustomization.yaml": kustomization + plugin + ": [imds.yaml]\n",
		"imds.yaml": `apiVersion: v1
kind: ConfigMap
metadata:
  name: imds
  annotations:
    config.kubernetes.io/function: |
      exec:
        path: ./generate
        args: [krm-function]
data: ` + data + "\n",
		"generate": string(program),
	} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

func TestKustomizeGeneratesByTheFunction(t *testing.T) {
	got := kustomizeBuild(t, withFunction(t, "generators", "{namespace: infra, failure-policy: Ignore}", ""))
	if len(got.all) != 2 {
		t.Errorf("%d resources, want the configuration and the ConfigMap", len(got.all))
	}
	base := build(t, loadTree(t), "kustomize/base")
	if diff := cmp.Diff(base.patches.Data, got.patches.Data); diff != "" {
		t.Errorf("patches (-base +generated):\n%s", diff)
	}
	if !strings.HasPrefix(got.patches.Name, "imds-sidecar-") || got.patches.Namespace != "infra" {
		t.Errorf("the ConfigMap is %s in %s, want a hash in its name", got.patches.Name, got.patches.Namespace)
	}
	for i, webhook := range got.configuration.Webhooks {
		want := base.configuration.Webhooks[i]
		*want.FailurePolicy, want.ClientConfig.Service.Namespace = "Ignore", "infra"
		if diff := cmp.Diff(want, webhook); diff != "" {
			t.Errorf("%s (-base +generated):\n%s", webhook.Name, diff)
		}
	}
}

func TestKustomizeUpdatesByTheFunction(t *testing.T) {
	folder := withFunction(t, "transformers", "{failure-policy: Ignore}", "resources: [../overlays/manual]\n")
	writeStandIns(t, filepath.Dir(folder))
	// Older manifests, with a patch and a label of the user's.
	root := filepath.Dir(folder)
	replaceIn(t, filepath.Join(root, "kustomize/base/mutatingwebhookconfiguration.yaml"), "timeoutSeconds: 5", "timeoutSeconds: 3")
	replaceIn(t, filepath.Join(root, "kustomize/sidecar/10-imds-init.yaml"), "restartPolicy: Always", "")
	got := kustomizeBuild(t, folder)

	want := build(t, loadTree(t), "overlays/manual")
	for i := range want.configuration.Webhooks {
		*want.configuration.Webhooks[i].FailurePolicy = "Ignore"
	}
	// The hash is taken of the updated patches: names are equal too.
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(rendered{}, agent{})); diff != "" {
		t.Errorf("(-overlay with Ignore +updated):\n%s", diff)
	}
}
