package checks

import (
	"context"
	"testing"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
)

// testOutage is about VMs while no replica of the webhook runs.
func (in *installation) testOutage(t *testing.T) {
	in.check(t, "outage/not-asked", "without the webhook, pods, VMs and instances that did not ask are created", in.admitsOthersAlone)
	in.check(t, "outage/asked", "without the webhook, those that asked are refused, and the message names it", in.refusesAlone)
	in.check(t, "outage/changes", "without the webhook, a VM that asked is stopped, labelled, given a finalizer, and declines", in.changesAlone)
	in.check(t, "outage/deletion", "without the webhook, a VM that asked can be deleted, finalizers and all", in.deletesAlone)
	if in.cluster != nil { // where KubeVirt runs, an instance is a VM that starts
		in.check(t, "outage/instance", "without the webhook, KubeVirt writes the status of an instance that asked, labels it, deletes it", in.runsOnAlone)
	}
	if in.once {
		in.check(t, "outage/large", "creating and updating a VM with 80,000 annotations that did not ask takes at most 3 times as long as without a webhook", in.writesLarge)
	}
	in.check(t, "outage/end", "once the webhook is back, it admits", in.recovers)
}

// leaving is a VM, and an instance, that asked while the webhook was there. A finalizer holds the VM.
const (
	leaving          = "leaving"
	holdingFinalizer = "kubevirt-imds.example/hold"
)

// beginOutage scales the webhook to zero.
func (in *installation) beginOutage(ctx context.Context) error {
	vm := newVM(leaving, "masquerade", map[string]string{enabledAnnotation: "true"})
	vm.Finalizers = []string{holdingFinalizer}
	vm.Spec.RunStrategy = "Manual" // KubeVirt, where it runs, starts nothing
	if _, err := kube.Create(ctx, in.api, virtualMachinesPath, vm); err != nil {
		return err
	}
	in.undo = append(in.undo, in.deleteLeaving)
	if in.cluster != nil {
		if _, err := createUndo(ctx, in, instancesPath, newInstance(leaving, "masquerade", vm.Annotations)); err != nil {
			return err
		}
	}
	pods, err := in.webhookPods(ctx)
	if err != nil {
		return err
	}
	if err := in.scale(ctx, 0); err != nil {
		return err
	}
	return in.awaitGone(ctx, pods)
}

func (in *installation) admitsOthersAlone(t *testing.T) {
	check(t, in.outage())
	in.leavesAlone("no-annotations", "disabled", "not-a-virt-launcher")(t)
	in.leavesVMAlone(t)
	in.leavesInstanceAlone(t)
}

func (in *installation) refusesAlone(t *testing.T) {
	check(t, in.outage())
	_, err := in.admit(t.Context(), launcherPod(t, in.site, "masquerade"))
	expectRefusal(t, err, "pod.imds.kubevirt.io", webhook+"."+namespace+".svc")
	vm := newVM("asking", "masquerade", map[string]string{enabledAnnotation: "true"})
	_, err = kube.DryRun(t.Context(), in.api, virtualMachinesPath, vm)
	expectRefusal(t, err, "virtualmachine.imds.kubevirt.io", webhook+"."+namespace+".svc")
	t.Logf("the user sees: %v", err)
	_, err = kube.DryRun(t.Context(), in.api, instancesPath, newInstance("asking", "masquerade", map[string]string{enabledAnnotation: "true"}))
	expectRefusal(t, err, "virtualmachineinstance.imds.kubevirt.io", webhook+"."+namespace+".svc")
}

// changesAlone makes each change by a write of its own: a condition may let one pass and not the next.
func (in *installation) changesAlone(t *testing.T) {
	check(t, in.outage())
	for _, change := range []any{
		map[string]any{"spec": map[string]any{"runStrategy": "Halted"}},
		map[string]any{"metadata": map[string]any{"labels": map[string]any{"example.org/tier": "db"}}},
		map[string]any{"metadata": map[string]any{"annotations": map[string]any{"example.org/owner": "team-a"}}},
		map[string]any{"metadata": map[string]any{"finalizers": []string{holdingFinalizer, holdingFinalizer + "-longer"}}},
		map[string]any{"metadata": map[string]any{"annotations": map[string]any{enabledAnnotation: "false"}}},
	} {
		if err := in.api.Patch(t.Context(), virtualMachinesPath+"/"+leaving, kube.MergePatch, change); err != nil {
			t.Errorf("%v: %v", change, err)
		}
	}
}

// runsOnAlone writes what KubeVirt's controllers write: instances have no status of their own in the API.
func (in *installation) runsOnAlone(t *testing.T) {
	check(t, in.outage())
	path := instancesPath + "/" + leaving
	for _, change := range []any{
		map[string]any{"status": map[string]any{"phase": "Running", "nodeName": "node1"}},
		map[string]any{"metadata": map[string]any{"labels": map[string]any{"kubevirt.io/nodeName": "node1"}}},
		map[string]any{"metadata": map[string]any{"annotations": map[string]any{"kubevirt.io/nonroot": "true"}}},
	} {
		if err := in.api.Patch(t.Context(), path, kube.MergePatch, change); err != nil {
			t.Errorf("%v: %v", change, err)
		}
	}
	check(t, in.api.Delete(t.Context(), path))
}

func (in *installation) deletesAlone(t *testing.T) {
	check(t, in.outage())
	check(t, in.deleteLeaving(t.Context()))
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

func (in *installation) recovers(t *testing.T) {
	check(t, in.outage())
	check(t, in.scale(t.Context(), in.replicas))
	check(t, in.awaitAdmission(t.Context()))
}
