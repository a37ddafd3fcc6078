package checks

import (
	"context"
	"encoding/json"
	"maps"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
)

// virtualMachine is kubevirt.io/v1's VirtualMachine, as far as the webhook reads it.
type virtualMachine struct {
	metav1.TypeMeta
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		RunStrategy string `json:"runStrategy"`
		Template    struct {
			Metadata metav1.ObjectMeta `json:"metadata"`
			Spec     map[string]any    `json:"spec"`
		} `json:"template"`
	} `json:"spec"`
}

const virtualMachinesPath = "/apis/kubevirt.io/v1/namespaces/" + tenant + "/virtualmachines"

// newVM returns a VM that is switched off, with one NIC in a binding of KubeVirt's.
func newVM(name, binding string, annotations map[string]string) *virtualMachine {
	vm := &virtualMachine{
		TypeMeta:   metav1.TypeMeta{APIVersion: "kubevirt.io/v1", Kind: "VirtualMachine"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations},
	}
	nic := map[string]any{"name": "default", binding: map[string]any{}}
	vm.Spec.RunStrategy = "Halted"
	vm.Spec.Template.Spec = map[string]any{
		"domain": map[string]any{
			"devices": map[string]any{"interfaces": []any{nic}},
			"memory":  map[string]any{"guest": "64Mi"},
		},
		"networks": []any{map[string]any{"name": "default", "pod": map[string]any{}}},
	}
	return vm
}

// testVirtualMachines is about what the API server stores of a VirtualMachine.
func (in *installation) testVirtualMachines(t *testing.T) {
	in.check(t, "vms/examples", "the example VMs are accepted, their annotations copied to the template", in.acceptsExamples)
	in.check(t, "vms/changed", "an annotation that kubectl apply adds, changes or removes on a VM is so in its template", in.followsChanges)
	in.check(t, "vms/refused", "wrong annotations on a VM are refused at kubectl apply, where the user sees why", in.refusesVM)
	in.check(t, "vms/not-asked", "a VM without annotations of the product gets none", in.leavesVMAlone)
}

func (in *installation) acceptsExamples(t *testing.T) {
	output, err := in.kubectl(t.Context(), "create", "--namespace="+tenant, "--dry-run=server", "--output=json",
		"--filename="+filepath.Join(in.folder, "kustomize", "examples"))
	check(t, err)
	// A list of which kubectl writes one object after another.
	count := 0
	for objects := json.NewDecoder(strings.NewReader(output)); objects.More(); {
		var vm virtualMachine
		check(t, objects.Decode(&vm))
		if vm.Kind != "VirtualMachine" {
			continue
		}
		count++
		if vm.Annotations[enabledAnnotation] != "true" {
			t.Errorf("%s does not ask for the product", vm.Name)
		}
		expectCopied(t, &vm)
	}
	t.Logf("%d VMs", count)
	if count == 0 {
		t.Errorf("there is no VM among the examples")
	}
}

func (in *installation) followsChanges(t *testing.T) {
	ctx := t.Context()
	path := virtualMachinesPath + "/changing"
	t.Cleanup(func() { check(t, in.api.Delete(context.Background(), path)) })
	for _, annotations := range []map[string]string{
		nil,
		{enabledAnnotation: "true", hopLimitAnnotation: "1"},
		{enabledAnnotation: "true", hopLimitAnnotation: "2"},
		{enabledAnnotation: "true"},
		nil,
	} {
		manifest, err := json.Marshal(newVM("changing", "masquerade", annotations))
		check(t, err)
		_, err = in.kubectlWith(ctx, string(manifest), "apply", "--namespace="+tenant, "--filename=-")
		check(t, err)
		vm, err := kube.Get[virtualMachine](ctx, in.api, path)
		check(t, err)
		expectCopied(t, vm)
		if got := ours(vm.Annotations); len(got) != len(annotations) {
			t.Errorf("its annotations are %v, want %v", got, annotations)
		}
	}
}

// expectCopied fails the check unless a VM has the same annotations of the product in both places.
func expectCopied(t *testing.T, vm *virtualMachine) {
	if above, below := ours(vm.Annotations), ours(vm.Spec.Template.Metadata.Annotations); !maps.Equal(above, below) {
		t.Errorf("%s: its annotations are %v, its template's %v", vm.Name, above, below)
	}
}

func ours(annotations map[string]string) map[string]string {
	found := map[string]string{}
	for name, value := range annotations {
		if strings.HasPrefix(name, prefix) {
			found[name] = value
		}
	}
	return found
}

func (in *installation) refusesVM(t *testing.T) {
	for _, test := range []struct {
		name, binding string
		annotations   map[string]string
		want          []string
	}{
		{"wrong-value", "masquerade", map[string]string{enabledAnnotation: "yes"}, []string{enabledAnnotation, "yes", `"true" or "false"`}},
		{"unknown-name", "masquerade", map[string]string{prefix + "enable": "true"}, []string{prefix + "enable", "nearest known name is " + enabledAnnotation}},
		{"no-way", "sriov", map[string]string{enabledAnnotation: "true"}, []string{"sriov only", "use masquerade, bridge or passt"}},
		{"redirected", "masquerade", map[string]string{enabledAnnotation: "true", redirectAnnotation: "22"}, []string{redirectAnnotation, "written by the webhook"}},
	} {
		manifest, err := json.Marshal(newVM(test.name, test.binding, test.annotations))
		check(t, err)
		_, err = in.kubectlWith(t.Context(), string(manifest), "apply", "--namespace="+tenant, "--filename=-")
		if err == nil {
			t.Errorf("%s: it is accepted", test.name)
			check(t, in.api.Delete(t.Context(), virtualMachinesPath+"/"+test.name))
			continue
		}
		for _, word := range test.want {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: the user does not see %s, but %v", test.name, word, err)
			}
		}
	}
}

func (in *installation) leavesVMAlone(t *testing.T) {
	sent := newVM("not-asked", "masquerade", map[string]string{"example.org/owner": "team-a"})
	sent.Spec.Template.Metadata.Annotations = map[string]string{"example.org/color": "blue"}
	stored, err := kube.DryRun(t.Context(), in.api, virtualMachinesPath, sent)
	check(t, err)
	above, below := stored.Annotations, stored.Spec.Template.Metadata.Annotations
	if len(ours(above)) > 0 || len(ours(below)) > 0 {
		t.Errorf("it has annotations of the product: %v, its template %v", ours(above), ours(below))
	}
	if above["example.org/owner"] != "team-a" || below["example.org/color"] != "blue" {
		t.Errorf("its own annotations are now %v and %v", above, below)
	}
}
