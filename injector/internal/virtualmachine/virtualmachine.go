// Package virtualmachine reviews KubeVirt VirtualMachines: it carries the
// imds.kubevirt.io/ annotations from the VM's own metadata, where people write
// them, to the template, from where KubeVirt copies them to the pod; and it
// refuses wrong ones at kubectl apply, where people see it.
package virtualmachine

import (
	"log/slog"
	"reflect"

	"github.com/example/kubevirt-imds/injector/internal/admission"
	"github.com/example/kubevirt-imds/injector/internal/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
	"github.com/example/kubevirt-imds/injector/internal/network"
)

// Reviewer reviews VirtualMachines of kubevirt.io/v1.
type Reviewer struct {
	log *slog.Logger
}

// NewReviewer returns a Reviewer.
func NewReviewer(log *slog.Logger) *Reviewer {
	return &Reviewer{log: log}
}

// Review is an admission.Review for the creation and update of VirtualMachines.
func (r *Reviewer) Review(request *admission.Request) (admission.Verdict, error) {
	if request.Resource.Resource != "virtualmachines" || request.SubResource != "" ||
		request.Operation != admission.Create && request.Operation != admission.Update {
		return admission.Allow("imds-webhook reviews the creation and update of virtualmachines, not " + request.Action() + ": check the rules of its configuration"), nil
	}
	vm, old := request.Object, request.OldObject
	// A VM on its way out is updated to drop its finalizers: nothing of ours
	// may hold that up.
	if jsontree.Lookup(vm, "metadata", "deletionTimestamp") != nil {
		return admission.Allow(), nil
	}
	if len(metadataAnnotations(vm)) == 0 && len(templateAnnotations(vm)) == 0 && len(metadataAnnotations(old)) == 0 {
		return admission.Allow(), nil
	}

	updated := jsontree.Clone(vm)
	warnings, err := syncTemplate(updated, old)
	if err != nil {
		return r.refuse(request, err.Error()), nil
	}
	problems := annotation.Problems(templateAnnotations(updated))
	if enabled, _ := annotation.IsEnabled(templateAnnotations(updated)); enabled {
		way := network.WayOf(templateSpec(updated), templateAnnotations(updated))
		problems = append(problems, way.Problems...)
		warnings = append(warnings, way.Warnings...)
	}
	if problems != nil && request.Operation == admission.Update && isUnchanged(vm, old) {
		// It came in before the rules did. Refusing it now would stop every
		// controller that updates the VM for reasons of its own.
		return admission.Allow("IMDS: " + annotation.Join(problems)), nil
	}
	if problems != nil {
		return r.refuse(request, annotation.Join(problems)), nil
	}
	patch := jsontree.Diff(vm, updated)
	if patch != nil {
		r.log.Info("virtual machine's annotations copied to its template", "namespace", request.Namespace, "vm", request.ObjectName())
	}
	return admission.Verdict{Allowed: true, Patch: patch, Warnings: warnings}, nil
}

func (r *Reviewer) refuse(request *admission.Request, reason string) admission.Verdict {
	r.log.Warn("virtual machine refused", "namespace", request.Namespace, "vm", request.ObjectName(), "reason", reason)
	return admission.Deny(reason)
}

// metadataAnnotations returns the imds.kubevirt.io/ annotations of the VM.
func metadataAnnotations(vm jsontree.Object) jsontree.Object {
	return annotation.Select(jsontree.LookupObject(vm, "metadata", "annotations"))
}

// templateAnnotations returns the imds.kubevirt.io/ annotations of the VM's
// template.
func templateAnnotations(vm jsontree.Object) jsontree.Object {
	return annotation.Select(jsontree.LookupObject(vm, "spec", "template", "metadata", "annotations"))
}

// isUnchanged reports whether an update leaves alone all that is checked here.
func isUnchanged(vm, old jsontree.Object) bool {
	return reflect.DeepEqual(metadataAnnotations(vm), metadataAnnotations(old)) &&
		reflect.DeepEqual(templateAnnotations(vm), templateAnnotations(old)) &&
		network.Same(templateSpec(vm), templateSpec(old))
}

// templateSpec returns what the spec of the VM's VirtualMachineInstance will be.
func templateSpec(vm jsontree.Object) jsontree.Object {
	return jsontree.LookupObject(vm, "spec", "template", "spec")
}
