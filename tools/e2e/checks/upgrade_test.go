package checks

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
)

const (
	// earlierCommit is the last one whose instances have no verdict, and earlierTag the tag of its images.
	earlierCommit = "acfdd08b1f6b46a42d9dbcac0e694a1c3beb6108"
	earlierTag    = "earlier"

	wiringAnnotation  = "verdict." + prefix + "wiring"
	networkAnnotation = prefix + "network"
	migrationJobName  = "kubevirt.io/migrationJobName"
)

// bindings of the VMs that an upgrade finds, with the verdict of this version's webhook.
var bindings = map[string]string{"masquerade": "bridge", "bridge": "bridge", "passtBinding": "redirect"}

// upgrade is the way from the earlier version to this one, and back. The same VMs go all of it.
type upgrade struct {
	*site
	earlier, present *installation
	forward          func(*testing.T) // goForward, once
	upgraded         bool             // it came to its end
}

// newUpgrade is about the overlay kind. What an overlay differs in is not about objects that are there.
func newUpgrade(t *testing.T, s *site) *upgrade {
	earlier := *s
	earlier.folder = filepath.Join(s.folder, earlierTag)
	u := &upgrade{site: s, earlier: newInstallation(t.Context(), &earlier, kind), present: newInstallation(t.Context(), s, kind)}
	u.present.subject = "upgrade"
	var once sync.Once
	u.forward = func(t *testing.T) { once.Do(func() { u.goForward(t) }) }
	return u
}

// goForward installs the earlier version, has it admit VMs, and upgrades.
func (u *upgrade) goForward(t *testing.T) {
	ctx := t.Context()
	u.needEarlier(t)
	u.makeEarlier(t)
	var err error
	u.earlier.before, err = u.takeSnapshot(ctx)
	check(t, err)
	check(t, u.earlier.apply(ctx))
	for binding := range bindings {
		u.expectServed(t, u.earlier, u.start(t, "earlier", binding))
	}
	u.start(t, "idle", "masquerade")

	u.replace(t, u.present)
	check(t, u.awaitVersion(ctx, true))
	if u.present.serverImage == u.earlier.serverImage {
		t.Fatalf("both versions inject %s", u.present.serverImage)
	}
	u.writeAlone(t)
	for binding, wiring := range bindings {
		u.migrate(t, u.present, "earlier", binding)
		vmi := u.restart(t, u.present, "earlier", binding)
		if got := vmi.Annotations[wiringAnnotation]; got != wiring {
			t.Errorf("%s: the new instance's verdict is %q, want %q", vmi.Name, got, wiring)
		}
	}
	u.upgraded = true
}

// writeAlone shows that KubeVirt can write an instance of the earlier version, which has no verdict, while no replica
// runs. Its verdict comes with a later write.
func (u *upgrade) writeAlone(t *testing.T) {
	ctx, path := t.Context(), instancesPath+"/idle-masquerade"
	pods, err := u.present.webhookPods(ctx)
	check(t, err)
	check(t, u.present.scale(ctx, 0))
	check(t, u.present.awaitGone(ctx, pods))
	write := func(phase string) *instance {
		check(t, u.api.Patch(ctx, path, kube.MergePatch, map[string]any{"status": map[string]any{"phase": phase}}))
		vmi, err := kube.Get[instance](ctx, u.api, path)
		check(t, err)
		return vmi
	}
	write("Scheduled")
	check(t, u.present.scale(ctx, u.present.replicas))
	check(t, u.present.awaitAdmission(ctx))
	if vmi := write("Running"); vmi.Annotations[wiringAnnotation] != bindings["masquerade"] {
		t.Errorf("after a write of its status the instance's annotations are %v", vmi.Annotations)
	}
}

