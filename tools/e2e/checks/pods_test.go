package checks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
)

// testPods is about what the API server would store of a virt-launcher pod.
func (in *installation) testPods(t *testing.T) {
	in.check(t, "pods/opted-in", "a VM's pod that asks gets both sidecars, last; nothing else in it changes", in.injectsOptedIn)
	in.check(t, "pods/dedicated-cpus", "a pod with dedicated CPUs stays Guaranteed", in.keepsGuaranteed)
	in.check(t, "pods/audiences", "each audience gets a projected token, with the lifetime asked for", in.addsAudiences)
	in.check(t, "pods/not-asked", "a pod that does not ask, or says no, gets nothing", in.leavesAlone("no-annotations", "disabled"))
	in.check(t, "pods/ephemeral", "a pod that only provisions a volume gets nothing", in.leavesAlone("ephemeral-provisioning"))
	in.check(t, "pods/injected-already", "a pod that has its sidecars keeps them, and gets no second pair", in.injectsOnce)
	in.check(t, "pods/wrong-value", "a wrong value on a pod, which a controller made, is taken as its strictest, and the pod says so", in.takesAsStrictest)
	in.check(t, "pods/all", "every pod of the webhook's unit tests gets the verdict that it gets there", in.agreesWithFixtures)
}

func (in *installation) injectsOptedIn(t *testing.T) { in.inject(t, "masquerade") }

func (in *installation) keepsGuaranteed(t *testing.T) {
	stored := in.inject(t, "dedicated-cpus")
	if stored.Status.QOSClass != corev1.PodQOSGuaranteed {
		t.Errorf("its QoS class is %s", stored.Status.QOSClass)
	}
}

// inject has a pod injected and compares it with the same pod when it does not ask.
func (in *installation) inject(t *testing.T, name string) *corev1.Pod {
	pod := launcherPod(t, in.site, name)
	injected, err := in.admit(t.Context(), pod)
	check(t, err)
	pod.Annotations[enabledAnnotation] = "false"
	plain, err := in.admit(t.Context(), pod)
	check(t, err)
	if len(sidecars(plain)) > 0 {
		t.Fatalf("the pod that says no has sidecars")
	}

	var names []string
	for _, container := range injected.Spec.InitContainers {
		names = append(names, container.Name)
	}
	if !slices.Equal(names[max(0, len(names)-2):], []string{initContainer, serverContainer}) {
		t.Fatalf("the init containers are %q, want %s and %s last", names, initContainer, serverContainer)
	}
	for _, container := range sidecars(injected) {
		if container.RestartPolicy == nil || *container.RestartPolicy != corev1.ContainerRestartPolicyAlways {
			t.Errorf("%s is not a native sidecar", container.Name)
		}
		if container.Image != in.serverImage {
			t.Errorf("the image of %s is %s, want %s, which the webhook's own pods have pulled", container.Name, container.Image, in.serverImage)
		}
	}
	if injected.Annotations[injectedAnnotation] != "true" {
		t.Errorf("the pod's annotation %s is %q", injectedAnnotation, injected.Annotations[injectedAnnotation])
	}
	if injected.Status.QOSClass != plain.Status.QOSClass {
		t.Errorf("its QoS class changes from %s to %s", plain.Status.QOSClass, injected.Status.QOSClass)
	}
	if before, after := describe(t, plain), describe(t, removeInjection(injected)); before != after {
		t.Errorf("more has changed:\n%s", difference(before, after))
	}
	return injected
}

// removeInjection returns a pod without what the webhook added.
func removeInjection(pod *corev1.Pod) *corev1.Pod {
	pod = pod.DeepCopy()
	pod.Spec.InitContainers = pod.Spec.InitContainers[:len(pod.Spec.InitContainers)-2]
	pod.Spec.Volumes = slices.DeleteFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == tokenVolume })
	if context := pod.Spec.SecurityContext; context != nil {
		context.Sysctls = slices.DeleteFunc(context.Sysctls, func(s corev1.Sysctl) bool { return s.Name == portSysctl })
	}
	return pod
}

