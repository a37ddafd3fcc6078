package checks

import (
	"context"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
)

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