// goBack has this version admit VMs, installs the earlier one over it, and in the end, whatever came of it, deletes it.
func (u *upgrade) goBack(t *testing.T) {
	ctx := t.Context()
	u.needEarlier(t)
	u.forward(t)
	t.Cleanup(func() { u.earlier.remove(t) })
	if !u.upgraded {
		t.Fatalf("there was no upgrade: see the check forward")
	}
	for binding := range bindings {
		u.expectServed(t, u.present, u.start(t, "later", binding))
	}
	named := newVM("later-named", "masquerade", map[string]string{enabledAnnotation: "true", networkAnnotation: "default"})
	_, err := createUndo(ctx, u.earlier, virtualMachinesPath, named)
	check(t, err)
	u.expectServed(t, u.present, u.run(t, named.Name))

	u.replace(t, u.earlier)
	check(t, u.awaitVersion(ctx, false))
	for binding := range bindings {
		for _, made := range []string{"earlier", "later"} {
			u.migrate(t, u.earlier, made, binding)
			u.restart(t, u.earlier, made, binding)
		}
	}
	// The earlier version does not know the annotation, and so refuses the pods: it has to be removed before a
	// rollback. The VM can be stopped and changed all the same.
	vmi, err := kube.Get[instance](ctx, u.api, instancesPath+"/"+named.Name)
	check(t, err)
	_, err = u.earlier.admit(ctx, u.render(t, vmi))
	expectRefusal(t, err, networkAnnotation)
	u.change(t, named.Name)
	check(t, u.api.Patch(ctx, virtualMachinesPath+"/"+named.Name, kube.MergePatch,
		map[string]any{"metadata": map[string]any{"annotations": map[string]any{networkAnnotation: nil}}}))
	check(t, u.api.Delete(ctx, instancesPath+"/"+named.Name))
	u.expectServed(t, u.earlier, u.run(t, named.Name))
}

// needEarlier ends the check where the repository does not have the earlier version.
func (u *upgrade) needEarlier(t *testing.T) {
	err := u.git(t.Context(), "cat-file", "-e", earlierCommit+"^{commit}")
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatalf("the clone has not the whole history: %v", err)
	default:
		t.Skipf("left out: the clone has not the whole history (git fetch --unshallow): %v", err)
	}
}

func (u *upgrade) git(ctx context.Context, args ...string) error {
	output, err := exec.CommandContext(ctx, "git", append([]string{"-C", u.repository}, args...)...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), err, output)
	}
	return err
}

// makeEarlier takes the earlier version out of the repository, and gives its images to the node.
func (u *upgrade) makeEarlier(t *testing.T) {
	ctx, folder := t.Context(), u.earlier.folder
	check(t, u.git(ctx, "archive", "--format=tar", "--output="+folder+".tar", earlierCommit))
	check(t, os.Mkdir(folder, 0o755))
	if output, err := exec.CommandContext(ctx, "tar", "--extract", "--file="+folder+".tar", "--directory="+folder).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, output)
	}
	text, names := "images:\n", map[string]string{}
	for _, made := range images {
		text += fmt.Sprintf("- {name: %s, newTag: %s}\n", made.name, earlierTag)
		// What a container runtime takes a name without registry for.
		names[made.name] = "docker.io/library/" + made.name + ":" + earlierTag
	}
	check(t, u.loadImages(ctx, os.Stderr, folder, names))
	file, err := os.OpenFile(filepath.Join(u.earlier.path(), "kustomization.yaml"), os.O_APPEND|os.O_WRONLY, 0)
	check(t, err)
	defer file.Close()
	_, err = file.WriteString(text)
	check(t, err)
}

// replace installs a version over the other one, and returns when that has ended: until then it answers who is still
// connected.
func (u *upgrade) replace(t *testing.T, in *installation) {
	pods, err := in.webhookPods(t.Context())
	check(t, err)
	check(t, in.apply(t.Context()))
	check(t, in.awaitGone(t.Context(), pods))
}

// awaitVersion returns when the API server asks the version whose instances have a verdict, or the other one.
func (u *upgrade) awaitVersion(ctx context.Context, verdict bool) error {
	vmi := newInstance("asking", "masquerade", map[string]string{enabledAnnotation: "true"})
	return kube.Poll(ctx, patience, func(ctx context.Context) (string, error) {
		stored, err := kube.DryRun(ctx, u.api, instancesPath, vmi)
		switch {
		case isUnreached(err):
			return err.Error(), nil
		case err == nil && (stored.Annotations[wiringAnnotation] != "") != verdict:
			return fmt.Sprintf("a new instance's annotations are %v", stored.Annotations), nil
		}
		return "", err
	})
}

// start creates a VM that asks, and what KubeVirt creates of it.
func (u *upgrade) start(t *testing.T, made, binding string) *instance {
	vm := newVM(made+"-"+strings.ToLower(binding), binding, map[string]string{enabledAnnotation: "true"})
	if binding != "passtBinding" { // where it is refused
		vm.Annotations[hopLimitAnnotation] = "2"
	}
	vm.Spec.RunStrategy = "Always"
	_, err := createUndo(t.Context(), u.earlier, virtualMachinesPath, vm)
	check(t, err)
	return u.run(t, vm.Name)
}