// describe is a pod as text, without the product's annotations and what is another for each pod.
func describe(t *testing.T, pod *corev1.Pod) string {
	pod = pod.DeepCopy()
	maps.DeleteFunc(pod.Annotations, func(name, _ string) bool { return strings.HasPrefix(name, prefix) })
	pod.Name, pod.UID, pod.CreationTimestamp, pod.ManagedFields = "", "", metav1.Time{}, nil
	text, err := json.MarshalIndent(pod, "", " ")
	check(t, err)
	return string(text)
}

// difference is the lines that are in one text and not in the other.
func difference(before, after string) string {
	var lines []string
	a, b := strings.Split(before, "\n"), strings.Split(after, "\n")
	for _, line := range a {
		if !slices.Contains(b, line) {
			lines = append(lines, "-"+line)
		}
	}
	for _, line := range b {
		if !slices.Contains(a, line) {
			lines = append(lines, "+"+line)
		}
	}
	return strings.Join(lines, "\n")
}

func (in *installation) addsAudiences(t *testing.T) {
	pod := launcherPod(t, in.site, "masquerade")
	pod.Annotations[prefix+"token-audiences"] = "vault, sts.amazonaws.com"
	pod.Annotations[prefix+"token-expiration-seconds"] = "900"
	stored, err := in.admit(t.Context(), pod)
	check(t, err)
	var got []string
	for _, volume := range stored.Spec.Volumes {
		if volume.Name != tokenVolume {
			continue
		}
		for _, source := range volume.Projected.Sources {
			token := source.ServiceAccountToken
			got = append(got, fmt.Sprintf("%s: %q for %d s", token.Path, token.Audience, *token.ExpirationSeconds))
		}
	}
	want := []string{`token: "" for 900 s`, `audiences/0: "vault" for 900 s`, `audiences/1: "sts.amazonaws.com" for 900 s`}
	if !slices.Equal(got, want) {
		t.Errorf("the tokens are %q, want %q", got, want)
	}
}

func (in *installation) leavesAlone(names ...string) func(*testing.T) {
	return func(t *testing.T) {
		for _, name := range names {
			stored, err := in.admit(t.Context(), launcherPod(t, in.site, name))
			check(t, err)
			text := describe(t, stored)
			for _, ours := range []string{initContainer, serverContainer, tokenVolume, portSysctl} {
				if strings.Contains(text, ours) {
					t.Errorf("%s: the stored pod has %s in it", name, ours)
				}
			}
		}
	}
}

// injectsOnce sends a pod a second time, as after another webhook's change.
func (in *installation) injectsOnce(t *testing.T) {
	first, err := in.admit(t.Context(), launcherPod(t, in.site, "masquerade"))
	check(t, err)
	first.Name, first.UID, first.ResourceVersion, first.ManagedFields = "", "", "", nil
	second, err := in.admit(t.Context(), first)
	check(t, err)
	if before, after := sidecars(first), sidecars(second); len(before) != 2 || !reflect.DeepEqual(before, after) {
		t.Errorf("its sidecars are %q, and then %q", names(before), names(after))
	}
}

func (in *installation) takesAsStrictest(t *testing.T) {
	pod := launcherPod(t, in.site, "masquerade")
	pod.Annotations[hopLimitAnnotation] = "256"
	stored, err := in.admit(t.Context(), pod)
	check(t, err)
	if got := stored.Annotations[hopLimitAnnotation]; got != "1" || len(sidecars(stored)) != 2 {
		t.Errorf("the annotation is %q, want 1; the sidecars are %q", got, names(sidecars(stored)))
	}
	for _, word := range []string{hopLimitAnnotation, "256", "1 to 255"} {
		if warnings := stored.Annotations[prefix+"warnings"]; !strings.Contains(warnings, word) {
			t.Errorf("the pod does not say %q, but %q", word, warnings)
		}
	}
}

