package kubelet

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/yaml"
)

// launcherID is the user and the group of virt-launcher, and the group of its
// volumes.
const launcherID = int64(107)

// LauncherPod returns a virt-launcher pod with the sidecars that the patches in a
// folder declare (kustomize/sidecar): what the webhook makes of a pod for which it
// has nothing to compute. The VM's own containers are left out.
func LauncherPod(patches, image string, meta metav1.ObjectMeta, account string) (*corev1.Pod, error) {
	id, nonRoot := launcherID, true
	pod := &corev1.Pod{ObjectMeta: meta, Spec: corev1.PodSpec{
		ServiceAccountName: account,
		SecurityContext:    &corev1.PodSecurityContext{RunAsUser: &id, RunAsGroup: &id, RunAsNonRoot: &nonRoot, FSGroup: &id},
	}}
	merged, err := json.Marshal(pod)
	if err != nil {
		return nil, err
	}
	files, err := Patches(patches)
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		patch, err := yaml.YAMLToJSON(file.Content)
		if err == nil {
			merged, err = strategicpatch.StrategicMergePatch(merged, patch, corev1.Pod{})
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file.Name, err)
		}
	}
	pod = &corev1.Pod{}
	if err := yaml.UnmarshalStrict(merged, pod); err != nil {
		return nil, err
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

// Patches reads the patches in a folder, in the order in which they are applied.
func Patches(folder string) ([]Patch, error) {
	paths, err := filepath.Glob(filepath.Join(folder, "*.yaml")) // sorted
	if err != nil {
		return nil, err
	}
	var patches []Patch
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
	if patches == nil {
		return nil, fmt.Errorf("no patch in %s", folder)
	}
	return patches, nil
}
