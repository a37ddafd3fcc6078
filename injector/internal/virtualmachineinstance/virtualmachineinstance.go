// Package virtualmachineinstance reviews the creation of KubeVirt
// VirtualMachineInstances, whoever made them: a VirtualMachine, a replica set or
// a user. It refuses wrong imds.kubevirt.io/ annotations, and tells the pod, by
// an annotation, by which way the guest will come: the spec is not in the pod.
package virtualmachineinstance

import (
	"fmt"
	"log/slog"
	"strconv"

	"github.com/example/kubevirt-imds/injector/internal/admission"
	"github.com/example/kubevirt-imds/injector/internal/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
	"github.com/example/kubevirt-imds/injector/internal/network"
)

// Reviewer reviews VirtualMachineInstances of kubevirt.io/v1.
type Reviewer struct {
	log *slog.Logger
}

// NewReviewer returns a Reviewer.
func NewReviewer(log *slog.Logger) *Reviewer {
	return &Reviewer{log: log}
}

// Review is an admission.Review for the creation of VirtualMachineInstances.
func (r *Reviewer) Review(request *admission.Request) (admission.Verdict, error) {
	if request.Resource.Resource != "virtualmachineinstances" || request.SubResource != "" || request.Operation != admission.Create {
		return admission.Allow("imds-webhook reviews the creation of virtualmachineinstances, not " + request.Action() + ": check the rules of its configuration"), nil
	}
	vmi := request.Object
	annotations := annotation.Select(jsontree.LookupObject(vmi, "metadata", "annotations"))
	if len(annotations) == 0 || annotations[annotation.Enabled] == "false" {
		return admission.Allow(), nil
	}

	// Not refused: it is ours when the API server asks again because of a change
	// by another webhook, or when a backup of the instance is restored.
	given := annotations[annotation.RedirectPort]
	delete(annotations, annotation.RedirectPort)
	problems := annotation.Problems(annotations)
	var way network.Way
	if enabled, _ := annotation.IsEnabled(annotations); enabled {
		way = network.WayOf(jsontree.LookupObject(vmi, "spec"), annotations)
		problems = append(problems, way.Problems...)
	}
	if problems != nil {
		return r.refuse(request, annotation.Join(problems)), nil
	}
	return r.redirect(request, way, given)
}

// redirect writes the port of the way over the one that was given, or removes
// that.
func (r *Reviewer) redirect(request *admission.Request, way network.Way, given any) (admission.Verdict, error) {
	updated := jsontree.Clone(request.Object)
	annotations, err := jsontree.Ensure(updated, "metadata", "annotations")
	if err != nil {
		return admission.Verdict{}, err
	}
	var wanted any
	if way.RedirectPort == 0 {
		delete(annotations, annotation.RedirectPort)
	} else {
		wanted = strconv.Itoa(int(way.RedirectPort))
		annotations[annotation.RedirectPort] = wanted
	}
	if given != nil && given != wanted {
		way.Warnings = append(way.Warnings, fmt.Sprintf("annotation %s is written by the webhook: %s does not stay", annotation.RedirectPort, annotation.Quote(given)))
	}
	patch := jsontree.Diff(request.Object, updated)
	if patch != nil {
		r.log.Info("virtual machine instance's redirection set", "namespace", request.Namespace, "vmi", request.ObjectName(), "port", way.RedirectPort)
	}
	return admission.Verdict{Allowed: true, Patch: patch, Warnings: way.Warnings}, nil
}

func (r *Reviewer) refuse(request *admission.Request, reason string) admission.Verdict {
	r.log.Warn("virtual machine instance refused", "namespace", request.Namespace, "vmi", request.ObjectName(), "reason", reason)
	return admission.Deny(reason)
}
