package review

import (
	"fmt"
	"strings"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
	"github.com/example/kubevirt-imds/injector/internal/patchset"
)

// Pod is an Func for the creation of pods. It decides from the pod
// alone, so that no cache can be behind.
func (r *Reviewer) Pod(request *Request) (Verdict, error) {
	if verdict := expect(request, "pods", Create); verdict != nil {
		return *verdict, nil
	}
	top := request.Object.Fields("metadata", "spec")
	metadata, spec := top["metadata"], top["spec"]
	found := readAnnotations(metadata)
	// The short-lived pod by which KubeVirt gets a volume provisioned before the
	// VM starts runs no guest.
	isEphemeral := metadata.Get("annotations", "kubevirt.io/ephemeral-provisioning") != nil
	if metadata.Get("labels", "kubevirt.io").String() != "virt-launcher" || !found.has(annotation.Enabled) || found.decline() || isEphemeral {
		return Allow(), nil
	}

	fields := spec.Fields("initContainers", "containers", "volumes", "hostNetwork", "hostPID", "shareProcessNamespace")
	before, err := r.patches.Outline(metadata, spec)
	if err != nil {
		return Verdict{}, err
	}
	isInjected := found.text(annotation.Injected) == "true" && r.patches.IsIn(fields["initContainers"], fields["containers"])
	if reason := forbidden(fields, isInjected); reason != "" {
		return r.refuse(request, reason), nil
	}
	owner, isOwned := instanceOf(metadata)
	if !isOwned {
		return r.refuse(request, "the pod has no controller ownerReference of kind VirtualMachineInstance in group kubevirt.io, which names the VM: IMDS serves only pods that KubeVirt made"), nil
	}
	if isInjected {
		// Another webhook may have changed the pod's QoS class since.
		after := jsontree.Clone(before)
		fitResources(fields, after, true)
		return Verdict{Allowed: true, Patch: jsontree.Diff(before, after)}, nil
	}
	meant, problems := found.understood()
	port, why := reachedBy(metadata, meant)
	if !meant.ask() {
		why = join(problems)
	}
	if why != "" {
		return r.leave(request, owner, before, why)
	}

	plain := jsontree.Clone(before)
	takeAsMeant(plain, meant)
	after, err := r.patches.Apply(plain)
	if err == nil {
		err = setTokens(after, meant)
	}
	if err == nil {
		fitResources(fields, after, false)
		err = annotate(after, owner, port, problems)
	}
	if err != nil {
		return Verdict{}, err
	}
	r.log.Info("pod injected", "namespace", request.Namespace, "vm", owner.name, "pod", request.ObjectName(), "redirectPort", port, "warnings", join(problems))
	return Verdict{Allowed: true, Patch: jsontree.Diff(before, after)}, nil
}

// leave writes on a pod why it has no IMDS.
func (r *Reviewer) leave(request *Request, owner instance, before jsontree.Object, reason string) (Verdict, error) {
	after := jsontree.Clone(before)
	annotations, err := jsontree.Ensure(after, "metadata", "annotations")
	if err != nil {
		return Verdict{}, err
	}
	annotations[annotation.NotInjected] = reason
	delete(annotations, annotation.Injected)
	r.log.Warn("pod not injected", "namespace", request.Namespace, "vm", owner.name, "pod", request.ObjectName(), "reason", reason)
	return Verdict{Allowed: true, Patch: jsontree.Diff(before, after), Warnings: []string{"IMDS is not injected: " + reason}}, nil
}

// reachedBy returns the port of the redirection, 0 where the guest comes by a
// bridge, or why the pod must not be injected. Without the verdict of the
// instance's review it takes what the pod itself proves.
func reachedBy(metadata jsontree.Value, a annotations) (port string, why string) {
	port = a.text(annotation.RedirectPort)
	hasPort := a.has(annotation.RedirectPort) && annotation.IsRedirectPort(a[annotation.RedirectPort])
	switch a.text(annotation.Wiring) {
	case annotation.WiringBridge:
		return "", ""
	case annotation.WiringRedirect:
		if !hasPort {
			return "", fmt.Sprintf("annotation %s is %s, and annotation %s has no port: the review of the instance writes both", annotation.Wiring, annotation.WiringRedirect, annotation.RedirectPort)
		}
	case annotation.WiringNone:
		return "", a.text(annotation.Reason)
	default:
		switch {
		case isMasqueraded(metadata):
			return "", ""
		case !hasPort:
			return "", "the instance has no annotation " + annotation.Wiring + ", by which its review says how the guest reaches IMDS: any update of the instance brings it, such as kubectl label"
		}
	}
	if a.has(annotation.HopLimit) {
		return "", fmt.Sprintf("annotation %s cannot be kept where passt binds the pod network", annotation.HopLimit)
	}
	return port, ""
}