// agreesWithFixtures shows that the matchConditions, the API server's defaults and its validation change nothing.
func (in *installation) agreesWithFixtures(t *testing.T) {
	const ending = ".verdict.yaml"
	paths, err := filepath.Glob(filepath.Join(in.launcherFolder(), "*"+ending))
	check(t, err)
	compared := 0
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ending)
		pod := launcherPod(t, in.site, name)
		if len(sidecars(pod)) > 0 && pod.Annotations[injectedAnnotation] == "true" {
			t.Logf("%s is left out: its sidecars are of other patches than those installed", name)
			continue
		}
		want, err := readVerdict(path)
		check(t, err)
		stored, err := in.admit(t.Context(), pod)
		if isInvalid(err) && in.isInvalidAnyhow(t.Context(), pod) {
			t.Logf("%s is left out: no API server takes that pod", name)
			continue
		}
		compared++
		switch {
		case !want.Allowed:
			expectRefusal(t, err, want.Message)
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case want.injects() && len(sidecars(stored)) != 2:
			t.Errorf("%s: it has no sidecars", name)
		case !want.injects() && !slices.Equal(names(sidecars(stored)), names(sidecars(pod))):
			t.Errorf("%s: its sidecars are %q, it came with %q", name, names(sidecars(stored)), names(sidecars(pod)))
		}
	}
	t.Logf("%d pods", compared)
	if compared == 0 {
		t.Errorf("there are no pods in %s", in.launcherFolder())
	}
}

// verdict is what the webhook's unit tests want to be answered.
type verdict struct {
	Allowed bool
	Message string
	Patch   []struct{ Path string }
}

// injects says whether the patch adds containers, or changes those that were added before.
func (v verdict) injects() bool {
	return slices.ContainsFunc(v.Patch, func(op struct{ Path string }) bool { return strings.HasPrefix(op.Path, "/spec/initContainers") })
}

func readVerdict(path string) (verdict, error) {
	var v verdict
	content, err := os.ReadFile(path)
	if err != nil {
		return v, err
	}
	return v, yaml.Unmarshal(content, &v)
}

// isInvalid says whether an error is from the API server's own validation, after admission.
func isInvalid(err error) bool {
	var refused *kube.Refusal
	return errors.As(err, &refused) && refused.Status.Reason == metav1.StatusReasonInvalid
}

// isInvalidAnyhow says whether a pod is invalid even when the webhook has no part in it.
func (in *installation) isInvalidAnyhow(ctx context.Context, pod *corev1.Pod) bool {
	plain := pod.DeepCopy()
	delete(plain.Annotations, enabledAnnotation)
	_, err := in.admit(ctx, plain)
	return isInvalid(err)
}

// testLimits is about namespaces whose administrator bounds what containers ask for. They are done once: the patch is
// the same in all overlays.
func (in *installation) testLimits(t *testing.T) {
	if !in.once {
		return
	}
	in.check(t, "limits/range", "a LimitRange (min, max, ratio of limit to request 4) admits a VM's pod with its sidecars", in.fitsLimitRange)
	in.check(t, "limits/quota", "a ResourceQuota of requests and limits admits a VM's pod with its sidecars", in.fitsQuota)
}

func (in *installation) fitsLimitRange(t *testing.T) {
	name := in.bounded(t, "range")
	limits := &corev1.LimitRange{ObjectMeta: metav1.ObjectMeta{Name: "containers"}, Spec: corev1.LimitRangeSpec{
		Limits: []corev1.LimitRangeItem{{
			Type:                 corev1.LimitTypeContainer,
			Min:                  amounts("5m", "8Mi"),
			Max:                  amounts("8", "16Gi"),
			MaxLimitRequestRatio: amounts("4", "4"),
		}},
	}}
	_, err := kube.Create(t.Context(), in.api, namespaces+"/"+name+"/limitranges", limits)
	check(t, err)
	tooSmall := boundedPod(t, in.site)
	tooSmall.Spec.InitContainers[0].Resources.Requests = amounts("4m", "35M")
	// The API server's cache takes in the LimitRange by no event.
	check(t, kube.Poll(t.Context(), patience, func(ctx context.Context) (string, error) {
		if _, err := in.admitIn(ctx, name, tooSmall, false); err == nil {
			return "a container below the minimum is admitted", nil
		}
		return "", nil
	}))
	in.expectFits(t, name)
}

