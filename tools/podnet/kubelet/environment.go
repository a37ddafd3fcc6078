package kubelet

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// runtimePath is what container runtimes set where an image says nothing.
const runtimePath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment is a container's, by the pod and the downward API.
func environment(pod *corev1.Pod, c corev1.Container) ([]string, error) {
	env := []string{"PATH=" + runtimePath, "HOSTNAME=" + pod.Name}
	if len(c.EnvFrom) > 0 {
		return nil, fmt.Errorf("envFrom is not supported here")
	}
	for _, v := range c.Env {
		value, err := variable(pod, v)
		if err != nil {
			return nil, fmt.Errorf("variable %s: %w", v.Name, err)
		}
		// The last one of a name counts.
		env = slices.DeleteFunc(env, func(other string) bool { return strings.HasPrefix(other, v.Name+"=") })
		env = append(env, v.Name+"="+value)
	}
	return env, nil
}

func variable(pod *corev1.Pod, v corev1.EnvVar) (string, error) {
	switch {
	case v.ValueFrom == nil && strings.Contains(v.Value, "$("):
		return "", fmt.Errorf("references as in %q are not supported here", v.Value)
	case v.ValueFrom == nil:
		return v.Value, nil
	case v.ValueFrom.FieldRef != nil:
		return field(pod, v.ValueFrom.FieldRef.FieldPath)
	}
	return "", fmt.Errorf("only values and fieldRef are supported here")
}

// field is the downward API. As there, an annotation or label that is missing
// is empty.
func field(pod *corev1.Pod, path string) (string, error) {
	for prefix, from := range map[string]map[string]string{
		"metadata.annotations['": pod.Annotations,
		"metadata.labels['":      pod.Labels,
	} {
		if rest, ok := strings.CutPrefix(path, prefix); ok {
			if key, ok := strings.CutSuffix(rest, "']"); ok {
				return from[key], nil
			}
		}
	}
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.podIP":
		return pod.Status.PodIP, nil
	case "status.hostIP":
		return pod.Status.HostIP, nil
	}
	return "", fmt.Errorf("fieldPath %q is unknown to the downward API", path)
}
