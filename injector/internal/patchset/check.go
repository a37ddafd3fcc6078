package patchset

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/example/kubevirt-imds/injector/annotation"
)

// checkPod judges the smallest pod, with the patches applied.
func checkPod(pod *corev1.Pod) error {
	spec := &pod.Spec
	if !slices.ContainsFunc(spec.Containers, named("compute")) {
		return errors.New("the patches remove the container compute, which runs the VM")
	}
	if spec.HostNetwork || spec.HostPID || spec.ShareProcessNamespace != nil && *spec.ShareProcessNamespace {
		return errors.New("the patches set hostNetwork, hostPID or shareProcessNamespace, which let others than the guest reach its token: remove them")
	}
	for _, name := range slices.Sorted(maps.Keys(pod.Annotations)) {
		if strings.HasPrefix(name, annotation.Prefix) {
			if problem := annotation.Problem(name, annotation.Value{Text: pod.Annotations[name]}); problem != "" {
				return errors.New("metadata.annotations: " + problem)
			}
		}
	}
	if errs := metav1validation.ValidateLabels(pod.Labels, field.NewPath("metadata.labels")); len(errs) > 0 {
		return errs[0]
	}
	for _, c := range spec.InitContainers {
		// One patch says where a container is, another puts it somewhere else.
		if slices.ContainsFunc(spec.Containers, named(c.Name)) {
			return fmt.Errorf("the patches bring the container %s twice, to spec.initContainers and to spec.containers: keep one", c.Name)
		} else if IsSidecar(c.Name) && (c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways) {
			return fmt.Errorf("the VM would not start before the init container %s ends: set its restartPolicy to Always", c.Name)
		}
	}
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		if err := checkContainer(c); err != nil {
			return fmt.Errorf("the container %s %w", c.Name, err)
		}
	}
	for _, volume := range spec.Volumes {
		if volume.Projected == nil {
			continue
		}
		for _, source := range volume.Projected.Sources {
			if token := source.ServiceAccountToken; token != nil && token.ExpirationSeconds != nil && *token.ExpirationSeconds < 600 {
				return fmt.Errorf("the volume %s asks for a token of %d seconds: want 600 or more", volume.Name, *token.ExpirationSeconds)
			}
		}
	}
	return nil
}

func named(name string) func(corev1.Container) bool {
	return func(c corev1.Container) bool { return c.Name == name }
}

func checkContainer(c corev1.Container) error {
	if strings.HasPrefix(c.Name, "imds-") && !IsSidecar(c.Name) {
		return fmt.Errorf("has a name that begins with imds-: want %s or %s, or another prefix", InitContainer, ServerContainer)
	}
	for name, request := range c.Resources.Requests {
		if limit, limited := c.Resources.Limits[name]; limited && request.Cmp(limit) > 0 {
			return fmt.Errorf("requests %s of %s, more than its limit of %s", request.String(), name, limit.String())
		}
	}
	for _, variable := range c.Env {
		if variable.Value != "" && variable.ValueFrom != nil {
			return fmt.Errorf("has the variable %s with both value and valueFrom: set one of them to null", variable.Name)
		}
	}
	for kind, probe := range map[string]*corev1.Probe{"livenessProbe": c.LivenessProbe, "readinessProbe": c.ReadinessProbe, "startupProbe": c.StartupProbe} {
		if probe == nil {
			continue
		}
		ways := 0
		for _, given := range []bool{probe.Exec != nil, probe.HTTPGet != nil, probe.TCPSocket != nil, probe.GRPC != nil} {
			if given {
				ways++
			}
		}
		if ways != 1 {
			return fmt.Errorf("has a %s with %d of exec, httpGet, tcpSocket and grpc: want one, and set the others to null", kind, ways)
		}
	}
	return nil
}

// wiredBy returns who wires such a pod: its own imds-init, or the node agent, which finds it by a socket.
func wiredBy(spec *corev1.PodSpec) (string, error) {
	containers, socket, folder := slices.Concat(spec.InitContainers, spec.Containers), "", ""
	hasInit, i := slices.ContainsFunc(containers, named(InitContainer)), slices.IndexFunc(containers, named(ServerContainer))
	if i < 0 {
		return "", fmt.Errorf("no patch brings the container %s: add it to spec.initContainers", ServerContainer)
	}
	server := containers[i]
	for _, variable := range server.Env {
		if variable.Name == "IMDS_NODE_SOCKET" {
			socket = variable.Value
		}
	}
	for _, mount := range server.VolumeMounts {
		isOnDisk := func(v corev1.Volume) bool {
			return v.Name == NodeVolume && v.EmptyDir != nil && v.EmptyDir.Medium == corev1.StorageMediumDefault
		}
		if mount.Name == NodeVolume && slices.ContainsFunc(spec.Volumes, isOnDisk) {
			folder = mount.MountPath
		}
	}
	switch {
	case hasInit && socket != "":
		return "", fmt.Errorf("the patches bring both the container %s and IMDS_NODE_SOCKET of %s, by which the node agent wires the pod too: keep one", InitContainer, ServerContainer)
	case hasInit:
		return annotation.WiredBySidecar, nil
	case socket == "":
		return "", fmt.Errorf("nobody wires the pod: add the container %s to spec.initContainers, or give %s the environment IMDS_NODE_SOCKET, as the component node-agent does, which excludes regular-containers", InitContainer, ServerContainer)
	case folder == "" || socket != folder+"/"+nodeSocket:
		return "", fmt.Errorf("the node agent cannot find the socket %s of %s: want the volume %s, an emptyDir on disk, and the socket %s in its mount", socket, ServerContainer, NodeVolume, nodeSocket)
	}
	return annotation.WiredByNodeAgent, nil
}
