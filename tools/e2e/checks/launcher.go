package checks

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
)

// Names of what the webhook adds to a VM's pod.
const (
	initContainer   = "imds-init"
	serverContainer = "imds-server"
	tokenVolume     = "imds-token"
	portSysctl      = "net.ipv4.ip_unprivileged_port_start"

	prefix             = "imds.kubevirt.io/"
	enabledAnnotation  = prefix + "enabled"
	hopLimitAnnotation = prefix + "hop-limit"
	injectedAnnotation = prefix + "injected"
)

// launcherFolder has pods as KubeVirt renders them: the webhook's own unit tests begin with the same.
func (s *site) launcherFolder() string {
	return filepath.Join(s.repository, "injector", "testdata", "pod")
}

// launcherPod reads the virt-launcher pod of a case.
func launcherPod(t *testing.T, s *site, name string) *corev1.Pod {
	pod, err := s.readPod(name)
	check(t, err)
	return pod
}

func (s *site) readPod(name string) (*corev1.Pod, error) {
	tree, err := s.readCase(name)
	if err != nil {
		return nil, err
	}
	content, err := json.Marshal(tree)
	if err != nil {
		return nil, err
	}
	pod := new(corev1.Pod)
	if err := json.Unmarshal(content, pod); err != nil {
		return nil, err
	}
	pod.Namespace = tenant
	return pod, nil
}

// readCase reads the object of a case: NAME.pod.yaml or NAME.pod.json is all of it, NAME.yaml a JSON merge patch for
// another one, or for base.
func (s *site) readCase(name string) (map[string]any, error) {
	whole, err := filepath.Glob(filepath.Join(s.launcherFolder(), name+".pod.*"))
	if err != nil {
		return nil, err
	}
	path := filepath.Join(s.launcherFolder(), name+".yaml")
	if len(whole) > 0 {
		path = whole[0]
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var tree map[string]any
	if err := yaml.Unmarshal(content, &tree); err != nil || len(whole) > 0 || name == "base" {
		return tree, err
	}
	from, given := tree["from"].(string)
	if !given {
		from = "base"
	}
	base, err := s.readCase(from)
	if err != nil {
		return nil, err
	}
	change, _ := tree["object"].(map[string]any)
	return merge(base, change), nil
}

// merge applies a JSON merge patch (RFC 7386) to an object.
func merge(object, change map[string]any) map[string]any {
	if object == nil {
		object = map[string]any{}
	}
	for name, value := range change {
		switch value := value.(type) {
		case nil:
			delete(object, name)
		case map[string]any:
			member, _ := object[name].(map[string]any)
			object[name] = merge(member, value)
		default:
			object[name] = value
		}
	}
	return object
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

func names(containers []corev1.Container) []string {
	var all []string
	for _, container := range containers {
		all = append(all, container.Name)
	}
	return all
}
