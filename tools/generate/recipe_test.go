package main

import (
	"io/fs"
	"os"
	"path"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/example/kubevirt-imds/injector/annotation"
)

// recipes are kustomizations of a user, next to a clone of the repository, as the
// README shows them.
const recipes = "testdata/recipes"

// cook renders a recipe and returns the installation and a VM's pod that it
// injects.
func cook(t *testing.T, recipe string) (rendered, *corev1.Pod) {
	t.Helper()
	folder := path.Join(recipes, recipe)
	if lines := codeLines(t, folder+"/kustomization.yaml"); lines > 10 {
		t.Errorf("the kustomization has %d lines, want at most 10", lines)
	}
	tree := loadTree(t)
	err := fs.WalkDir(os.DirFS(folder), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path.Join(folder, name))
		if err != nil {
			return err
		}
		return tree.Write(path.Join("../my-imds", name), content)
	})
	if err != nil {
		t.Fatal(err)
	}
	r := build(t, tree, "../my-imds")
	return r, runWebhook(t, r).inject(t, launcherPod(map[string]string{annotation.Enabled: "true"}))
}

func TestRecipeImage(t *testing.T) {
	r, pod := cook(t, "image")
	const server, webhook = "registry.example.com/imds/server:v1.2.3", "registry.example.com/imds/webhook:v1.2.3"
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
	_, pod := cook(t, "resources")
	got := serverIn(t, pod.Spec.InitContainers).Resources
	for name, list := range map[string]corev1.ResourceList{"requests": got.Requests, "limits": got.Limits} {
		if !list.Cpu().Equal(resource.MustParse("100m")) || !list.Memory().Equal(resource.MustParse("64Mi")) {
			t.Errorf("%s are %v", name, list)
		}
	}
}

func TestRecipeEnvironment(t *testing.T) {
	_, pod := cook(t, "environment")
	container := serverIn(t, pod.Spec.InitContainers)
	if want := (corev1.EnvVar{Name: "GOMEMLIMIT", Value: "24MiB"}); !slices.Contains(container.Env, want) {
		t.Errorf("the environment %v has no %v", container.Env, want)
	}
	if len(container.Env) < 5 {
		t.Errorf("the environment lost what was in it: %v", container.Env)
	}
}

func TestRecipeComponent(t *testing.T) {
	_, pod := cook(t, "component")
	if pod.Annotations[annotation.RequireHeader] != "true" {
		t.Errorf("annotations %v", pod.Annotations)
	}
}

func TestEveryRecipeIsTested(t *testing.T) {
	entries, err := os.ReadDir(recipes)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	if want := []string{"component", "environment", "image", "resources"}; !slices.Equal(names, want) {
		t.Errorf("recipes %v, tested are %v", names, want)
	}
}