// isMasqueraded reports whether KubeVirt says, for a service mesh, that the pod
// network is bound by masquerade; it says so of no other binding.
func isMasqueraded(metadata jsontree.Value) bool {
	for _, name := range []string{"istio.io/reroute-virtual-interfaces", "traffic.sidecar.istio.io/kubevirtInterfaces"} {
		if metadata.Get("annotations", name).String() != "" {
			return true
		}
	}
	return false
}

// takeAsMeant puts what a user's annotations are taken for in their place: the
// sidecars read them by the downward API. The patches, which are the operator's,
// come after.
func takeAsMeant(pod jsontree.Object, meant annotations) {
	written := jsontree.LookupObject(pod, "metadata", "annotations")
	for _, name := range annotation.ByUser() {
		if meant.has(name) {
			written[name] = meant.text(name)
		} else {
			delete(written, name)
		}
	}
}

// annotate writes the webhook's own annotations, over a tenant's.
func annotate(pod jsontree.Object, owner instance, port string, problems []string) error {
	written, err := jsontree.Ensure(pod, "metadata", "annotations")
	if err != nil {
		return err
	}
	for name, value := range map[string]string{
		annotation.Injected: "true", annotation.VMName: owner.name, annotation.VMIUID: owner.uid,
		annotation.RedirectPort: port, annotation.Warnings: join(problems), annotation.NotInjected: "",
	} {
		if value != "" {
			written[name] = value
		} else {
			delete(written, name)
		}
	}
	return nil
}

// forbidden says why the sidecars must not be in this pod; empty when they may.
// Nothing that KubeVirt renders is refused here: these are pods that somebody
// made to look like it.
func forbidden(spec map[string]jsontree.Value, isInjected bool) string {
	if !isInjected {
		// Merged into a container that is there already, the patches would give
		// their capabilities to its image and command.
		for _, list := range []string{"initContainers", "containers"} {
			for container := range spec[list].Elements() {
				if name := container.Get("name").String(); patchset.IsSidecar(name) {
					return fmt.Sprintf("the container name %s is reserved for the IMDS sidecars: rename the pod's own container", name)
				}
			}
		}
		for volume := range spec["volumes"].Elements() {
			if volume.Get("name").String() == patchset.TokenVolume {
				return fmt.Sprintf("the volume name %s is reserved for the IMDS sidecars: rename the pod's own volume", patchset.TokenVolume)
			}
		}
	}
	// With the node's network, imds-init would wire the node. In a shared
	// process namespace the other containers reach the token by /proc.
	for _, field := range []string{"hostNetwork", "hostPID", "shareProcessNamespace"} {
		if spec[field].IsTrue() {
			return fmt.Sprintf("spec.%s is true: IMDS needs a pod with namespaces of its own", field)
		}
	}
	return ""
}

// instance is the VirtualMachineInstance that a pod runs.
type instance struct {
	name, uid string
}

// instanceOf reads the pod's controller. The labels would not do: KubeVirt
// cuts the name there, or puts the hostname in its place.
func instanceOf(metadata jsontree.Value) (instance, bool) {
	for owner := range metadata.Get("ownerReferences").Elements() {
		group, _, _ := strings.Cut(owner.Get("apiVersion").String(), "/")
		if !owner.Get("controller").IsTrue() || group != "kubevirt.io" || owner.Get("kind").String() != "VirtualMachineInstance" {
			continue
		}
		found := instance{name: owner.Get("name").String(), uid: owner.Get("uid").String()}
		return found, found.name != "" && found.uid != ""
	}
	return instance{}, false
}
