package checks

import (
	"context"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
)

// outageChecks are about VMs while no replica of the webhook runs.
func outageChecks(in *installation) []suite.Check {
	return []suite.Check{
		{Name: "outage/not-asked", Proves: "without the webhook, pods, VMs and instances that did not ask are created", Run: in.admitsOthersAlone},
		{Name: "outage/asked", Proves: "without the webhook, those that asked are refused, and the message names it", Run: in.refusesAlone},
		{Name: "outage/deletion", Proves: "without the webhook, a VM that asked can be deleted, finalizers and all", Run: in.deletesAlone},
		{Name: "outage/end", Proves: "once the webhook is back, it admits", Run: in.recovers},
	}
}

// leaving is a VM that asked while the webhook was there, and that a finalizer holds.
const leaving = "leaving"

// beginOutage scales the webhook to zero.
func (in *installation) beginOutage(ctx context.Context) error {
	vm := newVM(leaving, "masquerade", map[string]string{enabledAnnotation: "true"})
	vm.Finalizers = []string{"kubevirt-imds.example/hold"}
	if _, err := kube.Create(ctx, in.api, virtualMachinesPath, vm); err != nil {
		return err
	}
	in.undo = append(in.undo, in.deleteLeaving)
	pods, err := in.webhookPods(ctx)
	if err != nil {
		return err
	}
	if err := in.scale(ctx, 0); err != nil {
		return err
	}
	return in.awaitGone(ctx, pods)
}

func (in *installation) admitsOthersAlone(t *suite.T) {
	t.Check(in.outage())
	in.leavesAlone("no-annotations", "disabled", "not-a-virt-launcher")(t)
	in.leavesVMAlone(t)
	in.leavesInstanceAlone(t)
}

func (in *installation) refusesAlone(t *suite.T) {
	t.Check(in.outage())
	_, err := in.admit(t.Context(), launcherPod(t, in.site, "masquerade"))
	expectRefusal(t, err, "pod.imds.kubevirt.io", webhook+"."+namespace+".svc")
	vm := newVM("asking", "masquerade", map[string]string{enabledAnnotation: "true"})
	_, err = kube.DryRun(t.Context(), in.api, virtualMachinesPath, vm)
	expectRefusal(t, err, "virtualmachine.imds.kubevirt.io", webhook+"."+namespace+".svc")
	t.Logf("the user sees: %v", err)
	_, err = kube.DryRun(t.Context(), in.api, instancesPath, newInstance("asking", "masquerade", map[string]string{enabledAnnotation: "true"}))
	expectRefusal(t, err, "virtualmachineinstance.imds.kubevirt.io", webhook+"."+namespace+".svc")
}

func (in *installation) deletesAlone(t *suite.T) {
	t.Check(in.outage())
	t.Check(in.deleteLeaving(t.Context()))
	_, err := kube.Get[virtualMachine](t.Context(), in.api, virtualMachinesPath+"/"+leaving)
	if !kube.IsNotFound(err) {
		t.Errorf("it is still there (%v)", err)
	}
}

// deleteLeaving deletes the VM, if it is there, and then removes the finalizer, as a controller does.
func (in *installation) deleteLeaving(ctx context.Context) error {
	path := virtualMachinesPath + "/" + leaving
	if err := in.api.Delete(ctx, path); kube.IsNotFound(err) {
		return nil
	} else if err != nil {
		return err
	}
	return in.api.Patch(ctx, path, kube.MergePatch, map[string]any{"metadata": map[string]any{"finalizers": nil}})
}

func (in *installation) recovers(t *suite.T) {
	t.Check(in.outage())
	t.Check(in.scale(t.Context(), in.replicas))
	t.Check(in.awaitAdmission(t.Context()))
}
