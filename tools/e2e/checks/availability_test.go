package checks

import (
	"context"
	"maps"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
)

// testAvailability is about what an administrator and the issuer of the certificate do while VMs start.
func (in *installation) testAvailability(t *testing.T) {
	in.check(t, "availability/restart", "the webhook is restarted without a failed admission", in.restarts)
	if in.renew != nil {
		in.check(t, "availability/renewal", "its certificate is renewed without a restart or a failed admission", in.renews)
	}
}

func (in *installation) restarts(t *testing.T) {
	old, err := in.webhookPods(t.Context())
	check(t, err)
	in.duringAdmissions(t, func(ctx context.Context) error {
		if _, err := in.kubectl(ctx, "rollout", "restart", "--namespace="+namespace, "deployment/"+webhook); err != nil {
			return err
		}
		if err := in.awaitRollout(ctx); err != nil {
			return err
		}
		return in.awaitGone(ctx, old)
	})
}

// awaitGone returns when the pods have ended.
func (in *installation) awaitGone(ctx context.Context, pods []corev1.Pod) error {
	for _, pod := range pods {
		if err := kube.AwaitGone(ctx, in.api, webhookPods, pod.Name, patience); err != nil {
			return err
		}
	}
	return nil
}

func (in *installation) renews(t *testing.T) {
	pods, err := in.webhookPods(t.Context())
	check(t, err)
	before, err := in.servedCertificates(t.Context(), pods)
	check(t, err)
	in.duringAdmissions(t, func(ctx context.Context) error {
		begin := time.Now()
		if err := in.renew(ctx, in); err != nil {
			return err
		}
		if err := in.awaitOtherCertificates(ctx, pods, before); err != nil {
			return err
		}
		t.Logf("all replicas serve it after %.1f s", time.Since(begin).Seconds())
		return nil
	})
	after, err := in.webhookPods(t.Context())
	check(t, err)
	if !maps.Equal(restarts(after), restarts(pods)) {
		t.Errorf("the pods and their restarts were %v and are %v", restarts(pods), restarts(after))
	}
}

// restarts counts, by the pods' names, how many times their containers ended.
func restarts(pods []corev1.Pod) map[string]int32 {
	counts := map[string]int32{}
	for _, pod := range pods {
		counts[pod.Name] = 0
		for _, status := range pod.Status.ContainerStatuses {
			counts[pod.Name] += status.RestartCount
		}
	}
	return counts
}
