package main

import (
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"

	"github.com/google/go-cmp/cmp"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/tools/generate/internal/contract"
	"github.com/example/kubevirt-imds/tools/generate/internal/render"
)

// The recipes are the blocks of YAML in this page: kustomizations of a user, next to a
// clone of the repository, the files that they name, and what is applied beside them.
const recipePage = "kustomize/README.md"

// recipes are all of them, by what each alone has in it.
var recipes = []string{
	"newName: mirror.example.com/imds/webhook",
	"files: [50-resources.yaml]",
	"# 50-resources.yaml: ",
	"# 50-environment.yaml: ",
	"components/require-header",
	"name: imds-audiences}",
	"overlays/cert-manager\ncomponents:\n- ../kubevirt-imds/kustomize/components/node-agent",
	"- ../my-imds # with",
	"cert-manager\nnamespace: platform-imds",
	"files: [50-pull-secret.yaml]",
	"# 50-pull-secret.yaml: ",
	"ignoreDifferences:",
	"# imds-check.yaml: ",
}

// blocks are the blocks of YAML in the page.
func blocks(t *testing.T) []string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(repository, recipePage))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, match := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(content, -1) {
		found = append(found, string(match[1]))
	}
	return found
}

// recipe is the page's block that has mark in it.
func recipe(t *testing.T, mark string) string {
	t.Helper()
	var found []string
	for _, block := range blocks(t) {
		if strings.Contains(block, mark) {
			found = append(found, block)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d blocks of YAML in %s have %q, want 1", len(found), recipePage, mark)
	}
	return found[0]
}

func TestEveryRecipeIsTested(t *testing.T) {
	if found := blocks(t); len(found) != len(recipes) {
		t.Errorf("%d blocks of YAML in %s, %d are tested", len(found), recipePage, len(recipes))
	}
	for _, mark := range recipes {
		recipe(t, mark)
	}
}

// mine is where a user's kustomization is.
const mine = "../my-imds"

// renderMine renders a user's kustomization with the files that it names.
func renderMine(t *testing.T, kustomization string, files map[string]string) []byte {
	t.Helper()
	tree := loadTree(t)
	for name, content := range files {
		if err := tree.Write(mine+"/"+name, []byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tree.Write(mine+"/kustomization.yaml", []byte(kustomization)); err != nil {
		t.Fatal(err)
	}
	content, err := tree.Build(mine)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// cook renders a recipe and returns the installation and a VM's pod that it
// injects.
func cook(t *testing.T, kustomization string, files map[string]string) (rendered, *corev1.Pod) {
	t.Helper()
	if lines := strings.Count(kustomization, "\n"); lines > 12 {
		t.Errorf("the kustomization has %d lines, want at most 12", lines)
	}
	r := decode(t, renderMine(t, kustomization, files))
	return r, runWebhook(t, r).inject(t, launcherPod(map[string]string{annotation.Enabled: "true"}))
}

func TestRecipeImage(t *testing.T) {
	r, pod := cook(t, recipe(t, "newName: mirror.example.com/imds/webhook"), nil)
	const server, webhook = "mirror.example.com/imds/server:v1.2.3", "mirror.example.com/imds/webhook:v1.2.3"
	own := r.deployment.Spec.Template.Spec
	if own.Containers[0].Image != webhook || own.InitContainers[0].Image != server {
		t.Errorf("images %s and %s", own.Containers[0].Image, own.InitContainers[0].Image)
	}
	for _, container := range pod.Spec.InitContainers {
		if container.Image != server {
			t.Errorf("the image of %s is %s", container.Name, container.Image)
		}
	}
}

func TestRecipeResources(t *testing.T) {
	_, pod := cook(t, recipe(t, "files: [50-resources.yaml]"), map[string]string{"50-resources.yaml": recipe(t, "# 50-resources.yaml: ")})
	got := serverIn(t, pod.Spec.InitContainers).Resources
	for name, list := range map[string]corev1.ResourceList{"requests": got.Requests, "limits": got.Limits} {
		if !list.Cpu().Equal(resource.MustParse("100m")) || !list.Memory().Equal(resource.MustParse("64Mi")) {
			t.Errorf("%s are %v", name, list)
		}
	}
}

func TestRecipeEnvironment(t *testing.T) {
	kustomization := strings.Replace(recipe(t, "files: [50-resources.yaml]"), "50-resources", "50-environment", 1)
	_, pod := cook(t, kustomization, map[string]string{"50-environment.yaml": recipe(t, "# 50-environment.yaml: ")})
	container := serverIn(t, pod.Spec.InitContainers)
	if want := (corev1.EnvVar{Name: "GOMEMLIMIT", Value: "24MiB"}); !slices.Contains(container.Env, want) {
		t.Errorf("the environment %v has no %v", container.Env, want)
	}
	if len(container.Env) < 5 {
		t.Errorf("the environment lost what was in it: %v", container.Env)
	}
}

func TestRecipeComponent(t *testing.T) {
	_, pod := cook(t, recipe(t, "components/require-header"), nil)
	if pod.Annotations[annotation.RequireHeader] != "true" {
		t.Errorf("annotations %v", pod.Annotations)
	}
}

// TestRecipePullSecret: whoever pulls the sidecars' image has the Secret, and a VM's pod
// keeps its own.
func TestRecipePullSecret(t *testing.T) {
	kustomization := recipe(t, "files: [50-pull-secret.yaml]")
	files := map[string]string{"50-pull-secret.yaml": recipe(t, "# 50-pull-secret.yaml: ")}
	r, _ := cook(t, kustomization, files)
	added := corev1.LocalObjectReference{Name: "imds-registry"}
	if diff := cmp.Diff([]corev1.LocalObjectReference{added}, r.account.ImagePullSecrets); diff != "" {
		t.Errorf("the webhook's ServiceAccount (-want +got):\n%s", diff)
	}
	own := corev1.LocalObjectReference{Name: "disk"}
	pod := launcherPod(map[string]string{annotation.Enabled: "true"})
	pod.Spec.ImagePullSecrets = []corev1.LocalObjectReference{own}
	got := runWebhook(t, r).inject(t, pod).Spec.ImagePullSecrets
	if len(got) != 2 || !slices.Contains(got, own) || !slices.Contains(got, added) {
		t.Errorf("a VM's pod has the pull secrets %v", got)
	}
	kustomization += "components: [../kubevirt-imds/kustomize/components/node-agent]\n"
	if r := decode(t, renderMine(t, kustomization, files)); !slices.Contains(r.agent.account.ImagePullSecrets, added) {
		t.Errorf("the agent's ServiceAccount has the pull secrets %v", r.agent.account.ImagePullSecrets)
	}
}

func TestRecipeArgoCD(t *testing.T) {
	var application struct {
		IgnoreDifferences []struct {
			Group, Kind, Name string
			JQPathExpressions []string
		}
		SyncPolicy struct{ SyncOptions []string }
	}
	if err := yaml.UnmarshalStrict([]byte(recipe(t, "ignoreDifferences:")), &application); err != nil {
		t.Fatal(err)
	}
	ignored := application.IgnoreDifferences[0]
	configuration := buildWith(t, "cert-manager").configuration
	if group, _, _ := strings.Cut(configuration.APIVersion, "/"); ignored.Group != group || ignored.Kind != configuration.Kind || ignored.Name != configuration.Name {
		t.Errorf("%+v is not %s %s of %s", ignored, configuration.Kind, configuration.Name, group)
	}
}

// TestPageNamesClusterWideKinds: an AppProject that lacks one refuses the whole sync.
func TestPageNamesClusterWideKinds(t *testing.T) {
	_, paragraph, _ := strings.Cut(readFile(t, recipePage), "Its AppProject has to allow")
	paragraph, _, _ = strings.Cut(paragraph, "\n\n")
	for _, components := range [][]string{
		{"self-signed", "policy"},
		{"cert-manager", "metrics", "policy", "openshift-webhook"},
		{"cert-manager", "node-agent", "openshift", "node-agent-metrics"},
	} {
		for _, object := range buildWith(t, components...).all {
			if object.Namespace == "" && !regexp.MustCompile(`\b`+object.Kind+`\b`).MatchString(paragraph) {
				t.Errorf("%s %s of %v is not in%s", object.Kind, object.Name, components, paragraph)
			}
		}
	}
}

// TestRecipeCheck: the check of a node has the rights of imds-init, and no others.
func TestRecipeCheck(t *testing.T) {
	var pod corev1.Pod
	if err := yaml.UnmarshalStrict([]byte(recipe(t, "# imds-check.yaml: ")), &pod); err != nil {
		t.Fatal(err)
	}
	containers := injectWith(t, nil, "cert-manager").Spec.InitContainers
	init := containers[slices.IndexFunc(containers, func(c corev1.Container) bool { return c.Name == contract.Init.Name })]
	if diff := cmp.Diff(init.SecurityContext, pod.Spec.Containers[0].SecurityContext); diff != "" {
		t.Errorf("(-imds-init +check):\n%s", diff)
	}
	if got, want := pod.Spec.Containers[0].Command, append(init.Command, "check"); !slices.Equal(got, want) {
		t.Errorf("it runs %v, want %v", got, want)
	}
}

func TestRecipeNodeAgent(t *testing.T) {
	kustomization := recipe(t, "overlays/cert-manager\ncomponents:\n- ../kubevirt-imds/kustomize/components/node-agent")
	r, pod := cook(t, kustomization, nil)
	if r.agent.daemonSet == nil || pod.Annotations[annotation.WiredBy] != annotation.WiredByNodeAgent {
		t.Errorf("agent %v, annotations %v", r.agent.daemonSet, pod.Annotations)
	}
}

// TestRecipeNodeAgentBesideAnotherNamespace: the webhook's part is in the other one, the
// agent's in its own.
func TestRecipeNodeAgentBesideAnotherNamespace(t *testing.T) {
	moved, above := recipe(t, "cert-manager\nnamespace: platform-imds"), recipe(t, "- ../my-imds # with")
	tree := loadTree(t)
	for folder, kustomization := range map[string]string{mine: moved, mine + "-nodes": above} {
		if err := tree.Write(folder+"/kustomization.yaml", []byte(kustomization)); err != nil {
			t.Fatal(err)
		}
	}
	r := build(t, tree, mine+"-nodes")
	for _, object := range r.all {
		want := map[bool]string{true: contract.NodeNamespace, false: "platform-imds"}[object.Labels["app.kubernetes.io/name"] == contract.NodeAgent]
		if object.Namespace != "" && object.Namespace != want {
			t.Errorf("%s %s is in %s, want %s", object.Kind, object.Name, object.Namespace, want)
		}
	}
	if image := r.agent.daemonSet.Spec.Template.Spec.Containers[0].Image; image != "mirror.example.com/imds/server:v1.2.3" {
		t.Errorf("the agent's image is %s", image)
	}
	if r.namespace.Name != "platform-imds" || r.agent.namespace.Name != contract.NodeNamespace {
		t.Errorf("namespaces %s and %s", r.namespace.Name, r.agent.namespace.Name)
	}
	if pod := runWebhook(t, r).inject(t, launcherPod(map[string]string{annotation.Enabled: "true"})); pod.Annotations[annotation.WiredBy] != annotation.WiredByNodeAgent {
		t.Errorf("annotations %v", pod.Annotations)
	}

	// In one kustomization both namespaces would get the one name.
	if err := tree.Write(mine+"/kustomization.yaml", []byte(moved+"components: [../kubevirt-imds/kustomize/components/node-agent]\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := tree.Build(mine); err == nil || !strings.Contains(err.Error(), "ID conflict") {
		t.Errorf("in one kustomization: %v", err)
	}
}

// TestRecipeNamespace compares with the same overlay in its usual namespace: where
// that names it, the other one must be named, and nothing else may differ.
func TestRecipeNamespace(t *testing.T) {
	kustomization := recipe(t, "cert-manager\nnamespace: platform-imds")
	// Other recipes beside it.
	more := kustomization + `components:
- ../kubevirt-imds/kustomize/components/require-header
configMapGenerator:
- name: imds-sidecar
  namespace: kubevirt-imds
  behavior: merge
  files: [50-resources.yaml]
`
	files := map[string]string{"50-resources.yaml": recipe(t, "# 50-resources.yaml: ")}
	// The name, but neither the label of the project nor the images.
	name := regexp.MustCompile(`(part-of: )?\bkubevirt-imds\b(-\w+)?`)
	recipe := regexp.MustCompile(`(?m)^(namespace: platform-imds|transformers:.*|- .*/kustomize/namespace)\n`)
	for _, overlay := range render.Overlays {
		t.Run(overlay, func(t *testing.T) {
			for _, k := range []string{kustomization, more} {
				k = strings.Replace(k, "overlays/cert-manager", overlay, 1)
				usual := recipe.ReplaceAllString(k, "")
				want := name.ReplaceAllStringFunc(string(renderMine(t, usual, files)), func(found string) string {
					if found == contract.Namespace {
						return "platform-imds"
					}
					return found
				})
				got := renderMine(t, k, files)
				if diff := cmp.Diff(want, string(got)); diff != "" {
					t.Errorf("(-moved by hand +by the recipe):\n%s", diff)
				}
			}
			if overlay == "overlays/kind" {
				return // its certificate is the webhook's own
			}
			r, _ := cook(t, strings.Replace(kustomization, "overlays/cert-manager", overlay, 1), files)
			names := []string{"imds-webhook.platform-imds.svc"} // for just certs
			if overlay == "overlays/cert-manager" {
				names = certificateNames(r, contract.Webhook)
			}
			if status, body := readiness(t, r, names); status != http.StatusOK {
				t.Errorf("/readyz: %d %s", status, body)
			}
		})
	}
}
