package review

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
	"github.com/example/kubevirt-imds/injector/internal/patchset"
)

// Pod is a Func for the creation of pods. It decides from the pod alone, so that no cache can be behind.
func (r *Reviewer) Pod(request *Request) Verdict {
	return r.expect(r.pod, request, "pods", Create)
}

func (r *Reviewer) pod(request *Request) Verdict {
	found := readAnnotations(request.metadata["annotations"])
	if request.metadata["labels"].Get("kubevirt.io").String() != "virt-launcher" || !found.has(annotation.Enabled) || found.decline() ||
		// The short-lived pod by which KubeVirt gets a volume provisioned before the VM starts runs no guest.
		request.metadata["annotations"].Get("kubevirt.io/ephemeral-provisioning") != nil {
		return Allow()
	}

	before, err := r.patches.Outline(request.Object)
	if err != nil {
		return r.refuse(request, byShape, err.Error())
	}
	isInjected := found.text(annotation.Injected) == "true" && hasSidecars(before)
	if by, reason := forbidden(before, isInjected); reason != "" {
		return r.refuse(request, by, reason)
	}
	vmName, vmiUID := instanceOf(request.metadata["ownerReferences"])
	if vmName == "" || vmiUID == "" {
		return r.refuse(request, byOwner, "the pod has no controller ownerReference of kind VirtualMachineInstance in group kubevirt.io, which names the VM: IMDS serves only pods that KubeVirt made")
	}
	after := jsontree.Clone(before)
	if isInjected {
		fitResources(before, after, true) // another webhook may have changed the pod's QoS class since
		return Allow().change(before, after)
	}
	meant, problems := found.understood()
	port, by, why := reachedBy(request.metadata["annotations"], meant)
	if !meant.ask() {
		by, why = byAnnotation, join(problems)
	}
	for _, volume := range patchset.Volumes {
		if why == "" && hasVolume(before, volume) {
			by, why = byName, fmt.Sprintf(volumeProblem, volume)
		}
	}
	who := []any{"vm", vmName, "pod", request.ObjectName()}
	if why != "" {
		r.logOf(request).Warn("pod not injected", append(who, "reason", why)...)
		annotate(after, map[string]string{annotation.NotInjected: why, annotation.Injected: "", annotation.WiredBy: "", annotation.Version: ""})
		verdict := Allow("IMDS is not injected: " + why)
		verdict.Outcome = Outcome{notInjected, by}
		return verdict.change(before, after)
	}

	verdict := Allow()
	if problems != nil {
		verdict.Outcome = Outcome{tolerated, byAnnotation}
	}
	// The sidecars read a user's annotations: as they are meant, and as the operator's patches change them.
	values := map[string]string{annotation.RedirectPort: port} // which the patches go by
	for _, name := range annotation.ByUser() {
		values[name] = meant.text(name)
	}
	annotate(after, values)
	if after, err = r.patches.Apply(after); err == nil {
		err = setTokens(after)
	}
	if err != nil {
		return r.refuse(request, byShape, err.Error())
	}
	fitResources(before, after, false)
	if r.patches.WiredBy == annotation.WiredByNodeAgent && jsontree.Lookup[any](before, "spec", "hostUsers") == false {
		verdict.Warnings = []string{"spec.hostUsers is false: the node agent does not wire a pod with a user namespace of its own, so its guest finds no IMDS"}
		problems = append(problems, verdict.Warnings...)
	}
	annotate(after, map[string]string{
		annotation.Injected: "true", annotation.WiredBy: r.patches.WiredBy, annotation.Version: r.version, annotation.VMName: vmName, annotation.VMIUID: vmiUID,
		annotation.Warnings: join(problems), annotation.NotInjected: "",
	})
	r.logOf(request).Info("pod injected", append(who, "redirectPort", port, "warnings", join(problems))...)
	return verdict.change(before, after)
}