// run creates the instance of a stored VM, as KubeVirt does. Both are gone when the earlier version is removed.
func (u *upgrade) run(t *testing.T, name string) *instance {
	vm, err := kube.Get[virtualMachine](t.Context(), u.api, virtualMachinesPath+"/"+name)
	check(t, err)
	vmi := newInstance(name, "", vm.Spec.Template.Metadata.Annotations)
	vmi.Spec = vm.Spec.Template.Spec
	stored, err := createUndo(t.Context(), u.earlier, instancesPath, vmi)
	check(t, err)
	return stored
}

// migrate has KubeVirt migrate an instance: in the ordinary case, its first migration, it annotates the instance before
// it renders the target's pod.
func (u *upgrade) migrate(t *testing.T, in *installation, made, binding string) {
	path := instancesPath + "/" + made + "-" + strings.ToLower(binding)
	target := func() *instance {
		vmi, err := kube.Get[instance](t.Context(), u.api, path)
		check(t, err)
		vmi.Annotations[migrationJobName] = "evacuation"
		return vmi
	}
	vmi := target()
	if binding == "bridge" && vmi.Annotations[wiringAnnotation] == "" && in == u.present {
		// Nothing in such a pod tells the binding: it is not served, but neither is it refused.
		_, err := in.admit(t.Context(), u.render(t, vmi))
		check(t, err)
	} else {
		u.expectServed(t, in, vmi)
	}
	check(t, u.api.Patch(t.Context(), path, kube.MergePatch,
		map[string]any{"metadata": map[string]any{"annotations": map[string]any{"kubevirt.io/nonroot": "true"}}}))
	u.expectServed(t, in, target())
}

// restart stops a VM, which is changed, and starts it again.
func (u *upgrade) restart(t *testing.T, in *installation, made, binding string) *instance {
	name := made + "-" + strings.ToLower(binding)
	u.change(t, name)
	check(t, u.api.Delete(t.Context(), instancesPath+"/"+name))
	vmi := u.run(t, name)
	u.expectServed(t, in, vmi)
	return vmi
}

// change writes what users and KubeVirt write to a VM.
func (u *upgrade) change(t *testing.T, name string) {
	for _, change := range []any{
		map[string]any{"metadata": map[string]any{"labels": map[string]any{"example.org/tier": "db"}}},
		map[string]any{"spec": map[string]any{"runStrategy": "Halted"}},
		map[string]any{"status": map[string]any{"ready": false}},
		map[string]any{"spec": map[string]any{"runStrategy": "Always"}},
	} {
		if err := u.api.Patch(t.Context(), virtualMachinesPath+"/"+name, kube.MergePatch, change); err != nil {
			t.Errorf("%s: %v: %v", name, change, err)
		}
	}
}

// expectServed fails the check unless an instance's pod has the sidecars of a version, and its redirection.
func (u *upgrade) expectServed(t *testing.T, in *installation, vmi *instance) {
	pod, err := in.admit(t.Context(), u.render(t, vmi))
	if err != nil {
		t.Errorf("%s: %v", vmi.Name, err)
		return
	}
	found := sidecars(pod)
	if len(found) != 2 || found[0].Image != in.serverImage || found[1].Image != in.serverImage {
		t.Errorf("%s: its sidecars are %v, want two of %s; its annotations are %v", vmi.Name, names(found), in.serverImage, pod.Annotations)
	}
	_, passt := firstInterface(vmi)["passtBinding"]
	if redirected := pod.Annotations[redirectAnnotation] != ""; redirected != passt {
		t.Errorf("%s: its pod is redirected: %t; its annotations are %v", vmi.Name, redirected, pod.Annotations)
	}
}

// render is the pod that KubeVirt makes of an instance.
func (u *upgrade) render(t *testing.T, vmi *instance) *corev1.Pod {
	pod := launcherPod(t, u.site, "masquerade")
	delete(pod.Annotations, enabledAnnotation)
	if firstInterface(vmi)["masquerade"] == nil {
		delete(pod.Annotations, "istio.io/reroute-virtual-interfaces")
		delete(pod.Annotations, "traffic.sidecar.istio.io/kubevirtInterfaces")
	}
	maps.Copy(pod.Annotations, vmi.Annotations)
	pod.Annotations["kubevirt.io/domain"] = vmi.Name
	pod.OwnerReferences[0].Name, pod.OwnerReferences[0].UID = vmi.Name, vmi.UID
	return pod
}

func firstInterface(vmi *instance) map[string]any {
	devices := vmi.Spec["domain"].(map[string]any)["devices"].(map[string]any)
	return devices["interfaces"].([]any)[0].(map[string]any)
}
