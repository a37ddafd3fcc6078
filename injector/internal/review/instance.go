package review

import (
	"strconv"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// Instance is an Func for the creation and update of
// VirtualMachineInstances, whoever made them. It leaves its verdict, how the
// guest reaches IMDS, on the instance: the review of the pod acts on that.
func (r *Reviewer) Instance(request *Request) (Verdict, error) {
	if verdict := expect(request, "virtualmachineinstances", Create, Update); verdict != nil {
		return *verdict, nil
	}
	object := request.Object
	if isBeingDeleted(object) {
		return Allow(), nil
	}
	found := readAnnotations(object.Get("metadata"))
	if len(found) == 0 || found.decline() {
		return Allow(), nil
	}

	// Ours when the API server asks again because of a change by another
	// webhook, or when a backup of the instance is restored.
	now := subject{found.without(annotation.RedirectPort), object.Get("spec")}
	old := subject{readAnnotations(request.OldObject.Get("metadata")).without(annotation.RedirectPort), request.OldObject.Get("spec")}
	judged := judge(request, withoutVerdict(now), withoutVerdict(old))
	if judged.refusals != nil {
		return r.refuse(request, join(judged.refusals)), nil
	}

	verdict := verdictOf(now.annotations, judged.wiring)
	before := object.Part(verdictPart).(jsontree.Object)
	after := jsontree.Clone(before)
	written := jsontree.LookupObject(after, "metadata", "annotations")
	for _, name := range annotation.Verdict() {
		wanted, isWanted := verdict[name]
		own, isOwn := found[name]
		if isOwn && own != (annotation.Value{Text: wanted}) && wasWritten(request, name, own) {
			judged.warnings = append(judged.warnings, "annotation "+name+" is written by the webhook: "+own.String()+" does not stay")
		}
		if isWanted {
			written[name] = wanted
		} else {
			delete(written, name)
		}
	}
	if judged.changed {
		judged.warnings = append(judged.warnings, "a running instance takes changed imds.kubevirt.io/ annotations at its next live migration; a restart takes those of the VM")
	}
	patch := jsontree.Diff(before, after)
	if patch != nil {
		r.log.Info("virtual machine instance judged", "namespace", request.Namespace, "vmi", request.ObjectName(),
			"wiring", verdict[annotation.Wiring], "bridge", verdict[annotation.PreferredBridge], "port", verdict[annotation.RedirectPort], "reason", verdict[annotation.Reason])
	}
	return Verdict{Allowed: true, Patch: patch, Warnings: judged.warnings}, nil
}

var verdictPart = annotationsAt(annotation.Verdict(), "metadata", "annotations")

func withoutVerdict(s subject) subject {
	return subject{s.annotations.without(annotation.Verdict()...), s.spec}
}

// wasWritten reports whether this request brings the annotation in.
func wasWritten(request *Request, name string, value annotation.Value) bool {
	return request.Operation == Create || readAnnotations(request.OldObject.Get("metadata"))[name] != value
}

// verdictOf returns the annotations that an instance is to have.
func verdictOf(a annotations, w wiring) map[string]string {
	meant, problems := a.understood()
	switch {
	case !a.has(annotation.Enabled):
		return nil // an unknown name brought it here
	case !meant.ask():
		return map[string]string{annotation.Wiring: annotation.WiringNone, annotation.Reason: join(problems)}
	case w.problems != nil:
		return map[string]string{annotation.Wiring: annotation.WiringNone, annotation.Reason: join(w.problems)}
	case w.redirectPort != 0:
		return map[string]string{annotation.Wiring: annotation.WiringRedirect, annotation.RedirectPort: strconv.Itoa(w.redirectPort)}
	default:
		return map[string]string{annotation.Wiring: annotation.WiringBridge, annotation.PreferredBridge: w.bridge}
	}
}
