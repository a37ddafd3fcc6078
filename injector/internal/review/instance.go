package review

import (
	"strconv"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// Instance is a Func for VirtualMachineInstances, whoever made them. It leaves on the instance how the guest
// reaches IMDS: the review of the pod acts on that.
func (r *Reviewer) Instance(request *Request) Verdict {
	return r.expect(r.instance, request, "virtualmachineinstances", Create, Update)
}

func (r *Reviewer) instance(request *Request) Verdict {
	object := request.Object
	found := readAnnotations(request.metadata["annotations"])
	if len(found) == 0 || found.decline() {
		return Allow()
	}

	// It is ours when another webhook has changed the instance, or when a backup is restored.
	foundBefore := readAnnotations(request.OldObject.Get("metadata", "annotations"))
	now := newSubject(found.without(annotation.Verdict()...), object.Get("spec"))
	old := newSubject(foundBefore.without(annotation.Verdict()...), request.OldObject.Get("spec"))
	verdict, way, changed := r.judge(request, now, old)
	if !verdict.Allowed {
		return verdict
	}

	before, _ := object.Part(verdictPart).(jsontree.Object)
	after := jsontree.Clone(before)
	written := verdictOf(now, way)
	for _, name := range annotation.Verdict() {
		if found[name] != foundBefore[name] && found.has(name) && found[name] != (annotation.Value{Text: written[name]}) {
			verdict.Warnings = append(verdict.Warnings, "the webhook writes annotation "+name+": your value "+found[name].String()+" is replaced")
		}
	}
	annotate(after, written)
	if changed {
		verdict.Warnings = append(verdict.Warnings, "a running instance takes changed imds.kubevirt.io/ annotations at its next live migration; a restart takes those of the VM")
	}
	if verdict = verdict.change(before, after); verdict.Patch != nil {
		r.logOf(request).Info("virtual machine instance judged", "vmi", request.ObjectName(),
			"wiring", written[annotation.Wiring], "bridge", written[annotation.PreferredBridge], "port", written[annotation.RedirectPort], "reason", written[annotation.Reason])
	}
	return verdict
}

// verdictPart is what is decoded of an instance.
var verdictPart = jsontree.Object{"metadata": jsontree.Object{"annotations": jsontree.Members(annotation.Verdict()...)}}

// verdictOf returns the annotations that an instance is to have; empty: not this one.
func verdictOf(s subject, w wiring) map[string]string {
	verdict := map[string]string{annotation.Wiring: "", annotation.PreferredBridge: "", annotation.Reason: "", annotation.RedirectPort: ""}
	problems := s.problems
	if s.meant.ask() {
		problems = w.problems
	}
	switch {
	case !s.annotations.has(annotation.Enabled): // an unknown name brought it here
	case !s.meant.ask() || problems != nil:
		verdict[annotation.Wiring], verdict[annotation.Reason] = annotation.WiringNone, join(problems)
	case w.redirectPort != 0:
		verdict[annotation.Wiring], verdict[annotation.RedirectPort] = annotation.WiringRedirect, strconv.Itoa(w.redirectPort)
	default:
		verdict[annotation.Wiring], verdict[annotation.PreferredBridge] = annotation.WiringBridge, w.bridge
	}
	return verdict
}