// reachedBy returns the port of the redirection, empty for a bridge, or why the pod must not be injected (by: in a word).
// Without the verdict of the instance's review it takes what the pod itself proves.
func reachedBy(all jsontree.Value, a annotations) (port, by, why string) {
	port = a.text(annotation.RedirectPort)
	hasPort := a.has(annotation.RedirectPort) && annotation.IsRedirectPort(a[annotation.RedirectPort])
	switch a.text(annotation.Wiring) {
	case annotation.WiringBridge:
		return "", "", ""
	case annotation.WiringRedirect:
		if !hasPort {
			return "", byNoVerdict, fmt.Sprintf("annotation %s is %s, and annotation %s has no port: the review of the instance writes both", annotation.Wiring, annotation.WiringRedirect, annotation.RedirectPort)
		}
	case annotation.WiringNone:
		return "", bySpec, cmp.Or(cut(a.text(annotation.Reason), 1024), "the review of the instance says that IMDS cannot serve it")
	default:
		// KubeVirt tells service meshes of masquerade only; and only bridge binding needs this annotation to
		// migrate (VerifyVMIMigratable in pkg/network/vmispec/interface.go).
		if proofs := all.Fields("istio.io/reroute-virtual-interfaces", "traffic.sidecar.istio.io/kubevirtInterfaces",
			"kubevirt.io/allow-pod-bridge-network-live-migration"); len(proofs) > 0 {
			return "", "", ""
		}
		if !hasPort {
			return "", byNoVerdict, "the instance has no annotation " + annotation.Wiring + ", in which the webhook records how the guest reaches IMDS: any update of the instance adds it, such as kubectl label"
		}
	}
	if a.has(annotation.HopLimit) {
		return "", byAnnotation, fmt.Sprintf("annotation %s cannot take effect where passt binds the pod network", annotation.HopLimit)
	}
	return port, "", ""
}

// annotate writes annotations over those that a tenant wrote; an empty one is removed.
func annotate(object jsontree.Object, values map[string]string) {
	written, _ := jsontree.Ensure(object, "metadata", "annotations") // which it has
	for name, value := range values {
		if value != "" {
			written[name] = value
		} else {
			delete(written, name)
		}
	}
}

// hasSidecars goes by the names of either way of wiring: other webhooks rewrite the rest, and in a roll-out the
// one that injected the pod has other patches. Who forges them gets nothing by that.
func hasSidecars(pod jsontree.Object) bool {
	containers := containersOf(pod)
	return jsontree.IndexOf(containers, patchset.ServerContainer) >= 0 &&
		(jsontree.IndexOf(containers, patchset.InitContainer) >= 0 || hasVolume(pod, patchset.NodeVolume))
}

func hasVolume(pod jsontree.Object, name string) bool {
	return jsontree.IndexOf(jsontree.Lookup[[]any](pod, "spec", "volumes"), name) >= 0
}

// volumeProblem is a VM's too: KubeVirt gives the pod's volume the name that it has in the VM.
const volumeProblem = "the volume name %s is reserved for the IMDS sidecars: rename the VM's volume"

// maxObjectName is the longest name of an object, in bytes (DNS subdomain, RFC 1123).
const maxObjectName = 253

// forbidden says why a pod, which somebody made to look like KubeVirt's, must not have the sidecars.
func forbidden(pod jsontree.Object, isInjected bool) (by, reason string) {
	if !isInjected {
		// The patches would give their capabilities to its image and command.
		for _, element := range containersOf(pod) {
			if name := jsontree.Name(element); patchset.IsSidecar(name) {
				return byName, fmt.Sprintf("the container name %s is reserved for the IMDS sidecars: rename the pod's own container", name)
			}
		}
	}
	// The node would be wired, or other containers reach the token by /proc.
	for _, field := range []string{"hostNetwork", "hostPID", "shareProcessNamespace"} {
		if jsontree.Lookup[bool](pod, "spec", field) {
			return byNamespace, fmt.Sprintf("spec.%s is true: IMDS needs a pod with namespaces of its own", field)
		}
	}
	return "", ""
}

// instanceOf returns name and UID of the controlling instance, which KubeVirt cuts or replaces in labels.
func instanceOf(owners jsontree.Value) (name, uid string) {
	owner := controllerOf(owners)
	group, _, _ := strings.Cut(owner.Get("apiVersion").String(), "/")
	name, uid = owner.Get("name").String(), owner.Get("uid").String()
	if group != "kubevirt.io" || owner.Get("kind").String() != "VirtualMachineInstance" || len(name) > maxObjectName || len(uid) > maxObjectName {
		return "", ""
	}
	return name, uid
}
