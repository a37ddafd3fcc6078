package checks

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
)

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
