// Package pod decides about virt-launcher pods: which of them get the IMDS
// sidecars, with which identity, and which are refused. It decides from the
// pod alone, so that no cache can be behind.
package pod

import (
	"log/slog"
	"slices"

	"github.com/example/kubevirt-imds/injector/internal/admission"
	"github.com/example/kubevirt-imds/injector/internal/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
	"github.com/example/kubevirt-imds/injector/internal/patchset"
)

// Injector reviews pods and patches those that ask for IMDS.
type Injector struct {
	patches *patchset.Folder
	log     *slog.Logger
}

// NewInjector returns an Injector that applies the patches of a folder.
func NewInjector(patches *patchset.Folder, log *slog.Logger) *Injector {
	return &Injector{patches: patches, log: log}
}

// Review is an admission.Review for the creation of pods.
func (in *Injector) Review(request *admission.Request) (admission.Verdict, error) {
	if request.Resource.Resource != "pods" || request.SubResource != "" || request.Operation != admission.Create {
		return admission.Allow("imds-webhook reviews the creation of pods, not " + request.Action() + ": check the rules of its configuration"), nil
	}
	pod := request.Object
	if jsontree.LookupString(pod, "metadata", "labels", "kubevirt.io") != "virt-launcher" {
		return admission.Allow(), nil
	}
	annotations := jsontree.LookupObject(pod, "metadata", "annotations")
	enabled, problem := annotation.IsEnabled(annotations)
	if problem != "" {
		return in.refuse(request, problem), nil
	}
	if !enabled || isEphemeral(annotations) {
		return admission.Allow(), nil
	}

	containers, err := readNames(pod)
	if err != nil {
		return admission.Verdict{}, err
	}
	if annotations[annotation.Injected] == "true" && containers.haveSidecars() {
		return admission.Allow(), nil
	}
	if reason := refusal(pod, containers); reason != "" {
		return in.refuse(request, reason), nil
	}
	owner, found := instanceOf(pod)
	if !found {
		return in.refuse(request, "the pod has no controller ownerReference of kind VirtualMachineInstance in group kubevirt.io, which names the VM: IMDS serves only pods that KubeVirt made"), nil
	}
	own := annotation.WrittenByUser(annotations)
	problems := annotation.Problems(own)
	if problem := annotation.RedirectPortProblem(annotations); problem != "" {
		// Whoever may create pods may write it too, and gains nothing: a wrong
		// port, or one that is not due, leaves this pod's own guest unserved.
		problems = append(problems, problem)
	}
	if problems != nil {
		return in.refuse(request, annotation.Join(problems)), nil
	}

	// A problem with newer patches is the Folder's to report.
	patches, _ := in.patches.Current()
	patched, err := patches.Apply(pod)
	if err != nil {
		return admission.Verdict{}, err
	}
	if err := applySettings(patched, annotation.ParseSettings(own)); err != nil {
		return admission.Verdict{}, err
	}
	if err := annotate(patched, owner); err != nil {
		return admission.Verdict{}, err
	}
	in.log.Info("pod injected", "namespace", request.Namespace, "vm", owner.name, "pod", nameOf(pod))
	return admission.Verdict{Allowed: true, Patch: jsontree.Diff(pod, patched)}, nil
}

func (in *Injector) refuse(request *admission.Request, reason string) admission.Verdict {
	owner, _ := instanceOf(request.Object)
	in.log.Warn("pod refused", "namespace", request.Namespace, "vm", owner.name, "pod", nameOf(request.Object), "reason", reason)
	return admission.Deny(reason)
}

// nameOf is what is known of the pod's name at admission: KubeVirt leaves the
// end of it to the API server.
func nameOf(pod jsontree.Object) string {
	if name := jsontree.LookupString(pod, "metadata", "name"); name != "" {
		return name
	}
	return jsontree.LookupString(pod, "metadata", "generateName")
}

// isEphemeral recognises the short-lived pod by which KubeVirt gets a volume
// provisioned before the VM starts. It runs no guest.
func isEphemeral(annotations jsontree.Object) bool {
	_, found := annotations["kubevirt.io/ephemeral-provisioning"]
	return found
}

// annotate writes the webhook's own annotations, over a tenant's.
func annotate(pod jsontree.Object, owner instance) error {
	annotations, err := jsontree.Ensure(pod, "metadata", "annotations")
	if err != nil {
		return err
	}
	annotations[annotation.Injected] = "true"
	annotations[annotation.VMName] = owner.name
	annotations[annotation.VMIUID] = owner.uid
	return nil
}

// names are the names in a pod that the sidecars' own could clash with.
type names struct {
	containers []string // init containers included
	volumes    []string
}

func readNames(pod jsontree.Object) (names, error) {
	initContainers, err := patchset.Names(pod, "initContainers")
	if err != nil {
		return names{}, err
	}
	containers, err := patchset.Names(pod, "containers")
	if err != nil {
		return names{}, err
	}
	volumes, err := patchset.Names(pod, "volumes")
	if err != nil {
		return names{}, err
	}
	return names{containers: slices.Concat(initContainers, containers), volumes: volumes}, nil
}

func (n names) haveSidecars() bool {
	return slices.Contains(n.containers, patchset.InitContainer) &&
		slices.Contains(n.containers, patchset.ServerContainer)
}
