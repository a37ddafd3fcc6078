package kubelet

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/yaml"
)

// launcherID is the user and the group of virt-launcher, and the group of its
// volumes.
const launcherID = int64(107)

// LauncherPod returns a virt-launcher pod with the sidecars that patches declare, by
// their folders (kustomize/sidecar) or files: what the webhook makes of a pod for which
// it has nothing to compute. The VM's own containers are left out.
func LauncherPod(image string, meta metav1.ObjectMeta, account string, patches ...string) (*corev1.Pod, error) {
	id, nonRoot := launcherID, true
	pod := &corev1.Pod{ObjectMeta: meta, Spec: corev1.PodSpec{
		ServiceAccountName: account,
		SecurityContext:    &corev1.PodSecurityContext{RunAsUser: &id, RunAsGroup: &id, RunAsNonRoot: &nonRoot, FSGroup: &id},
	}}
	files, err := Patches(patches...)
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		if pod, err = file.apply(pod); err != nil {
			return nil, fmt.Errorf("%s: %w", file.Name, err)
		}
	}
	pod.ObjectMeta = meta // a patch's name is any
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; c.Image == "" {
			c.Image = image
		}
	}
	return pod, nil
}

// Patch is a file of the ConfigMap imds-sidecar.
type Patch struct {
	Name    string
	Content []byte
}

// apply returns the pod with the patch. As the webhook does it, new containers are
// behind those that are there.
func (p Patch) apply(pod *corev1.Pod) (*corev1.Pod, error) {
	before, err := json.Marshal(pod)
	if err != nil {
		return nil, err
	}
	patch, err := yaml.YAMLToJSON(p.Content)
	if err != nil {
		return nil, err
	}
	after, err := strategicpatch.StrategicMergePatch(before, patch, corev1.Pod{})
	if err != nil {
		return nil, err
	}
	patched := &corev1.Pod{}
	if err := yaml.UnmarshalStrict(after, patched); err != nil {
		return nil, err
	}
	isNew := func(c corev1.Container) int {
		if slices.ContainsFunc(pod.Spec.InitContainers, func(old corev1.Container) bool { return old.Name == c.Name }) {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(patched.Spec.InitContainers, func(a, b corev1.Container) int { return isNew(a) - isNew(b) })
	return patched, nil
}

// Patches reads the patches in folders, in the order in which they are applied, and
// those in files.
func Patches(places ...string) ([]Patch, error) {
	var patches []Patch
	for _, place := range places {
		paths := []string{place}
		if filepath.Ext(place) == "" {
			var err error
			if paths, err = filepath.Glob(filepath.Join(place, "*.yaml")); err != nil { // sorted
				return nil, err
			}
		}
		for _, path := range paths {
			if filepath.Base(path) == "kustomization.yaml" {
				continue
			}
			content, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			patches = append(patches, Patch{filepath.Base(path), content})
		}
	}
	if patches == nil {
		return nil, fmt.Errorf("no patch in %s", places)
	}
	return patches, nil
}

// DaemonSetPod returns a pod of the DaemonSet that a manifest declares.
func DaemonSetPod(manifest string) (*corev1.Pod, error) {
	content, err := os.ReadFile(manifest)
	if err != nil {
		return nil, err
	}
	var set appsv1.DaemonSet
	if err := yaml.UnmarshalStrict(content, &set); err != nil {
		return nil, fmt.Errorf("%s: %w", manifest, err)
	}
	pod := &corev1.Pod{ObjectMeta: set.Spec.Template.ObjectMeta, Spec: set.Spec.Template.Spec}
	pod.Name, pod.Namespace = set.Name, set.Namespace
	return pod, nil
}
