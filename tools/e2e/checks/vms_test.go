package checks

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
	"github.com/example/kubevirt-imds/tools/e2e/results"
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

// instance is kubevirt.io/v1's VirtualMachineInstance, as far as the webhook reads it.
type instance struct {
	metav1.TypeMeta
	metav1.ObjectMeta `json:"metadata"`
	Spec              map[string]any `json:"spec"`
}

const redirectAnnotation = prefix + "redirect-port"

// newInstance returns what KubeVirt makes of a VM that is switched on.
func newInstance(name, binding string, annotations map[string]string) *instance {
	return &instance{
		TypeMeta:   metav1.TypeMeta{APIVersion: "kubevirt.io/v1", Kind: "VirtualMachineInstance"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations},
		Spec:       newVM(name, binding, nil).Spec.Template.Spec,
	}
}

// testInstances is about what the API server stores of a VirtualMachineInstance, whoever made it.
func (in *installation) testInstances(t *testing.T) {
	in.check(t, "instances/redirected", "an instance whose pod network is bound by passt gets the port of the redirection, and no other one", in.redirectsPasst)
	in.check(t, "instances/refused", "wrong annotations on an instance that no VM stands for are refused", in.refusesInstance)
	in.check(t, "instances/not-asked", "an instance that did not ask, or declined, is left alone", in.leavesInstanceAlone)
}

func (in *installation) redirectsPasst(t *testing.T) {
	ctx := t.Context()
	own := map[string]string{enabledAnnotation: "true", redirectAnnotation: "22"}
	in.expectRedirection(ctx, t, newInstance("bridged", "masquerade", own), "")
	if in.cluster == nil {
		t.Logf("without passt: KubeVirt itself takes that binding where its feature gate is on")
		return
	}
	in.expectRedirection(ctx, t, newInstance("by-passt", "passtBinding", map[string]string{enabledAnnotation: "true"}), "60080")
	in.expectRedirection(ctx, t, newInstance("by-passt", "passtBinding", own), "60080")
}

func (in *installation) expectRedirection(ctx context.Context, t *testing.T, vmi *instance, want string) {
	stored, err := kube.DryRun(ctx, in.api, instancesPath, vmi)
	check(t, err)
	if got := stored.Annotations[redirectAnnotation]; got != want {
		t.Errorf("%s is redirected to port %q, want %q", vmi.Name, got, want)
	}
}

func (in *installation) refusesInstance(t *testing.T) {
	vmi := newInstance("misspelt", "masquerade", map[string]string{prefix + "enable": "true"})
	_, err := kube.DryRun(t.Context(), in.api, instancesPath, vmi)
	expectRefusal(t, err, prefix+"enable", "nearest known name is "+enabledAnnotation)
}

// leavesInstanceAlone sends what the webhook would refuse or change, if it were asked.
func (in *installation) leavesInstanceAlone(t *testing.T) {
	for _, annotations := range []map[string]string{
		{"example.org/owner": "team-a"},
		{enabledAnnotation: "false", redirectAnnotation: "22", hopLimitAnnotation: "none"},
	} {
		stored, err := kube.DryRun(t.Context(), in.api, instancesPath, newInstance("not-asked", "masquerade", annotations))
		check(t, err)
		for name, want := range annotations {
			if got := stored.Annotations[name]; got != want {
				t.Errorf("its annotation %s is now %q, was %q", name, got, want)
			}
		}
	}
}

const (
	// largeCount of annotations are 938 KiB, near to the most that etcd stores.
	largeCount = 80000
	// largeRatio bounds the time of a write in units of the time of the same write of a kind that no webhook has.
	// Both are made in turn, so that a busy machine slows both.
	largeRatio = 3
	// largeRounds of writes are made, and the fastest of them counts.
	largeRounds = 2
)

// large is an object that has its annotations where a VM has those of its instances. As an Issuer it is of a kind that
// no webhook of the product is called for.
type large struct {
	kind, apiVersion, collection string
	create, update               time.Duration
}

// writesLarge creates by a dry run, and updates a stored object, both with all the annotations: whoever made it has the
// API server keep none of the fields' owners, which would take it beyond what etcd stores.
func (in *installation) writesLarge(t *testing.T) {
	check(t, in.outage())
	vm := &large{kind: "VirtualMachine", apiVersion: "kubevirt.io/v1", collection: virtualMachinesPath}
	reference := &large{kind: "Issuer", apiVersion: certManagerGroup + "/v1", collection: "/apis/" + certManagerGroup + "/v1/namespaces/" + tenant + "/issuers"}
	for _, l := range []*large{vm, reference} {
		check(t, l.store(t, in))
	}
	for range largeRounds {
		for _, l := range []*large{vm, reference} {
			check(t, l.write(t.Context(), in))
		}
	}
	results.Figure(t, "%.1f and %.1f times as long", vm.create.Seconds()/reference.create.Seconds(), vm.update.Seconds()/reference.update.Seconds())
	t.Logf("CREATE takes %s, of an Issuer %s; UPDATE %s, of an Issuer %s", vm.create, reference.create, vm.update, reference.update)
	if vm.create > largeRatio*reference.create || vm.update > largeRatio*reference.update {
		t.Errorf("want at most %d times as long", largeRatio)
	}
}

func (l *large) object(name string, annotations map[string]string) any {
	return map[string]any{
		"kind": l.kind, "apiVersion": l.apiVersion, "metadata": map[string]any{"name": name},
		"spec": map[string]any{"template": map[string]any{"metadata": map[string]any{"annotations": annotations}}},
	}
}

func largeAnnotations() map[string]string {
	annotations := map[string]string{}
	for i := range largeCount {
		annotations[fmt.Sprintf("a%05d", i)] = ""
	}
	return annotations
}

// store makes the object that write updates.
func (l *large) store(t *testing.T, in *installation) error {
	empty := l.object("large", nil)
	if _, err := kube.Create(t.Context(), in.api, l.collection, &empty); err != nil {
		return err
	}
	path := l.collection + "/large"
	t.Cleanup(func() { check(t, in.api.Delete(context.Background(), path)) })
	noOwners := map[string]any{"metadata": map[string]any{"managedFields": []any{metav1.ManagedFieldsEntry{}}}}
	if err := in.api.Patch(t.Context(), path, kube.MergePatch, noOwners); err != nil {
		return err
	}
	return in.api.Patch(t.Context(), path, kube.MergePatch, l.object("large", largeAnnotations()))
}

// write makes both writes and keeps the shortest times.
func (l *large) write(ctx context.Context, in *installation) error {
	full := l.object("large-too", largeAnnotations())
	begin := time.Now()
	if _, err := kube.DryRun(ctx, in.api, l.collection, &full); err != nil {
		return err
	}
	created := time.Now()
	label := map[string]any{"metadata": map[string]any{"labels": map[string]any{"example.org/round": fmt.Sprint(created.UnixNano())}}}
	if err := in.api.Patch(ctx, l.collection+"/large", kube.MergePatch, label); err != nil {
		return err
	}
	l.create, l.update = shortest(l.create, created.Sub(begin)), shortest(l.update, time.Since(created))
	return nil
}

// shortest is the shorter time, where zero is none yet.
func shortest(a, b time.Duration) time.Duration {
	if a == 0 {
		return b
	}
	return min(a, b)
}
