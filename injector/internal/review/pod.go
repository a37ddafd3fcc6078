package review

import (
	"fmt"
	"strings"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
	"github.com/example/kubevirt-imds/injector/internal/patchset"
)

// Pod is a Func for the creation of pods. It decides from the pod alone, so that no
// cache can be behind.
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
	isInjected := found.text(annotation.Injected) == "true" && r.patches.IsIn(before)
	if reason := forbidden(before, fields, isInjected); reason != "" {
		return r.refuse(request, reason), nil
	}
	vmName, vmiUID := instanceOf(metadata)
	if vmName == "" || vmiUID == "" {
		return r.refuse(request, "the pod has no controller ownerReference of kind VirtualMachineInstance in group kubevirt.io, which names the VM: IMDS serves only pods that KubeVirt made"), nil
	}
	after := jsontree.Clone(before)
	if isInjected {
		// Another webhook may have changed the pod's QoS class since.
		fitResources(fields, after, true)
		return Verdict{Allowed: true, Patch: jsontree.Diff(before, after)}, nil
	}
	meant, problems := found.understood()
	port, why := reachedBy(metadata, meant)
	if !meant.ask() {
		why = join(problems)
	}
	if why != "" {
		r.log.Warn("pod not injected", "namespace", request.Namespace, "vm", vmName, "pod", request.ObjectName(), "reason", why)
		err := annotate(after, map[string]string{annotation.NotInjected: why, annotation.Injected: ""})
		return Verdict{Allowed: true, Patch: jsontree.Diff(before, after), Warnings: []string{"IMDS is not injected: " + why}}, err
	}

	// The sidecars read a user's annotations by the downward API: as they are meant.
	// The patches, which are the operator's, come after.
	users := map[string]string{}
	for _, name := range annotation.ByUser() {
		users[name] = meant.text(name)
	}
	if err = annotate(after, users); err == nil {
		after, err = r.patches.Apply(after)
	}
	if err == nil {
		err = setTokens(after, meant)
	}
	if err == nil {
		fitResources(fields, after, false)
		err = annotate(after, map[string]string{
			annotation.Injected: "true", annotation.VMName: vmName, annotation.VMIUID: vmiUID,
			annotation.RedirectPort: port, annotation.Warnings: join(problems), annotation.NotInjected: "",
		})
	}
	if err != nil {
		return Verdict{}, err
	}
	r.log.Info("pod injected", "namespace", request.Namespace, "vm", vmName, "pod", request.ObjectName(), "redirectPort", port, "warnings", join(problems))
	return Verdict{Allowed: true, Patch: jsontree.Diff(before, after)}, nil
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
		// KubeVirt says to service meshes that the pod network is bound by masquerade;
		// it says so of no other binding.
		for _, name := range []string{"istio.io/reroute-virtual-interfaces", "traffic.sidecar.istio.io/kubevirtInterfaces"} {
			if metadata.Get("annotations", name).String() != "" {
				return "", ""
			}
		}
		if !hasPort {
			return "", "the instance has no annotation " + annotation.Wiring + ", by which its review says how the guest reaches IMDS: any update of the instance brings it, such as kubectl label"
		}
	}
	if a.has(annotation.HopLimit) {
		return "", fmt.Sprintf("annotation %s cannot be kept where passt binds the pod network", annotation.HopLimit)
	}
	return port, ""
}

// annotate writes annotations of a pod, over a tenant's; an empty one is removed.
func annotate(pod jsontree.Object, values map[string]string) error {
	written, err := jsontree.Ensure(pod, "metadata", "annotations")
	if err != nil {
		return err
	}
	for name, value := range values {
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
func forbidden(pod jsontree.Object, spec map[string]jsontree.Value, isInjected bool) string {
	if !isInjected {
		// Merged into a container that is there already, the patches would give
		// their capabilities to its image and command.
		for _, reserved := range []struct{ list, kind, name string }{
			{"initContainers", "container", patchset.InitContainer}, {"initContainers", "container", patchset.ServerContainer},
			{"containers", "container", patchset.InitContainer}, {"containers", "container", patchset.ServerContainer},
			{"volumes", "volume", patchset.TokenVolume},
		} {
			if jsontree.IndexOf(jsontree.Lookup[[]any](pod, "spec", reserved.list), reserved.name) >= 0 {
				return fmt.Sprintf("the %s name %s is reserved for the IMDS sidecars: rename the pod's own %s", reserved.kind, reserved.name, reserved.kind)
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

// instanceOf returns the name and UID of the VirtualMachineInstance that controls the
// pod. The labels would not do: KubeVirt cuts the name there, or puts the hostname in
// its place.
func instanceOf(metadata jsontree.Value) (name, uid string) {
	for owner := range metadata.Get("ownerReferences").Elements() {
		group, _, _ := strings.Cut(owner.Get("apiVersion").String(), "/")
		if owner.Get("controller").IsTrue() && group == "kubevirt.io" && owner.Get("kind").String() == "VirtualMachineInstance" {
			return owner.Get("name").String(), owner.Get("uid").String()
		}
	}
	return "", ""
}