func (in *installation) fitsQuota(t *testing.T) {
	name := in.bounded(t, "quota")
	quotas := "/api/v1/namespaces/" + name + "/resourcequotas"
	quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "compute"}, Spec: corev1.ResourceQuotaSpec{
		Hard: corev1.ResourceList{
			corev1.ResourceRequestsCPU: resource.MustParse("20"), corev1.ResourceRequestsMemory: resource.MustParse("64Gi"),
			corev1.ResourceLimitsCPU: resource.MustParse("20"), corev1.ResourceLimitsMemory: resource.MustParse("64Gi"),
		},
	}}
	_, err := kube.Create(t.Context(), in.api, quotas, quota)
	check(t, err)
	_, err = kube.Await(t.Context(), in.api, quotas, quota.Name, patience, func(q *corev1.ResourceQuota) string {
		if len(q.Status.Hard) == 0 {
			return "nobody has counted what is used"
		}
		return ""
	})
	check(t, err)
	unbounded := boundedPod(t, in.site)
	unbounded.Spec.InitContainers[0].Resources = corev1.ResourceRequirements{}
	_, err = in.admitIn(t.Context(), name, unbounded, false)
	expectRefusal(t, err, "must specify limits.cpu for: guest-console-log")
	in.expectFits(t, name)
}

// expectFits fails the check unless pods that are admitted in a namespace are so with their sidecars too, in the same
// QoS class.
func (in *installation) expectFits(t *testing.T, namespace string) {
	for class, pod := range map[corev1.PodQOSClass]*corev1.Pod{
		corev1.PodQOSBurstable:  boundedPod(t, in.site),
		corev1.PodQOSGuaranteed: launcherPod(t, in.site, "dedicated-cpus"),
	} {
		for _, asks := range []bool{false, true} {
			stored, err := in.admitIn(t.Context(), namespace, pod, asks)
			switch {
			case err != nil:
				t.Errorf("the %s pod, enabled %t: %v", class, asks, err)
			case (len(sidecars(stored)) == 2) != asks:
				t.Errorf("the %s pod, enabled %t, has the sidecars %q", class, asks, names(sidecars(stored)))
			case stored.Status.QOSClass != class:
				t.Errorf("the %s pod, enabled %t, is %s", class, asks, stored.Status.QOSClass)
			}
		}
	}
}

// boundedPod is the pod of a VM that has limits, as such namespaces want it, in the ratio of 4 to its requests.
func boundedPod(t *testing.T, s *site) *corev1.Pod {
	pod := launcherPod(t, s, "masquerade")
	compute := &pod.Spec.Containers[0].Resources
	compute.Requests, compute.Limits = amounts("100m", "1322Mi"), amounts("400m", "2Gi")
	return pod
}

func amounts(cpu, memory string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
}

// admitIn is admit in a namespace, for a pod that asks or declines.
func (s *site) admitIn(ctx context.Context, namespace string, pod *corev1.Pod, asks bool) (*corev1.Pod, error) {
	pod = pod.DeepCopy()
	pod.Namespace = namespace
	if !asks {
		pod.Annotations[enabledAnnotation] = "false"
	}
	return kube.DryRun(ctx, s.api, namespaces+"/"+namespace+"/pods", pod)
}

// bounded makes a namespace that is gone when the check ends, and returns its name.
func (s *site) bounded(t *testing.T, suffix string) string {
	name := tenant + "-" + suffix
	check(t, s.makeNamespace(t.Context(), name))
	t.Cleanup(func() {
		check(t, s.api.Delete(context.Background(), namespaces+"/"+name))
		check(t, kube.AwaitGone(context.Background(), s.api, namespaces, name, patience))
	})
	return name
}
