package review

import (
	"fmt"
	"maps"
	"strings"
	"sync"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// vm is what is looked at of a VirtualMachine.
type vm struct {
	metadata, template annotations
	spec               jsontree.Value // of the instance to be
}

func readVM(object jsontree.Value) vm {
	template := object.Get("spec", "template")
	return vm{
		metadata: readAnnotations(object.Get("metadata", "annotations")),
		template: readAnnotations(template.Get("metadata", "annotations")),
		spec:     template.Get("spec"),
	}
}

func (v vm) subject() subject {
	both := maps.Clone(v.template)
	maps.Copy(both, v.metadata)
	return newSubject(both, v.spec)
}

// VirtualMachine is a Func for VirtualMachines. It carries the annotations from the VM's own metadata, where
// people write them, to the template, from where KubeVirt copies them.
func (r *Reviewer) VirtualMachine(request *Request) Verdict {
	return r.expect(r.virtualMachine, request, "virtualmachines", Create, Update)
}

func (r *Reviewer) virtualMachine(request *Request) Verdict {
	object := request.Object
	now, old := readVM(object), readVM(request.OldObject)
	if len(now.metadata)+len(now.template)+len(old.metadata) == 0 {
		return Allow()
	}

	before, _ := object.Part(templatePart).(jsontree.Object)
	after := jsontree.Clone(before)
	copied, err := copyToTemplate(object, after, now, old)
	if err != nil {
		return r.refuse(request, byTemplate, err.Error())
	}
	verdict, _, changed := r.judge(request, now.subject(), old.subject())
	if !verdict.Allowed {
		return verdict
	}
	verdict.Warnings = append(copied, verdict.Warnings...)
	if changed && object.Get("status", "created").IsTrue() {
		verdict.Warnings = append(verdict.Warnings, "the VM takes the changed imds.kubevirt.io/ annotations when it restarts")
	}
	if verdict = verdict.change(before, after); verdict.Patch != nil {
		r.logOf(request).Info("virtual machine's annotations copied to its template", "vm", request.ObjectName())
	}
	return verdict
}

// templatePath is where the template's annotations are, templatePart what is decoded of a VM.
var (
	templatePath = []string{"spec", "template", "metadata", "annotations"}
	templatePart = jsontree.Object{"spec": jsontree.Object{"template": jsontree.Object{"metadata": jsontree.Object{"annotations": jsontree.Members(annotation.ByUser()...)}}}}
)

// copyToTemplate sets the annotations of the VM's metadata on the template in tree, with a warning where
// somebody wrote another there. It is an error when the template has no place for them.
func copyToTemplate(object jsontree.Value, tree jsontree.Object, now, old vm) (warnings []string, err error) {
	stated := sync.OnceValues(func() (map[string]bool, bool) { return statedInTemplate(object) })
	for _, name := range annotation.ByUser() {
		wanted, isWanted := now.metadata[name]
		before, wasWanted := old.metadata[name]
		own, found := now.template[name]
		switch {
		case isWanted && own != wanted && !wanted.NotText && len(wanted.Text) <= maxValue:
			template, err := jsontree.Ensure(tree, templatePath...)
			if err != nil {
				return nil, err
			}
			if found && own != before {
				warnings = append(warnings, fmt.Sprintf("%s: %s of metadata.annotations replaces %s of spec.template.metadata.annotations", name, wanted, own))
			}
			template[name] = wanted.Text
		case !isWanted && wasWanted && found && own == before:
			if theirs, known := stated(); known && !theirs[name] {
				delete(jsontree.Lookup[jsontree.Object](tree, templatePath...), name)
			} else if !known {
				warnings = append(warnings, fmt.Sprintf("annotation %s stays in spec.template.metadata.annotations: remove it there too if the VM should no longer have it", name))
			}
		}
	}
	return warnings, nil
}

// statedInTemplate returns which of this project's annotations of the template the client states itself, and did
// not leave to the webhook, by what kubectl apply or a server-side apply leaves on the object; without that it is
// not known.
func statedInTemplate(object jsontree.Value) (names map[string]bool, known bool) {
	names = map[string]bool{}
	read := func(annotations jsontree.Value, prefix string) {
		known = true
		for key := range annotations.Members() {
			if name := strings.TrimPrefix(string(key), prefix); strings.HasPrefix(name, annotation.Prefix) {
				names[name] = true
			}
		}
	}
	for entry := range object.Get("metadata", "managedFields").Elements() {
		// Who applies something else, such as a label, says nothing of the template.
		template := entry.Get("fieldsV1", "f:spec", "f:template")
		if entry.Get("operation").String() == "Apply" && template != nil {
			read(template.Get("f:metadata", "f:annotations"), "f:")
		}
	}
	last := object.Get("metadata", "annotations", "kubectl.kubernetes.io/last-applied-configuration").String()
	if applied, err := jsontree.Parse([]byte(last)); err == nil {
		read(applied.Get("spec", "template", "metadata", "annotations"), "")
	}
	return names, known
}
