package kubelet

import (
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/example/kubevirt-imds/tools/podnet/container"
)

// applySecurity puts the security contexts of the pod and of the container into
// a spec; the container's say more. Seccomp profiles are left out: a runtime
// brings its own.
func applySecurity(spec *container.Spec, pod *corev1.Pod, c corev1.Container) error {
	ofPod, own := pod.Spec.SecurityContext, c.SecurityContext
	if ofPod == nil {
		ofPod = &corev1.PodSecurityContext{}
	}
	if own == nil {
		own = &corev1.SecurityContext{}
	}
	spec.UID = uint32(value(own.RunAsUser, value(ofPod.RunAsUser, 0)))
	spec.GID = uint32(value(own.RunAsGroup, value(ofPod.RunAsGroup, 0)))
	if spec.UID == 0 && value(own.RunAsNonRoot, value(ofPod.RunAsNonRoot, false)) {
		return errors.New("runAsNonRoot is true, and the user is 0")
	}
	for _, group := range ofPod.SupplementalGroups {
		spec.Groups = append(spec.Groups, uint32(group))
	}
	if ofPod.FSGroup != nil {
		spec.Groups = append(spec.Groups, uint32(*ofPod.FSGroup))
	}
	if value(own.Privileged, false) {
		return errors.New("privileged containers are not supported here")
	}
	spec.ReadOnlyRoot = value(own.ReadOnlyRootFilesystem, false)
	spec.NoNewPrivileges = !value(own.AllowPrivilegeEscalation, true)
	capabilities, err := boundingSet(own.Capabilities)
	spec.Capabilities = capabilities
	return err
}

// boundingSet starts from the runtime's default, drops, then adds.
func boundingSet(c *corev1.Capabilities) (container.CapabilitySet, error) {
	if c == nil {
		return container.RuntimeDefault, nil
	}
	drop, err := container.ParseCapabilities(names(c.Drop)...)
	if err != nil {
		return 0, fmt.Errorf("drop: %w", err)
	}
	add, err := container.ParseCapabilities(names(c.Add)...)
	if err != nil {
		return 0, fmt.Errorf("add: %w", err)
	}
	return container.RuntimeDefault&^drop | add, nil
}

func names(capabilities []corev1.Capability) []string {
	var all []string
	for _, c := range capabilities {
		all = append(all, string(c))
	}
	return all
}

func value[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}
