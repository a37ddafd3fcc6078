package checks

import (
	"context"
	"os"
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
)

// Names of what the webhook adds to a VM's pod.
const (
	initContainer   = "imds-init"
	serverContainer = "imds-server"
	tokenVolume     = "imds-token"
	portSysctl      = "net.ipv4.ip_unprivileged_port_start"

	prefix             = "imds.kubevirt.io/"
	enabledAnnotation  = prefix + "enabled"
	injectedAnnotation = prefix + "injected"
)

// launcherFolder has pods as KubeVirt renders them: the webhook's own unit tests begin with the same.
func (s *site) launcherFolder() string {
	return filepath.Join(s.repository, "injector", "testdata", "pod")
}

// launcherPod reads the virt-launcher pod of a case.
func launcherPod(t *suite.T, s *site, name string) *corev1.Pod {
	pod, err := readPod(filepath.Join(s.launcherFolder(), name+".pod.yaml"))
	t.Check(err)
	return pod
}

func readPod(path string) (*corev1.Pod, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pod := new(corev1.Pod)
	if err := yaml.Unmarshal(content, pod); err != nil {
		return nil, err
	}
	pod.Namespace = tenant
	return pod, nil
}

// podsPath is where the pods of the VMs are.
const podsPath = "/api/v1/namespaces/" + tenant + "/pods"

// admit sends a pod through admission and returns what the API server would store.
func (s *site) admit(ctx context.Context, pod *corev1.Pod) (*corev1.Pod, error) {
	return kube.DryRun(ctx, s.api, podsPath, pod)
}

// sidecars are the product's containers in a pod, wherever they are.
func sidecars(pod *corev1.Pod) []corev1.Container {
	var found []corev1.Container
	for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if container.Name == initContainer || container.Name == serverContainer {
			found = append(found, container)
		}
	}
	return found
}
